"""``runtime=compile``: the model by torch's inductor, which writes and tries kernels for this very device.

The first start takes minutes. What was found is kept in ``$XDG_CACHE_HOME/imagenet-serve/inductor``
(``TORCHINDUCTOR_CACHE_DIR`` names another place), and the next one takes seconds.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError
from service.models.runtimes import manifest

log = logging.getLogger(__name__)

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def keep_kernels() -> None:
    """Names the folders where inductor and Triton keep what they compile, unless somebody has."""
    root = manifest.cache_root()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(root / "triton"))


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
    forward: Forward = torch.compile(network, mode=mode, dynamic=True, fullgraph=True)
    try:
        # One image has a shape of its own for the compiler; two stand for every other number.
        with compiling():
            for images in (2, 1):
                forward(torch.zeros((images, *image), dtype=torch.uint8, device=device))
    except Exception as error:
        # The border of a compiler: it raises whatever its parts do.
        raise ConfigurationError(
            f"runtime=compile: torch cannot compile this model here ({first_line(error)}); it needs a C++ compiler "
            "and Python's headers; use runtime=auto"
        ) from error
    log.info("compiled in %.1f s", time.monotonic() - began)
    return forward


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
