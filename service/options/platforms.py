"""Settings from the environment variables of a hosting platform: port, routes, and the place of the weights.

    SageMaker   SAGEMAKER_BIND_TO_PORT, or compat=sagemaker   port 8080 unless told, weights in /opt/ml/model
    Vertex AI   AIP_HTTP_PORT                                 AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE, AIP_STORAGE_URI

Flags and ``IMAGENET_`` variables override them; they override the defaults. Sources: Amazon SageMaker, "Use Your Own
Inference Code with Hosting Services"; Google Vertex AI, "Custom container requirements for prediction".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.errors import ConfigurationError

#: The values of the setting ``compat``: other servers whose HTTP interface is offered.
CONTRACTS: Final = ("torchserve", "tfserving", "kserve-v1", "sagemaker", "vertex", "huggingface")

_EVERY_INTERFACE = "0.0.0.0"
#: The folder into which SageMaker unpacks a model's archive.
_SAGEMAKER_WEIGHTS = Path("/opt/ml/model")
_REMOTE = ("gs://", "s3://", "http://", "https://")


def implied_settings(
    environment: Mapping[str, str], sagemaker_weights: Path = _SAGEMAKER_WEIGHTS
) -> dict[str, str]:
    """The settings that the platform in ``environment`` implies; empty outside a platform.

    Raises `ConfigurationError` for weights at a URL, which only the platform's own code can download.
    """
    if "AIP_HTTP_PORT" in environment:
        return _vertex(environment)
    chosen = environment.get("IMAGENET_COMPAT", "")
    if "SAGEMAKER_BIND_TO_PORT" in environment or "sagemaker" in listed(chosen):
        return _sagemaker(environment, sagemaker_weights)
    return {}


def listed(text: str | None) -> list[str]:
    """The items of a comma-separated list, without blanks."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def _sagemaker(environment: Mapping[str, str], weights: Path) -> dict[str, str]:
    implied = {
        "compat": "sagemaker",
        "host": _EVERY_INTERFACE,
        "port": environment.get("SAGEMAKER_BIND_TO_PORT", "8080"),
    }
    if weights.is_dir() and any(weights.iterdir()):
        implied["weights"] = str(_only_file(weights))
    return implied


def _only_file(folder: Path) -> Path:
    """The only file in ``folder``, as a training job leaves it; otherwise the folder, a checkpoint directory."""
    content = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return content[0] if len(content) == 1 and content[0].is_file() else folder


def _vertex(environment: Mapping[str, str]) -> dict[str, str]:
    implied = {"compat": "vertex", "host": _EVERY_INTERFACE, "port": environment["AIP_HTTP_PORT"]}
    for variable, setting in (
        ("AIP_HEALTH_ROUTE", "vertex_health_route"),
        ("AIP_PREDICT_ROUTE", "vertex_predict_route"),
    ):
        if environment.get(variable):
            implied[setting] = environment[variable]
    weights = environment.get("AIP_STORAGE_URI", "")
    if weights and "IMAGENET_WEIGHTS" not in environment:
        if weights.startswith(_REMOTE):
            raise ConfigurationError(
                f"AIP_STORAGE_URI={weights[:200]!r} is not fetched: bake the weights into the image or mount them, "
                "and set IMAGENET_WEIGHTS to their path"
            )
        implied["weights"] = weights
    return implied
