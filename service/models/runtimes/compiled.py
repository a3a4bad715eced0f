"""``runtime=compile``: the model by torch's inductor, which writes and tries kernels for this very device.

The first start takes minutes. What was found is kept in ``$XDG_CACHE_HOME/imagenet-serve/inductor``
(``TORCHINDUCTOR_CACHE_DIR`` names another place), and the next one takes seconds.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError
from service.models import cache

log = logging.getLogger(__name__)

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Images of the example that kernels are written and tried for. On a GPU, what is best for two images is not for a
#: batch; a processor's kernels are not tried.
_EXAMPLE = {"cuda": 64, "cpu": 2}
#: Where NVIDIA's wheels, which come with torch's, put the compiler's headers and libraries, in site-packages.
_WHEELS = ("nvidia/cu13", "nvidia/cuda_runtime")


def keep_kernels() -> None:
    """Names the folders where inductor and Triton keep what they compile, unless somebody has."""
    root = cache.root()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(root / "triton"))


def example(image: tuple[int, int, int], device: torch.device) -> Tensor:
    """uint8 ``[N, H, W, C]`` to compile with: as many images as a busy batch has."""
    return torch.zeros((_EXAMPLE[device.type], *image), dtype=torch.uint8, device=device)


def find_cuda() -> str:
    """Names CUDA's headers to the compiler (``CUDA_HOME``), those of the wheels where no toolkit is installed.

    Returns what is missing, in words; empty when nothing is. It is torch's compiler that wants them, for an export.
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
    """What is missing on this host to compile with, in words; empty when nothing is."""
    wanted = os.environ.get("CXX") or "g++"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(wanted) is None and shutil.which("clang++") is None:
        return f"a C++ compiler (there is no {wanted}; Debian: apt-get install g++)"
    if not header.is_file():
        return f"Python's headers (there is no {header}; Debian: apt-get install python3-dev)"
    return ""


@torch.inference_mode()
def compiled(network: nn.Module, image: tuple[int, int, int], device: torch.device) -> Forward:
    """``network`` compiled for any number of images of this shape.

    Raises `ConfigurationError` where that cannot be, without a C++ compiler for instance.
    """
    keep_kernels()
    began = time.monotonic()
    # No graphs of its own: those belong to a thread, and the pipeline captures ours, one for each bucket.
    # On a processor, trying every kernel takes minutes for each layer and wins little over its libraries.
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    forward: Forward = torch.compile(network, mode=mode, fullgraph=True)
    try:
        # One image has a shape of its own for the compiler; the example stands for every other number.
        with compiling():
            several = example(image, device)
            torch._dynamo.mark_dynamic(several, 0)
            forward(several)
            forward(several[:1].clone())
    except Exception as error:
        # The border of a compiler: it raises whatever its parts do.
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
    """Without what torch's compiler warns its own authors of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: Exception) -> str:
    """The sentence of an error that comes with pages."""
    error = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
