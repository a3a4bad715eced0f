"""What only an API server can say: its own validation of every combination, and restricted Pod Security admission."""

from __future__ import annotations

import os

import yaml

from verification.manifests import composed, everything
from verification.steps import Failure, Skip, need, output, step

#: Kinds that a cluster knows only with the operator that brings them.
CUSTOM = ("ServiceMonitor", "PrometheusRule", "ScaledObject", "Gateway", "HTTPRoute", "InferenceService")


@step
def api_server() -> str:
    """`kubectl apply --dry-run=server` of everything to the cluster that kubectl is set to, if VERIFY_CLUSTER is set.

    Namespace and priority class have to be there: `kubectl apply -k k8s/cluster`. Nothing else is changed.
    """
    kubectl = need("kubectl", "kubernetes.io")
    if not os.environ.get("VERIFY_CLUSTER"):
        raise Skip(
            "NOT RUN: no API server here (no package of Debian, PyPI or npm has kube-apiserver); with a cluster that "
            "holds k8s/cluster: VERIFY_CLUSTER=1 deploy/verify api-server"
        )
    applied = custom = 0
    for name, resources in everything().items():
        own = [r for r in resources if r["kind"] not in CUSTOM]
        custom += len(resources) - len(own)
        if own:
            said = output(
                [kubectl, "apply", "--dry-run=server", "--validate=strict", "-f", "-"],
                stdin=yaml.safe_dump_all(own),
            )
            if "Warning" in said or "would violate PodSecurity" in said:
                raise Failure(f"{name}: {said}")
            applied += len(own)
    _refuses_what_is_not_restricted(kubectl)
    return (
        f"{applied} resources taken, {custom} custom ones left out; a pod that is not restricted is refused"
    )


def _refuses_what_is_not_restricted(kubectl: str) -> None:
    """Else the namespace enforces nothing, and the check above said nothing."""
    resources = composed(["base"], ["cpu", "fixed"])
    template = next(r for r in resources if r["kind"] == "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "imagenet"}}
    spec = {**template["spec"], "hostNetwork": True}
    try:
        output([kubectl, "apply", "--dry-run=server", "-f", "-"], stdin=yaml.safe_dump({**pod, "spec": spec}))
    except Failure as refusal:
        if "PodSecurity" in str(refusal):
            return
        raise
    raise Failure(
        "a pod in the host's network is taken: the namespace does not enforce the restricted standard"
    )
