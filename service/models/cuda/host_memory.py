"""Memory of the host that CUDA may copy from by itself: registered with the driver, and given back before it goes.

By the driver's own functions, and not by the runtime's (`cudaHostRegister`): the runtime keeps the error of a refused
registration, and the next unrelated call would raise it. torch has no way to clear it.
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
    """The functions that are wanted of libcuda. They return 0, or a number of ``CUresult``."""

    def cuMemHostRegister_v2(self, address: Any, size: Any, flags: int) -> int: ...  # noqa: N802

    def cuMemHostUnregister(self, address: Any) -> int: ...  # noqa: N802


def driver() -> Driver:
    """Raises `OSError` where there is none."""
    library: Any = ctypes.CDLL(_LIBRARY)
    return library  # type: ignore[no-any-return]


def register(pixels: Pixels, cuda: Driver) -> str:
    """Why CUDA cannot copy from ``pixels`` by itself; empty when it can, for as long as the array is there.

    The thread has a current context. Registered memory that its owner gave back would be read by address all the
    same, whatever lies there later; so it is unregistered when the array goes, which is before its memory does.
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
