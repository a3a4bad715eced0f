"""Chooses device, precision and runtime: resolves the settings' ``auto`` by what this host has."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from service.errors import ConfigurationError
from service.host.extras import install_command
from service.models.runtimes import manifest
from service.options.devices import ALL, listed

log = logging.getLogger(__name__)

#: Device files of which CUDA needs at least one: Linux, Windows' subsystem for it, Jetson.
_NVIDIA = ("/dev/nvidia*", "/proc/driver/nvidia/version", "/dev/dxg", "/dev/nvhost*")

_NAMES = ("auto", "eager", "openvino", "cudagraph", "compile")


@dataclass(frozen=True)
class Placement:
    """A device, a precision and a runtime, with every ``auto`` resolved.

    The runtime ``package`` is an artifact of `imagenet-serve export`; an artifact's precision may stay ``auto``.
    """

    device: str
    precision: str
    runtime: str
    artifact: Path | None = None
    chosen: bool = False
    """True if the runtime was chosen here (``auto``), so that another one may take its place."""

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def place(device: str, precision: str, runtime: str) -> Placement:
    """Resolves the settings' ``auto``: the device first, then the precision, then the runtime.

    Raises `ConfigurationError` with one sentence for a choice that this host cannot run.
    """
    device = _resolve_device(device)
    resolved = _resolve_precision(device, precision)
    path = Path(runtime).expanduser()
    if runtime not in _NAMES and path.is_dir():
        return _place_artifact(device, precision, path)
    return Placement(device, resolved, _resolve_runtime(device, runtime), chosen=runtime == "auto")


def _resolve_device(device: str) -> str:
    if device == "auto":
        device = "cuda" if _has_cuda() else "cpu"
    if device == ALL or listed(device) != [device] or device.startswith(("GPU-", "MIG-")):
        raise ConfigurationError(f"device={device}: only serve takes several devices or UUIDs; give one here")
    if device.startswith("cuda") and not _has_cuda():
        raise ConfigurationError(
            f"device={device}: this host has no usable CUDA device; use device=cpu or auto"
        )
    _refuse_missing_device(device)
    return device


def _resolve_precision(device: str, precision: str) -> str:
    if precision == "fp16" and device == "cpu":
        raise ConfigurationError("precision=fp16 needs a CUDA device; on the CPU use fp32 or bf16")
    if precision == "auto":
        return "fp16" if device.startswith("cuda") else "fp32"
    return precision


def _resolve_runtime(device: str, runtime: str) -> str:
    if runtime == "auto":
        return _fastest(device)
    if runtime not in _NAMES:
        raise ConfigurationError(
            f"runtime={runtime} is not available; use {', '.join(_NAMES)}, or the directory that "
            "imagenet-serve quantize or export has made"
        )
    if runtime == "openvino":
        _refuse_openvino(device)
    if runtime == "cudagraph" and device == "cpu":
        raise ConfigurationError("runtime=cudagraph needs a CUDA device; on the CPU use auto")
    return runtime


def _has_cuda() -> bool:
    """Returns torch's answer. Without NVIDIA's device files torch is not asked, since its import takes a second."""
    if not any(glob(pattern) for pattern in _NVIDIA) or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _device_count() -> int:
    import torch

    return torch.cuda.device_count()


def _refuse_missing_device(device: str) -> None:
    _, _, number = device.partition(":")
    if number and int(number) >= _device_count():
        raise ConfigurationError(
            f"device={device}: this process sees {_device_count()} CUDA device(s), and their numbers begin with 0; use "
            "device=cuda for the first"
        )


def _fastest(device: str) -> str:
    """Returns the runtime that serves fastest among those that start within seconds; compiling takes minutes."""
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
    if manifest.format_of(path) == manifest.PACKAGE.format:
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
