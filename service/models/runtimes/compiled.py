"""``runtime=compile``: the model by torch's inductor, which generates and tunes kernels for this device.

The first start takes minutes. The kernels are kept in ``$XDG_CACHE_HOME/imagenet-serve/inductor`` (or in
``TORCHINDUCTOR_CACHE_DIR``), and the next start takes seconds.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError
from service.models import cache
from service.models.runtimes.eager import Forward

log = logging.getLogger(__name__)


#: Images of the example for which kernels are tuned. On a GPU, the best kernel for two images is not the best for a
#: batch; on a CPU, kernels are not tuned.
_EXAMPLE = {"cuda": 64, "cpu": 2}
#: Folders in site-packages where NVIDIA's wheels, which come with torch's, put the compiler's headers and libraries.
_WHEELS = ("nvidia/cu13", "nvidia/cuda_runtime")


def keep_kernels() -> None:
    """Sets TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR unless they are set."""
    root = cache.root()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(root / "triton"))


def example(image: tuple[int, int, int], device: torch.device) -> Tensor:
    """Returns example images for the compiler, uint8 ``[N, H, W, C]``: as many as a busy batch has."""
    return torch.zeros((_EXAMPLE[device.type], *image), dtype=torch.uint8, device=device)


def find_cuda() -> str:
    """Sets ``CUDA_HOME`` to the headers of NVIDIA's wheels if no toolkit is installed; torch's compiler needs them.

    Returns what is missing, in words; empty if nothing is.
    """
    if "CUDA_HOME" not in os.environ:
        found = [Path(place) / wheel for place in sys.path for wheel in _WHEELS]
        home = next(
            (place for place in found if (place / "include" / "cuda.h").is_file()), Path("/usr/local/cuda")
        )
        os.environ["CUDA_HOME"] = str(home)
    header = Path(os.environ["CUDA_HOME"]) / "include" / "cuda.h"
    return (
        ""
        if header.is_file()
        else f"CUDA's headers ({header} is not there; pip install 'cuda-toolkit[cudart]')"
    )


def compiler() -> str:
    """Returns what this host lacks to compile, in words; empty if nothing is missing."""
    wanted = os.environ.get("CXX") or "g++"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(wanted) is None and shutil.which("clang++") is None:
        return f"a C++ compiler (there is no {wanted}; Debian: apt-get install g++)"
    if not header.is_file():
        return f"Python's headers (there is no {header}; Debian: apt-get install python3-dev)"
    return ""


@torch.inference_mode()
def compiled(network: nn.Module, image: tuple[int, int, int], device: torch.device) -> Forward:
    """Compiles ``network`` for any number of images of this shape: uint8 ``[N, H, W, C]`` → features and logits.

    Raises `ConfigurationError` if that fails, for instance without a C++ compiler.
    """
    keep_kernels()
    began = time.monotonic()
    # No CUDA graphs of torch's own: they belong to a thread, and the pipeline captures one for each bucket.
    # On a CPU, trying every kernel takes minutes for each layer and gains little over its libraries.
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    forward: Forward = torch.compile(network, mode=mode, fullgraph=True)
    try:
        # The compiler specialises on a single image; the example stands for every other number.
        with compiling():
            several = example(image, device)
            torch._dynamo.mark_dynamic(several, 0)
            forward(several)
            forward(several[:1].clone())
    except Exception as error:
        # The border of a compiler: its parts raise anything.
        raise ConfigurationError(
            f"runtime=compile: torch cannot compile this model here ({first_line(error)}); {_missing(compiler())}"
            "use runtime=auto"
        ) from error
    log.info("compiled in %.1f s", time.monotonic() - began)
    return forward


def _missing(what: str) -> str:
    return f"missing: {what}; " if what else ""


@contextmanager
def compiling() -> Iterator[None]:
    """Suppresses all warnings while torch.compile runs; they are meant for torch's developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: Exception) -> str:
    """Returns the first sentence of an error that spans pages."""
    error = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
