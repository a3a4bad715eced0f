"""A pool of decoders whose pictures may say what a decoder does in place of decoding them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.decode_memory import DecodeMemory
from service.errors import DeadlineExceeded, RequestError
from service.host import usage
from service.images.decoders import picture
from service.images.decoders.keeper import Keeper
from service.images.decoders.picture import Picture, Recipe
from service.images.decoders.pool import DecoderPool
from service.preprocess import Preprocessing, prepare
from tests.pictures import encode
from tests.pictures import picture as drawing

SPEC = Preprocessing(resize=8, crop=(6, 5))
RECIPE = Recipe(SPEC, 50_000_000, fast=False)
ROOM = 2_000_000
GOOD = encode(drawing(), "PNG")
MEGABYTE = 1 << 20
LATER = 60.0


def tricky(data: bytes, spec: Preprocessing, out: NDArray[np.uint8], **options: Any) -> Any:
    """In place of `prepare`, in the decoders: does what the bytes say, and what it does always, otherwise."""
    trick, _, rest = bytes(data[:200]).partition(b":")
    if trick == b"spin":
        while True:
            pass
    if trick == b"sleep":
        time.sleep(float(rest.split(b":")[0]))
    if trick == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if trick == b"defect":
        raise ZeroDivisionError("a defect of ours")
    if trick == b"take":
        bytearray(int(rest) * MEGABYTE)
        out[...] = 7
        return None
    if trick == b"deny":
        out[...] = 0
        for number, forbidden in enumerate(FORBIDDEN.values()):
            try:
                forbidden(int(rest))
            except (OSError, ValueError):
                out.flat[number] = 1
        return None
    return prepare(data, spec, out, **options)


FORBIDDEN: dict[str, Callable[[int], object]] = {
    "read a file": lambda pid: Path("/etc/passwd").read_bytes(),
    "write a file": lambda pid: Path("/tmp/from-a-decoder").write_bytes(b"x"),
    "list a folder": lambda pid: os.listdir("/"),
    "a socket": lambda pid: socket.socket(),
    "a pipe": lambda pid: os.pipe(),
    "duplicate a descriptor": lambda pid: os.dup(1),
    "use the others' descriptors": lambda pid: os.fstat(pid % 1000 + 40),
}
LANDLOCKED: dict[str, Callable[[int], object]] = {
    "signal another process": lambda pid: os.kill(pid, 0),
}


def landlock_scopes_signals() -> bool:
    code = (
        "from service.images.decoders import rights; import os, sys\n"
        "rights.restrict_by_landlock()\n"
        "try: os.kill(os.getppid(), 0)\n"
        "except PermissionError: sys.exit(0)\n"
        "sys.exit(1)"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@asynccontextmanager
async def pool(
    monkeypatch: pytest.MonkeyPatch, quick: int = 2, memory: DecodeMemory | None = None, **told: Any
) -> AsyncIterator[DecoderPool]:
    monkeypatch.setattr(picture, "prepare", tricky)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads, which the tests have
        keeper = Keeper()
    pool = DecoderPool(keeper, quick, memory or DecodeMemory(), **told)
    pool.configure(RECIPE, ROOM)
    try:
        yield pool
    finally:
        await pool.close()
        assert not alive(keeper.pid)


async def decode(
    pool: DecoderPool, data: bytes, patience: float = LATER, recipe: Recipe = RECIPE
) -> NDArray[np.uint8]:
    """What `Slot.fill` does."""
    pixels = np.zeros(recipe.preprocessing.shape, np.uint8)
    writing = pool.begin(Picture(data, recipe), pixels, lambda seconds: None)

    def late() -> None:
        if not writing.done.done():
            writing.done.set_exception(DeadlineExceeded("late"))

    timer = asyncio.get_running_loop().call_later(patience, late)
    try:
        await writing.done
    finally:
        timer.cancel()
        writing.abandon(lambda: None)
    return pixels


def decoders_of(pool: DecoderPool) -> list[int]:
    return usage.children(pool._keeper.pid)


def expected(data: bytes, spec: Preprocessing = SPEC) -> NDArray[np.uint8] | str:
    pixels = np.zeros(spec.shape, np.uint8)
    try:
        prepare(data, spec, pixels, max_pixels=RECIPE.max_pixels)
    except RequestError as error:
        return f"{error.code}: {error}"
    return pixels


def alive(pid: int) -> bool:
    fields = usage.stat_fields(pid)
    return bool(fields) and fields[0] != "Z"
