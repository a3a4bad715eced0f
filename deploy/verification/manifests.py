"""Every overlay: built by kustomize, valid for the API server, restricted, and in agreement with itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import yaml

from verification import crds, meaning
from verification.meaning import Resource
from verification.steps import ROOT, Failure, need, output, step

#: libyaml's where it is there: most of the time goes into reading.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

K8S = ROOT / "k8s"

#: checkov's rules that do not hold here, each with the reason.
NOT_FOR_US = {
    "CKV_K8S_11": "no CPU limit where decoding comes in bursts (base, gpu): a limit throttles, requests share fairly",
    "CKV_K8S_43": "a digest belongs to the registry that the image is pushed to, and that is the user's",
    "CKV_K8S_15": "tags are never used twice, so IfNotPresent is right and survives a registry's outage",
}


#: Overlays with components on top, and devices with an owner of the number of pods: what the files and
#: docs/OPERATIONS.md say can be put together.
STACKED = {
    "cpu": ["autoscale-keda", "autoscale-adapter", "weights-pvc", "weights-pvc-single", "tls", "grpc", "priority"],
    "gpu": ["autoscale-keda", "autoscale-adapter", "weights-pvc-single", "tracing", "egress-private",
            "gpu-product", "gpu-runtime-class", "gpu-shared", "gpu-mig", "gpu-large"],
}  # fmt: skip
TOGETHER = [
    ("cpu", ["weights-pvc", "weights-read-only", "tls", "tracing", "egress-private"]),
    ("gpu", ["weights-pvc", "autoscale-keda", "tls", "grpc", "tracing", "egress-private", "priority",
             "gpu-product", "gpu-runtime-class", "gpu-mig", "gpu-large"]),
]  # fmt: skip
OWNERS = {
    "cpu": ["autoscale-keda", "autoscale-adapter", "fixed"],
    "gpu": ["autoscale-keda"],
}


def build(folder: Path | str) -> list[Resource]:
    text = output([need("kubectl", "kubernetes.io"), "kustomize", str(folder)])
    return [document for document in yaml.load_all(text, LOADER) if document]


def composed(resources: list[str], components: list[str]) -> list[Resource]:
    """What a kustomization of a user's gives, in a folder beside ours."""
    with tempfile.TemporaryDirectory(dir=K8S, prefix=".verify-") as folder:
        text = yaml.safe_dump(
            {
                "namespace": "imagenet",
                "resources": [f"../{path}" for path in resources],
                "components": [f"../components/{name}" for name in components],
            }
        )
        (Path(folder) / "kustomization.yaml").write_text(text, encoding="utf-8")
        return build(folder)


def combinations() -> dict[str, Callable[[], list[Resource]]]:
    """By name, what is built for it."""
    found: dict[str, Callable[[], list[Resource]]] = {}
    for path in sorted(K8S.glob("overlays/*/kustomization.yaml")):
        found[path.parent.name] = partial(build, path.parent)
    found["cluster"] = partial(build, K8S / "cluster")
    for device, owners in OWNERS.items():
        for owner in owners:
            found[f"base+{device}+{owner}"] = partial(composed, ["base"], [device, owner])
    for overlay, components in STACKED.items():
        for name in components:
            found[f"{overlay}+{name}"] = partial(composed, [f"overlays/{overlay}"], [name])
    for overlay, several in TOGETHER:
        found["+".join([overlay, *several])] = partial(composed, [f"overlays/{overlay}"], several)
    return found


@cache
def everything() -> dict[str, list[Resource]]:
    """Each combination, and the examples. Built side by side: kubectl's start is most of it."""
    builds = combinations()
    with ThreadPoolExecutor() as threads:
        found = dict(zip(builds, threads.map(lambda make: make(), builds.values()), strict=True))
    for path in sorted(K8S.glob("examples/*.yaml")):
        found[path.stem] = [d for d in yaml.load_all(path.read_text(encoding="utf-8"), LOADER) if d]
    return found


@step
def manifests() -> str:
    """kustomize, then the schemas of Kubernetes (strict: no unknown field) and of the custom resources."""
    tool = need("kubernetes-validate", "PyPI")
    custom: list[Resource] = []
    count = 0
    for name, resources in everything().items():
        count += len(resources)
        custom += [r for r in resources if crds.known(r)]
        own = [
            _pod_of_kserve(r) if r["kind"] == "InferenceService" else r
            for r in resources
            if not crds.known(r)
        ]
        said = output([tool, "--strict", "-"], stdin=yaml.safe_dump_all(own)) if own else ""
        if "WARN" in said:
            raise Failure(f"{name}: {said}")
    crds.validate(custom)
    return f"{count} resources valid, {len(custom)} of them custom"


def _pod_of_kserve(resource: Resource) -> Resource:
    """An InferenceService's predictor is a pod's spec with a few fields of its own; npm has no schema for the rest."""
    own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    spec = {key: value for key, value in resource["spec"]["predictor"].items() if key not in own}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": resource["metadata"], "spec": spec}


@step
def linted() -> str:
    """checkov's Kubernetes rules, less the ones in NOT_FOR_US."""
    tool = need("checkov", "PyPI")
    with tempfile.TemporaryDirectory() as folder:
        for name, resources in everything().items():
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump_all(resources), encoding="utf-8")
        report = output(
            [
                tool,
                "--framework",
                "kubernetes",
                "--directory",
                folder,
                "--skip-download",
                "--quiet",
                "--compact",
                "--output",
                "json",
                "--skip-check",
                ",".join(NOT_FOR_US),
            ]
        )
    summary = json.loads(report)
    summary = summary.get("summary", summary) if isinstance(summary, dict) else summary[0]["summary"]
    return f"checkov: {summary['passed']} passed, {summary['failed']} failed"


@step
def agreement() -> str:
    """What no schema sees: one owner of the number of pods, selectors that meet labels, numbers that fit each other."""
    found = everything()
    wrong = [
        f"{name}: {problem}" for name, resources in found.items() for problem in meaning.problems(resources)
    ]
    if wrong:
        raise Failure("\n".join(wrong))
    return f"{len(found)} combinations, {sum(map(len, found.values()))} resources"
