"""What resources mean together: pure functions from what kustomize built to sentences about what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from verification.steps import ROOT, Skip

Resource = dict[str, Any]

AUTOSCALERS = ("HorizontalPodAutoscaler", "ScaledObject")
#: Not of a namespace, or of another one on purpose.
CLUSTER_WIDE = ("Namespace", "PriorityClass")
#: request_timeout_ms where nobody sets it, seconds.
REQUEST_TIMEOUT_S = 30.0
#: Seconds after SIGTERM that the processes need to end when nobody waits any more.
ENDING_S = 5.0
#: MiB that each decoder has for small pictures, and the share of the limit that is left for bodies and growth
#: (docs/OPERATIONS.md).
SMALL_PICTURES, GROWTH = 48, 0.1
#: Seconds until HTTP answers, on a node that starts many pods at once.
PORT_OPEN_S = 60.0


def problems(resources: list[Resource]) -> Iterator[str]:
    """Sentences, none when all fits."""
    deployments = [r for r in resources if r["kind"] == "Deployment"]
    names = {(r["kind"], r["metadata"]["name"]) for r in resources}
    yield from _one_namespace(resources)
    yield from _routes_lead_somewhere(resources)
    for resource in resources:
        yield from _selects_one(resource, [*deployments, *(r for r in resources if r["kind"] == "Job")])
        yield from _scales_sensibly(resource, names)
        if resource["kind"] == "NetworkPolicy":
            yield from _reaches_the_port(resource, deployments)
    for deployment in deployments:
        who, pod = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
        settings = _settings(pod, resources)
        found = [
            *_one_owner(deployment, resources),
            *_updates(deployment, resources, settings),
            *_restricted(pod),
            *_probes(pod, settings),
            *_drains_in_time(pod, settings),
            *_volumes_fit(pod),
            *_memory_suffices(pod, settings),
            *_gpu_whole(pod, settings),
            *_references(pod, names),
            *_gets_out(settings, resources, deployment),
        ]
        yield from (f"{who}: {problem}" for problem in found)
    for config in (r for r in resources if r["kind"] == "ConfigMap" and "IMAGENET_MODEL" in r["data"]):
        yield from _settings_exist(config["data"])


def _settings(pod: Resource, resources: list[Resource]) -> dict[str, str]:
    wanted = pod["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    return next(
        (r["data"] for r in resources if r["kind"] == "ConfigMap" and r["metadata"]["name"] == wanted), {}
    )


def _one_namespace(resources: list[Resource]) -> Iterator[str]:
    found = {r["metadata"].get("namespace") for r in resources if r["kind"] not in CLUSTER_WIDE}
    if len(found) > 1:
        yield f"resources are in several namespaces: {sorted(map(str, found))}"
    kinds = {r["kind"] for r in resources}
    if "Deployment" in kinds and kinds & set(CLUSTER_WIDE):
        yield "a deployment comes with the namespace or a class: deleting it would take those along"


def _targets(resource: Resource) -> str | None:
    return resource["spec"]["scaleTargetRef"]["name"] if resource["kind"] in AUTOSCALERS else None


def _one_owner(deployment: Resource, resources: list[Resource]) -> Iterator[str]:
    """Of the number of pods."""
    name = deployment["metadata"]["name"]
    owners = [f"{r['kind']} {r['metadata']['name']}" for r in resources if _targets(r) == name]
    if "replicas" in deployment["spec"]:
        owners.append(f"replicas: {deployment['spec']['replicas']}")
    if len(owners) != 1:
        yield f"the number of pods has {len(owners)} owners: {', '.join(owners) or 'none'}"


def _updates(deployment: Resource, resources: list[Resource], settings: dict[str, str]) -> Iterator[str]:
    """A rollout that can end: one that waits for a volume or a GPU which the old pod keeps never does."""
    spec = deployment["spec"]
    strategy = spec.get("strategy", {})
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for v in spec["template"]["spec"].get("volumes", [])
        if "persistentVolumeClaim" in v
    }
    single = [
        r["metadata"]["name"]
        for r in resources
        if r["kind"] == "PersistentVolumeClaim"
        and r["metadata"]["name"] in claims
        and "ReadWriteMany" not in r["spec"]["accessModes"]
    ]
    if single and (strategy.get("type") != "Recreate" or spec.get("replicas") != 1):
        yield f"{single[0]} is for one node at a time: one pod, strategy Recreate"
    rolling = strategy.get("rollingUpdate", {})
    if settings.get("IMAGENET_DEVICE") == "cuda" and not single and rolling.get("maxSurge") != 0:
        yield "a rollout wants a GPU more than there may be (maxSurge)"
    if strategy.get("type") != "Recreate" and not (rolling.get("maxSurge") or rolling.get("maxUnavailable")):
        yield "a rollout may neither add a pod nor take one away"


def _routes_lead_somewhere(resources: list[Resource]) -> Iterator[str]:
    services = {r["metadata"]["name"]: r for r in resources if r["kind"] == "Service"}
    gateways = {r["metadata"]["name"] for r in resources if r["kind"] == "Gateway"}
    for route in (r for r in resources if r["kind"] == "HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            if parent["name"] not in gateways:
                yield f"HTTPRoute: no Gateway {parent['name']}"
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                ports = services.get(backend["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if backend["port"] not in {port["port"] for port in ports}:
                    yield f"HTTPRoute: no port {backend['port']} at a Service {backend['name']}"
            timeout = str(rule.get("timeouts", {}).get("request", "0s"))
            if float(timeout.removesuffix("s")) <= REQUEST_TIMEOUT_S:
                yield f"HTTPRoute: its timeout of {timeout} is not above the service's own"


def _reaches_the_port(policy: Resource, deployments: list[Resource]) -> Iterator[str]:
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    allowed = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]}
    for deployment in deployments:
        template = deployment["spec"]["template"]
        if wanted.items() <= template["metadata"]["labels"].items():
            ports = template["spec"]["containers"][0]["ports"]
            if not allowed & {value for port in ports for value in (port["name"], port["containerPort"])}:
                yield f"NetworkPolicy {policy['metadata']['name']} lets nobody in to the port"


def _selects_one(resource: Resource, deployments: list[Resource]) -> Iterator[str]:
    """A selector picks the pods of exactly one deployment or job: neither none nor its neighbours'."""
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


def _probes(pod: Resource, settings: dict[str, str]) -> Iterator[str]:
    """Each asks its own question, in time, and as the port speaks."""
    container = pod["containers"][0]
    startup, live, ready = (container[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    paths = [probe["httpGet"]["path"] for probe in (startup, live, ready)]
    if paths != ["/livez", "/livez", "/readyz"]:
        yield f"startup, liveness and readiness ask {', '.join(paths)}"
    scheme = "HTTPS" if settings.get("IMAGENET_TLS_CERTIFICATE_FILE") else "HTTP"
    if any(probe["httpGet"].get("scheme", "HTTP") != scheme for probe in (startup, live, ready)):
        yield f"a probe does not speak {scheme}"
    if startup["periodSeconds"] * startup["failureThreshold"] < PORT_OPEN_S:
        yield "the startup probe gives less time than a busy node needs to open the port"
    if (
        live["periodSeconds"] * live["failureThreshold"]
        < 2 * ready["periodSeconds"] * ready["failureThreshold"]
    ):
        yield "a pod is restarted before it is taken out of the Service"
    delay = int(settings.get("IMAGENET_DRAIN_DELAY_MS", 0)) / 1000
    if ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"] > delay:
        yield f"a draining pod stops serving after {delay:g} s, before its readiness is known to have gone"


def _drains_in_time(pod: Resource, settings: dict[str, str]) -> Iterator[str]:
    delay, timeout = (
        int(settings.get(f"IMAGENET_DRAIN_{name}_MS", 0)) / 1000 for name in ("DELAY", "TIMEOUT")
    )
    if pod["terminationGracePeriodSeconds"] < delay + timeout + ENDING_S:
        yield (
            f"is killed after {pod['terminationGracePeriodSeconds']} s, and drains for up to {delay + timeout:g} s "
            f"and {ENDING_S:g} s for the processes to end"
        )
    longest = float(settings.get("IMAGENET_REQUEST_TIMEOUT_MS", REQUEST_TIMEOUT_S * 1000)) / 1000
    if timeout < longest:
        yield f"a request may take {longest:g} s, and a drain ends after {timeout:g} s"


def _volumes_fit(pod: Resource) -> Iterator[str]:
    """What is written into memory counts towards the memory limit, what is written to disk towards the other."""
    container = pod["containers"][0]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    empty = [v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v and v["name"] in mounted]
    limits = container["resources"]["limits"]
    memory = sum(quantity(v["sizeLimit"]) for v in empty if v.get("medium") == "Memory")
    disk = sum(quantity(v["sizeLimit"]) for v in empty if v.get("medium") != "Memory")
    if quantity(limits["memory"]) < 8 * memory:
        yield "volumes in memory may take more than an eighth of the memory limit"
    if disk and quantity(limits.get("ephemeral-storage", "0")) < disk:
        yield "volumes on disk may take more than the limit of ephemeral storage: the pod is evicted first"
    for every in [*pod["containers"], *pod.get("initContainers", [])]:
        resources = every["resources"]
        for name, asked in resources["requests"].items():
            limit = resources["limits"].get(name)
            if limit is not None and quantity(asked) > quantity(limit):
                yield f"{every['name']} asks for more {name} than its limit"
        if "memory" not in resources["limits"] or "cpu" not in resources["requests"]:
            yield f"{every['name']} has no memory limit or no CPU request"


def _memory_suffices(pod: Resource, settings: dict[str, str]) -> Iterator[str]:
    """The limit against what was measured of the model, the volumes in memory, and the hungriest picture."""
    container = pod["containers"][0]
    limits = container["resources"]["limits"]
    model = settings.get("IMAGENET_MODEL", "")
    if model not in (figures := measured_memory()):
        yield f"docs/PERFORMANCE.md has no memory of {model}"
        return
    volumes = sum(
        quantity(v["emptyDir"]["sizeLimit"])
        for v in pod["volumes"]
        if "Memory" in v.get("emptyDir", {}).values()
    )
    decoders = float(settings.get("IMAGENET_FRONTENDS", quantity(limits.get("cpu", "1"))))
    limit = quantity(limits["memory"])
    needed = (
        figures[model] + volumes + GROWTH * limit + (decoders * SMALL_PICTURES + largest_picture()) * 2**20
    )
    if limit < needed:
        yield f"{model} may take {needed / 2**20:.0f} MiB, and the limit is {limits['memory']}"


def largest_picture() -> int:
    """MiB that the hungriest kind of 50-megapixel picture takes, from the table of docs/OPERATIONS.md."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    table = text.partition("| picture | upright |")[2].partition("\n\n")[0]
    return max(
        int(figure)
        for cell in re.findall(r"\| ([\d · ]+)(?= \|)", table)
        for figure in re.findall(r"\d+", cell)
    )


def measured_memory() -> dict[str, float]:
    """Bytes by model, at its first start, from the first table of docs/PERFORMANCE.md: the last cell of each row.

    A cell is "from the cache / first start"; a row of two models has two figures, of which the larger stands for both.
    """
    found: dict[str, Any] = {}
    text = (ROOT / "docs" / "PERFORMANCE.md").read_text(encoding="utf-8")
    for line in text.partition("## What to expect")[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[-1].endswith("MiB"):
            figures = [int(f.replace(",", "")) for f in re.findall(r"\d[\d,]*", cells[-1].rpartition("/")[2])]
            names = re.findall(r"`(\w+)`", " ".join(cells[:2]))
            found |= dict.fromkeys(names, float(max(figures) * 2**20))
    return found


def quantity(text: str) -> float:
    """Kubernetes' "500m", "2Gi", "3"."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    units = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return float(number) * units[unit]


def _gpu_whole(pod: Resource, settings: dict[str, str]) -> Iterator[str]:
    limits, requests = (pod["containers"][0]["resources"].get(k, {}) for k in ("limits", "requests"))
    keys = [key for key in {**limits, **requests} if key.startswith("nvidia.com/")]
    for key in keys:
        whole = re.fullmatch(r"[1-9]\d*", str(limits.get(key, "")))
        if not whole or requests.get(key, limits.get(key)) != limits.get(key):
            yield f"{key} must be a whole number, the request equal to the limit"
    if len(keys) != (settings.get("IMAGENET_DEVICE") == "cuda"):
        yield f"IMAGENET_DEVICE={settings.get('IMAGENET_DEVICE')} with the resources {keys}"


def _gets_out(settings: dict[str, str], resources: list[Resource], deployment: Resource) -> Iterator[str]:
    """What a setting sends somewhere, the network policy lets through."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    open_ports = {
        port["port"]
        for r in resources
        if r["kind"] == "NetworkPolicy" and r["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        for rule in r["spec"]["egress"]
        for port in rule["ports"]
    }
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "HTTPS_PROXY", "HF_ENDPOINT"):
        port = re.search(r":(\d+)/?$", settings.get(name, ""))
        if port and int(port[1]) not in open_ports:
            yield f"{name} leads to port {port[1]}, which the network policy shuts"


def _references(pod: Resource, names: set[tuple[str, str]]) -> Iterator[str]:
    wanted = {("ServiceAccount", pod["serviceAccountName"])}
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
