"""A model compiled ahead of time: `imagenet-serve export` makes it, and ``runtime=DIRECTORY`` loads it in a second.

about.json    see `service.models.runtimes.manifest`; "platform" is what it was compiled for, "most" the largest batch
model.pt2     torch.export's graph compiled by inductor: uint8 [N, H, W, C] → features, logits; weights within

A package holds machine code, which runs with the service's rights: load only packages that you made.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError
from service.models.checkpoints import Checkpoint
from service.models.runtimes import manifest
from service.models.runtimes.compiled import (
    compiler,
    compiling,
    example,
    find_cuda,
    first_line,
    keep_kernels,
)
from service.models.runtimes.eager import Forward

KIND = manifest.PACKAGE
_PACKAGE = "model.pt2"


class LoadedPackage(NamedTuple):
    """A loaded package. ``forward`` takes at most ``max_batch_size`` images."""

    forward: Forward
    precision: str
    max_batch_size: int


def platform_of(device: torch.device) -> dict[str, str]:
    """Returns the platform that machine code is compiled for; it runs only where all of this is equal."""
    here = {"torch": torch.__version__, "machine": platform.machine(), "device": device.type}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return here | {"capability": f"{major}.{minor}", "cuda": str(torch.version.cuda)}
    return here | {"capability": torch.backends.cpu.get_cpu_capability()}


def build(
    network: nn.Module, image: tuple[int, int, int], device: torch.device, max_batch_size: int, path: Path
) -> None:
    """Compiles ``network`` for up to ``max_batch_size`` images into the file ``path``. Raises `ConfigurationError`."""
    keep_kernels()
    missing = compiler() or (find_cuda() if device.type == "cuda" else "")
    images = example(image, device)[: max(2, max_batch_size)]
    try:
        with compiling(), torch.no_grad():
            program = exported(network, images, max_batch_size)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"max_autotune": device.type == "cuda"}
            )
    except Exception as error:
        # The border of a compiler: its parts raise anything.
        blame = (
            f"missing: {missing}"
            if missing
            else "a compiler and headers are there, so this is a fault of torch's"
        )
        raise ConfigurationError(
            f"export: torch cannot compile this model here ({first_line(error)}); {blame}"
        ) from error


def exported(network: nn.Module, images: Tensor, max_batch_size: int) -> torch.export.ExportedProgram:
    """Exports ``network`` as a graph for 1 to ``max_batch_size`` images like ``images``."""
    batch = {0: torch.export.Dim("batch", min=1, max=max_batch_size)}
    return torch.export.export(network, (images,), dynamic_shapes=(batch,))


def write(
    directory: Path, package: Path, checkpoint: Checkpoint, precision: str, device: torch.device, **more: Any
) -> None:
    """Moves the file ``package`` into an artifact directory. ``more`` goes into ``about.json``. Raises `OSError`."""

    def save(folder: Path) -> Sequence[str]:
        package.replace(folder / _PACKAGE)
        return (_PACKAGE,)

    manifest.write(KIND, directory, save, checkpoint, precision, platform=platform_of(device), **more)


def read(directory: Path, checkpoint: Checkpoint, device: torch.device) -> Mapping[str, Any]:
    """Reads ``about.json``. Raises `ConfigurationError` unless it was made from this checkpoint for this platform."""
    about = manifest.read(KIND, directory)
    manifest.refuse_another(about, checkpoint, directory.name, KIND)
    made, here = about.get("platform", {}), platform_of(device)
    for name, value in here.items():
        if made.get(name) != value:
            raise ConfigurationError(
                f"the artifact '{directory.name}' was compiled for {name} {made.get(name)}, and this is {value}: "
                "make it again with: imagenet-serve export"
            )
    return about


def load(path: Path, device: torch.device) -> Forward:
    """Loads the function in a package file onto ``device``. Raises `ConfigurationError` if that fails."""
    try:
        index = -1 if device.type == "cpu" else device.index or 0
        with compiling():
            # Single-threaded on CUDA: the events of a pool of streams would break the capture of a graph.
            loaded = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=device.type == "cuda", device_index=index
            )
    except Exception as error:
        # The border of a dynamic loader: it raises anything.
        raise ConfigurationError(f"the artifact cannot be loaded: {first_line(error)}") from error

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = loaded(pixels)
        return features, logits

    return forward


def open_artifact(directory: Path, checkpoint: Checkpoint, device: torch.device) -> LoadedPackage:
    """Opens an artifact directory. Raises `ConfigurationError` unless it is for this model and platform."""
    about = read(directory, checkpoint, device)
    return LoadedPackage(load(directory / _PACKAGE, device), str(about["precision"]), int(about["most"]))
