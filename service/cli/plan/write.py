"""The folder that `plan` writes: settings, a kustomize component for a cluster, the reasons and the measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.cli.plan.decide import ChosenTrial, Scaling, Trial

_ENV = "imagenet-serve.env"


@dataclass(frozen=True)
class Proposal:
    """The result of a sweep. ``given`` are the settings that the user fixed; ``notes`` are cautions for the reader."""

    choice: ChosenTrial
    scaling: Scaling
    trials: Sequence[Trial]
    objective_ms: float
    given: Mapping[str, Any]
    machine: str
    gpu: bool
    notes: Sequence[str]

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.given, **self.choice.trial.candidate.settings()}


def write(folder: Path, proposal: Proposal) -> list[Path]:
    """Writes the proposal into ``folder`` and returns the paths of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# imagenet-serve plan --p99 {proposal.objective_ms:g}, measured on {proposal.machine}\n"
    variables = (f"IMAGENET_{name.upper()}={value}\n" for name, value in sorted(proposal.settings.items()))
    document = {
        "objective_p99_ms": proposal.objective_ms,
        "machine": proposal.machine,
        "settings": proposal.settings,
        "scaling": asdict(proposal.scaling),
        "trials": [asdict(trial) for trial in proposal.trials],
    }
    files = {
        _ENV: head + "".join(variables),
        "resources.yaml": head + _resources(proposal.scaling, gpu=proposal.gpu),
        "horizontalpodautoscaler.yaml": head + _hpa(proposal.scaling),
        "scaledobject.yaml": head + _scaled_object(proposal.scaling),
        "kustomization.yaml": head + _KUSTOMIZATION,
        "PLAN.md": explanation(proposal),
        "plan.json": json.dumps(document, indent=2) + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def explanation(proposal: Proposal) -> str:
    """The text of PLAN.md, which the terminal shows as well."""
    probe, trial, scaling = proposal.choice.probe, proposal.choice.trial, proposal.scaling
    notes = proposal.notes
    lines = [
        f"# p99 below {proposal.objective_ms:g} ms",
        "",
        f"{trial.candidate}: {probe.rate:.1f} images/s with a p99 of {probe.p99_ms:.1f} ms "
        f"({probe.answers} answers; {trial.ceiling:.1f} images/s at saturation, a lone client waits "
        f"{trial.alone_ms:.1f} ms).",
        "",
        f"Measured on {proposal.machine}.",
        "",
        "Why:",
        "",
        *(f"- {reason}." for reason in proposal.choice.reasons),
        "",
        f"One more pod from {scaling.rate:.1f} images/s and pod on: imagenet_saturation_ratio "
        f"{scaling.saturation:g}, or {scaling.cpu_percent} % of the requested CPU.",
        *(["", "Mind:", "", *(f"- {note}." for note in notes)] if notes else []),
    ]
    return "\n".join(lines) + "\n"


def _resources(scaling: Scaling, *, gpu: bool) -> str:
    device = "\n              nvidia.com/gpu: 1" if gpu else ""
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: imagenet-serve
spec:
  template:
    spec:
      containers:
        - name: imagenet-serve
          resources:
            # The service takes its number of threads from the CPU limit: the cores that the plan was measured with.
            requests:
              cpu: "{scaling.cpu}"
              memory: {scaling.memory_request_mib}Mi
            limits:
              cpu: "{scaling.cpu}"
              memory: {scaling.memory_limit_mib}Mi{device}
"""


def _hpa(scaling: Scaling) -> str:
    return f"""\
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: imagenet-serve
spec:
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {scaling.cpu_percent}
"""


def _scaled_object(scaling: Scaling) -> str:
    return f"""\
- op: replace
  path: /spec/triggers/0/metadata/threshold
  value: "{scaling.saturation:g}"
- op: replace
  path: /spec/triggers/1/metadata/value
  value: "{scaling.cpu_percent}"
"""


_KUSTOMIZATION = f"""\
# In an overlay of yours, beside a copy of this folder:
#   resources: [../overlays/cpu]     (or overlays/autoscale with KEDA)
#   components: [../plan]
# With overlays/autoscale-adapter, set its averageValue to the threshold by hand.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
configMapGenerator:
  - name: imagenet-serve
    behavior: merge
    envs: [{_ENV}]
patches:
  - path: resources.yaml
  # kustomize skips a patch whose target the overlay has removed.
  - path: horizontalpodautoscaler.yaml
    target: {{kind: HorizontalPodAutoscaler, name: imagenet-serve}}
  - path: scaledobject.yaml
    target: {{kind: ScaledObject, name: imagenet-serve}}
"""
