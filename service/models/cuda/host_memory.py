"""Host memory that CUDA may copy from directly: registered with the driver, and unregistered before it is freed.

The functions are the driver's and not the runtime's (`cudaHostRegister`). The runtime keeps the error of a refused
registration, the next unrelated call would raise it, and torch cannot clear it.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from typing import Any, Protocol

from service.models.runtimes import Pixels

log = logging.getLogger(__name__)

_LIBRARY = "libcuda.so.1"


class Driver(Protocol):
    """The functions of libcuda that are used. They return 0, or a ``CUresult`` error number."""

    def cuMemHostRegister_v2(self, address: Any, size: Any, flags: int) -> int: ...  # noqa: N802

    def cuMemHostUnregister(self, address: Any) -> int: ...  # noqa: N802


def driver() -> Driver:
    """Loads libcuda. Raises `OSError` if it is not installed."""
    library: Any = ctypes.CDLL(_LIBRARY)
    return library  # type: ignore[no-any-return]


def register(pixels: Pixels, cuda: Driver) -> str:
    """Registers the memory of ``pixels`` with CUDA. Returns the reason of a refusal; empty on success.

    The calling thread needs a current context. CUDA would go on reading a registered address after its memory is
    freed and reused, so the memory is unregistered when the array is collected, before its memory is freed.
    """
    address = pixels.ctypes.data
    result = cuda.cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(pixels.nbytes), 0)
    if result != 0:
        return (
            f"the driver refuses to register {pixels.nbytes >> 20} MiB of shared memory (CUresult {result})"
        )
    weakref.finalize(pixels, _unregister, address, cuda).atexit = False
    return ""


def _unregister(address: int, cuda: Driver) -> None:
    result = cuda.cuMemHostUnregister(ctypes.c_void_p(address))
    if result != 0:
        log.error("memory could not be unregistered with CUDA (CUresult %d)", result)
