"""Where and how a model runs: the settings' ``auto`` decided by what this host has."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from service.errors import ConfigurationError
from service.extras import install_command
from service.models.runtimes import manifest, package

log = logging.getLogger(__name__)

_NAMES = ("auto", "eager", "openvino", "cudagraph", "compile")


@dataclass(frozen=True)
class Placement:
    """Every ``auto`` decided. ``runtime`` is one's name; ``package`` is what `imagenet-serve export` makes."""

    device: str
    precision: str
    runtime: str
    artifact: Path | None = None
    chosen: bool = False
    """Whether the runtime was our choice, so that another one may take its place."""

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def place(device: str, precision: str, runtime: str) -> Placement:
    """Decides the settings' ``auto``. Raises `ConfigurationError` with one sentence for what this host cannot do."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device={device}: this host has no usable CUDA device; use device=cpu or auto"
        )
    if precision == "fp16" and device == "cpu":
        raise ConfigurationError("precision=fp16 needs a CUDA device; on the CPU use fp32 or bf16")
    path = Path(runtime).expanduser()
    if runtime not in _NAMES and path.is_dir():
        return _place_artifact(device, precision, path)
    if precision == "auto":
        precision = "fp16" if device.startswith("cuda") else "fp32"
    if runtime == "auto":
        return Placement(device, precision, _fastest(device), chosen=True)
    if runtime not in _NAMES:
        raise ConfigurationError(
            f"runtime={runtime} is not available; use {', '.join(_NAMES)}, or the directory that "
            "imagenet-serve quantize or export has made"
        )
    if runtime == "openvino":
        _refuse_openvino(device)
    if runtime == "cudagraph" and device == "cpu":
        raise ConfigurationError("runtime=cudagraph needs a CUDA device; on the CPU use auto")
    return Placement(device, precision, runtime)


def _fastest(device: str) -> str:
    """What starts within seconds and serves fast; compiling takes minutes, and is for who asks for it."""
    if device != "cpu":
        return "cudagraph"
    if find_spec("openvino") is None:
        log.warning(
            "openvino is not installed, so the model runs on torch alone and more slowly; %s brings it",
            install_command("cpu"),
        )
        return "eager"
    return "openvino"


def _place_artifact(device: str, precision: str, path: Path) -> Placement:
    if precision != "auto":
        raise ConfigurationError(f"precision={precision}: an artifact has its own; leave precision to auto")
    if manifest.format_of(path) == package.KIND.format:
        return Placement(device, precision, "package", artifact=path)
    _refuse_openvino(device)
    return Placement(device, precision, "openvino", artifact=path)


def _refuse_openvino(device: str) -> None:
    if device != "cpu":
        raise ConfigurationError(f"runtime=openvino runs on the CPU, and device is {device}; use device=cpu")
    if find_spec("openvino") is None:
        raise ConfigurationError(
            f"runtime=openvino: the package is not installed; {install_command('cpu')} brings it"
        )
