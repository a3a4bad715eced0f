"""The folder that `plan` writes: settings, a kustomize component for a cluster, the reasons, the measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.cli.plan.decide import Choice, Scaling, Trial

_ENV = "imagenet-serve.env"


def write(
    folder: Path,
    choice: Choice,
    scaling: Scaling,
    trials: Sequence[Trial],
    *,
    objective_ms: float,
    given: Mapping[str, Any],
    machine: str,
    gpu: bool,
    notes: Sequence[str],
) -> list[Path]:
    """Writes all of it and says which files. ``given`` are the settings that the user fixed."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# imagenet-serve plan --p99 {objective_ms:g}, measured on {machine}\n"
    settings = {**given, **choice.trial.candidate.settings()}
    files = {
        _ENV: head
        + "".join(f"IMAGENET_{name.upper()}={value}\n" for name, value in sorted(settings.items())),
        "resources.yaml": head + _resources(scaling, gpu=gpu),
        "horizontalpodautoscaler.yaml": head + _hpa(scaling),
        "scaledobject.yaml": head + _scaled_object(scaling),
        "kustomization.yaml": head + _KUSTOMIZATION,
        "PLAN.md": explanation(choice, scaling, objective_ms, machine, notes),
        "plan.json": json.dumps(
            {
                "objective_p99_ms": objective_ms,
                "machine": machine,
                "settings": settings,
                "scaling": asdict(scaling),
                "trials": [asdict(trial) for trial in trials],
            },
            indent=2,
        )
        + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def explanation(
    choice: Choice, scaling: Scaling, objective_ms: float, machine: str, notes: Sequence[str]
) -> str:
    """PLAN.md, which is also what the terminal shows."""
    probe, trial = choice.probe, choice.trial
    lines = [
        f"# p99 below {objective_ms:g} ms",
        "",
        f"{trial.candidate}: {probe.rate:.1f} images/s with a p99 of {probe.p99_ms:.1f} ms "
        f"({probe.answers} answers; {trial.ceiling:.1f} images/s at saturation, a lone client waits "
        f"{trial.alone_ms:.1f} ms).",
        "",
        f"Measured on {machine}.",
        "",
        "Why:",
        "",
        *(f"- {reason}." for reason in choice.reasons),
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
            # The CPU limit is what the service counts its threads by: the cores that the plan was measured with.
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
# With overlays/autoscale-adapter its averageValue is the threshold, to be set by hand.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
configMapGenerator:
  - name: imagenet-serve
    behavior: merge
    envs: [{_ENV}]
patches:
  - path: resources.yaml
  # A target that an overlay has taken out is passed over.
  - path: horizontalpodautoscaler.yaml
    target: {{kind: HorizontalPodAutoscaler, name: imagenet-serve}}
  - path: scaledobject.yaml
    target: {{kind: ScaledObject, name: imagenet-serve}}
"""
