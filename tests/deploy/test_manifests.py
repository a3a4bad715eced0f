"""That `deploy/verify agreement` sees what is wrong: each damage to sound manifests has its sentence."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "deploy"))

pytest.importorskip("yaml")
if shutil.which("kubectl") is None:
    pytest.skip("there is no kubectl", allow_module_level=True)

from verification import meaning  # noqa: E402
from verification.manifests import K8S, build, composed  # noqa: E402
from verification.meaning import Resource  # noqa: E402


@pytest.fixture(scope="module")
def cpu() -> list[Resource]:
    return build(K8S / "overlays" / "cpu")


@pytest.fixture(scope="module")
def gpu() -> list[Resource]:
    return composed(["overlays/gpu"], ["weights-pvc", "tracing"])


def of(resources: list[Resource], kind: str) -> Any:
    return next(r for r in resources if r["kind"] == kind)


def pod(resources: list[Resource]) -> Any:
    return of(resources, "Deployment")["spec"]["template"]["spec"]


def container(resources: list[Resource]) -> Any:
    return pod(resources)["containers"][0]


def settings(resources: list[Resource]) -> Any:
    return of(resources, "ConfigMap")["data"]


def test_sound_ones_are_sound(cpu: list[Resource], gpu: list[Resource]) -> None:
    assert [*meaning.problems(cpu), *meaning.problems(gpu)] == []


Damage = Callable[[list[Resource]], object]

DAMAGES: list[tuple[Damage, str]] = [
    (lambda r: r.remove(of(r, "HorizontalPodAutoscaler")), "0 owners"),
    (lambda r: r.append({**of(r, "HorizontalPodAutoscaler"), "kind": "ScaledObject", "spec": {
        "minReplicaCount": 1, "maxReplicaCount": 2, "scaleTargetRef": {"name": "imagenet-serve"}}}), "2 owners"),
    (lambda r: of(r, "Deployment")["spec"].update(replicas=3), "2 owners"),
    (lambda r: of(r, "HorizontalPodAutoscaler")["spec"].update(minReplicas=11), "minimum 11, maximum 10"),
    (lambda r: of(r, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="x"), "scales x"),
    (lambda r: of(r, "Service")["spec"]["selector"].update(more="x"), "selects 0 deployments"),
    (lambda r: of(r, "Service")["metadata"].update(namespace="other"), "several namespaces"),
    (lambda r: r.append({"kind": "Namespace", "metadata": {"name": "imagenet"}}), "take those along"),
    (lambda r: of(r, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0].update(port=9000), "lets nobody in"),
    (lambda r: settings(r).update(IMAGENET_DRAIN_TIMEOUT_MS="36000"), "is killed after 40 s"),
    (lambda r: settings(r).update(IMAGENET_DRAIN_DELAY_MS="1000"), "stops serving after 1 s"),
    (lambda r: settings(r).update(IMAGENET_REQUEST_TIMEOUT_MS="60000"), "a request may take 60 s"),
    (lambda r: settings(r).update(IMAGENET_TLS_CERTIFICATE_FILE="/tls/tls.crt"), "does not speak HTTPS"),
    (lambda r: settings(r).update(IMAGENET_NO_SUCH="1"), "IMAGENET_NO_SUCH is no setting"),
    (lambda r: settings(r).update(HTTPS_PROXY="http://10.0.0.1:3128"), "port 3128, which the network policy shuts"),
    (lambda r: settings(r).update(IMAGENET_MODEL="vgg19"), "vgg19 may take"),
    (lambda r: settings(r).update(IMAGENET_DEVICE="cuda"), "with the resources []"),
    (lambda r: container(r)["livenessProbe"]["httpGet"].update(path="/readyz"), "liveness and readiness ask"),
    (lambda r: container(r)["startupProbe"].update(failureThreshold=2), "startup probe gives less time"),
    (lambda r: container(r)["livenessProbe"].update(failureThreshold=0), "restarted before"),
    (lambda r: container(r)["securityContext"].update(readOnlyRootFilesystem=False), "write into its image"),
    (lambda r: pod(r)["securityContext"].update(runAsNonRoot=False), "may run as root"),
    (lambda r: pod(r)["initContainers"][0]["securityContext"].pop("capabilities"), "weights keeps capabilities"),
    (lambda r: pod(r)["volumes"].pop(), "which is no volume"),
    (lambda r: container(r)["resources"]["limits"].update(memory="1Gi"), "and the limit is 1Gi"),
    (lambda r: container(r)["resources"]["limits"].update(cpu="1"), "asks for more cpu than its limit"),
    (lambda r: container(r)["resources"]["limits"].update({"ephemeral-storage": "1Gi"}), "evicted first"),
    (lambda r: of(r, "Deployment")["spec"]["strategy"]["rollingUpdate"].update(maxSurge=0), "neither add a pod"),
    (lambda r: r.remove(of(r, "ServiceAccount")), "ServiceAccount imagenet-serve is not there"),
]  # fmt: skip

ON_A_GPU: list[tuple[Damage, str]] = [
    (lambda r: of(r, "PersistentVolumeClaim")["spec"].update(accessModes=["ReadWriteOnce"]), "strategy Recreate"),
    (lambda r: of(r, "Deployment")["spec"]["strategy"]["rollingUpdate"].update(maxSurge=1), "wants a GPU more"),
    (lambda r: container(r)["resources"]["limits"].update({"nvidia.com/gpu": "0.5"}), "must be a whole number"),
    (lambda r: container(r)["resources"]["limits"].update({"nvidia.com/mig-1g.10gb": "1"}), "with the resources"),
    (lambda r: of(r, "NetworkPolicy")["spec"]["egress"].pop(), "OTEL_EXPORTER_OTLP_ENDPOINT leads to port 4318"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_each_damage_has_its_sentence(cpu: list[Resource], damage: Damage, sentence: str) -> None:
    resources = copy.deepcopy(cpu)
    damage(resources)
    assert any(sentence in problem for problem in meaning.problems(resources))


@pytest.mark.parametrize(("damage", "sentence"), ON_A_GPU)
def test_and_on_a_gpu(gpu: list[Resource], damage: Damage, sentence: str) -> None:
    resources = copy.deepcopy(gpu)
    damage(resources)
    assert any(sentence in problem for problem in meaning.problems(resources))


def test_the_documents_have_the_memory_of_every_model() -> None:
    from service.models.catalog import VARIANTS

    figures = meaning.measured_memory()
    assert figures.keys() >= VARIANTS.keys() | {"demo"}
    assert all(300 * 2**20 < bytes_ < 4 * 2**30 for bytes_ in figures.values())
    assert 300 < meaning.largest_picture() < 2000
