"""Every overlay: built by kustomize, valid for the API server, restricted, and in agreement with itself."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from verification import crds
from verification.steps import ROOT, Failure, Skip, need, output, step

Resource = dict[str, Any]

K8S = ROOT / "k8s"

#: checkov's rules that do not hold here, each with the reason.
NOT_FOR_US = {
    "CKV_K8S_11": "no CPU limit where decoding comes in bursts (base, gpu): a limit throttles, requests share fairly",
    "CKV_K8S_43": "a digest belongs to the registry that the image is pushed to, and that is the user's",
    "CKV_K8S_15": "tags are never used twice, so IfNotPresent is right and survives a registry's outage",
}


def overlays() -> list[str]:
    return sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))


def build(folder: Path | str) -> list[Resource]:
    text = output([need("kubectl", "kubernetes.io"), "kustomize", str(folder)])
    return [document for document in yaml.safe_load_all(text) if document]


def everything() -> Iterator[tuple[str, list[Resource]]]:
    """Each overlay, the optional component on top of one, and the examples."""
    for name in overlays():
        yield name, build(K8S / "overlays" / name)
    with tempfile.TemporaryDirectory(dir=K8S) as folder:
        text = "resources: [../overlays/gpu]\ncomponents: [../components/weights-pvc]\n"
        (Path(folder) / "kustomization.yaml").write_text(text, encoding="utf-8")
        yield "gpu+weights-pvc", build(folder)
    for path in sorted(K8S.glob("examples/*.yaml")):
        yield path.stem, [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


@step
def manifests() -> str:
    """kustomize, then the schemas of Kubernetes (strict: no unknown field) and of the custom resources."""
    tool = need("kubernetes-validate", "PyPI")
    custom: list[Resource] = []
    count = 0
    for name, resources in everything():
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
        for name, resources in everything():
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
    """What no schema sees: selectors meet labels, numbers fit each other, settings exist, pods are restricted."""
    checked = 0
    for name, resources in everything():
        wrong = [f"{name}: {problem}" for problem in problems(resources)]
        if wrong:
            raise Failure("\n".join(wrong))
        checked += len(resources)
    return f"{checked} resources"


def problems(resources: list[Resource]) -> Iterator[str]:
    deployments = [r for r in resources if r["kind"] == "Deployment"]
    names = {(r["kind"], r["metadata"]["name"]) for r in resources}
    for resource in resources:
        yield from _selects_one(resource, deployments)
        yield from _scales_sensibly(resource, names)
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        who = deployment["metadata"]["name"]
        yield from (f"{who}: {p}" for p in _restricted(pod))
        yield from (f"{who}: {p}" for p in _drains_in_time(pod, resources))
        yield from (f"{who}: {p}" for p in _gpu_whole(pod))
        yield from (f"{who}: {p}" for p in _references(pod, names))
    for config in (r for r in resources if r["kind"] == "ConfigMap" and "IMAGENET_MODEL" in r["data"]):
        yield from _settings_exist(config["data"])


def _selects_one(resource: Resource, deployments: list[Resource]) -> Iterator[str]:
    """A selector picks the pods of exactly one deployment: neither none nor its neighbours'."""
    spec = resource.get("spec", {})
    selector = {
        "Service": lambda: spec["selector"],
        "Deployment": lambda: spec["selector"]["matchLabels"],
        "PodDisruptionBudget": lambda: spec["selector"].get("matchLabels"),
        "NetworkPolicy": lambda: spec["podSelector"].get("matchLabels"),
    }.get(resource["kind"])
    if selector is None:
        return
    wanted = selector() or {}
    found = [d for d in deployments if wanted.items() <= d["spec"]["template"]["metadata"]["labels"].items()]
    if not wanted or len(found) != 1:
        yield f"{resource['kind']} {resource['metadata']['name']} selects {len(found)} deployments with {wanted}"


def _scales_sensibly(resource: Resource, names: set[tuple[str, str]]) -> Iterator[str]:
    spec = resource.get("spec", {})
    if resource["kind"] == "HorizontalPodAutoscaler":
        low, high, target = spec["minReplicas"], spec["maxReplicas"], spec["scaleTargetRef"]["name"]
    elif resource["kind"] == "ScaledObject":
        low, high, target = spec["minReplicaCount"], spec["maxReplicaCount"], spec["scaleTargetRef"]["name"]
    else:
        return
    if not 1 <= low <= high:
        yield f"{resource['kind']}: minimum {low}, maximum {high}"
    if ("Deployment", target) not in names:
        yield f"{resource['kind']} scales {target}, which is not there"
    if (
        sum(
            kind in ("HorizontalPodAutoscaler", "ScaledObject") and name == resource["metadata"]["name"]
            for kind, name in names
        )
        > 1
    ):
        yield f"two autoscalers named {resource['metadata']['name']}"


def _restricted(pod: Resource) -> Iterator[str]:
    """The controls of Kubernetes' pod security standard "restricted" that a pod has to ask for itself."""
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    allowed = {
        "name",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    yield from (
        f"volume {v['name']} is none of the allowed kinds" for v in pod.get("volumes", []) if set(v) - allowed
    )
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{container['name']} may escalate"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            yield f"{container['name']} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} may write into its image"


def _drains_in_time(pod: Resource, resources: list[Resource]) -> Iterator[str]:
    wanted = pod["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    data = next(r["data"] for r in resources if r["kind"] == "ConfigMap" and r["metadata"]["name"] == wanted)
    drain = (int(data["IMAGENET_DRAIN_DELAY_MS"]) + int(data["IMAGENET_DRAIN_TIMEOUT_MS"])) / 1000
    if pod["terminationGracePeriodSeconds"] <= drain:
        yield f"is killed after {pod['terminationGracePeriodSeconds']} s, drains for up to {drain:g} s"


def _gpu_whole(pod: Resource) -> Iterator[str]:
    for container in pod["containers"]:
        limits, requests = (container.get("resources", {}).get(k, {}) for k in ("limits", "requests"))
        for key in (k for k in {**limits, **requests} if k.startswith("nvidia.com/")):
            if not re.fullmatch(r"[1-9]\d*", str(limits.get(key, ""))) or requests.get(
                key, limits.get(key)
            ) != limits.get(key):
                yield f"{key} must be a whole number, the request equal to the limit"


def _references(pod: Resource, names: set[tuple[str, str]]) -> Iterator[str]:
    wanted = {("ServiceAccount", pod["serviceAccountName"]), ("PriorityClass", pod["priorityClassName"])}
    volumes = {v["name"]: v for v in pod.get("volumes", [])}
    wanted |= {
        ("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"])
        for v in volumes.values()
        if "persistentVolumeClaim" in v
    }
    for container in pod["containers"] + pod.get("initContainers", []):
        wanted |= {("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", [])}
        mounts = {m["name"] for m in container.get("volumeMounts", [])}
        yield from (f"{container['name']} mounts {m}, which is no volume" for m in mounts - set(volumes))
        ports = {p["name"] for p in container.get("ports", [])}
        probes = [container[k] for k in ("startupProbe", "livenessProbe", "readinessProbe") if k in container]
        yield from (
            f"a probe asks port {p['httpGet']['port']}" for p in probes if p["httpGet"]["port"] not in ports
        )
    yield from (f"{kind} {name} is not there" for kind, name in sorted(wanted - names))


def _settings_exist(data: dict[str, str]) -> Iterator[str]:
    path = ROOT / "service" / "settings.py"
    if not path.exists():
        raise Skip("no service/settings.py yet")
    declared = set(re.findall(r"^    (\w+): ", path.read_text(encoding="utf-8"), re.MULTILINE))
    for key in data:
        if key.startswith("IMAGENET_") and key.removeprefix("IMAGENET_").lower() not in declared:
            yield f"{key} is no setting"
