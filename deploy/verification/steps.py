"""A step: a named function that returns what it saw, or raises `Failure` or `Skip`."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / ".verify"
#: Nothing is to be installed: a step whose tool is missing is skipped.
QUICKLY = bool(os.environ.get("VERIFY_QUICKLY"))

#: Seconds for a command on a machine with much else to do: only what hangs is ended.
PATIENCE = 3600.0

#: Seconds for a command on a machine with much else to do: only what hangs is ended.
PATIENCE = 3600.0

STEPS: dict[str, Callable[[], str]] = {}


class Failure(Exception):
    """Something is wrong with the files; the text says what."""


class Skip(Exception):
    """This host cannot run the step; the text says why."""


def step(run: Callable[[], str]) -> Callable[[], str]:
    STEPS[run.__name__.replace("_", "-")] = run
    return run


def need(tool: str, origin: str) -> str:
    """The path of a command, or the step is skipped."""
    path = shutil.which(tool)
    if path is None:
        raise Skip(f"no {tool} here ({origin})")
    return path


def output(
    command: Sequence[str | Path], *, stdin: str | None = None, timeout: float = PATIENCE, **more: object
) -> str:
    """The command's standard output; `Failure` with all that it said when it fails, or does not end in time."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
            **more,  # type: ignore[call-overload]
        )
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(map(str, command[:4]))}: did not end within {timeout:g} s") from late
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-4000:]
        raise Failure(f"{' '.join(map(str, command[:4]))}: exit {done.returncode}\n{said}")
    return str(done.stdout)


def succeeds(command: Sequence[str], *, timeout: float = PATIENCE) -> bool:
    """Whether it ends with 0, and in time."""
    try:
        return not subprocess.run(command, capture_output=True, timeout=timeout, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def photo(width: int = 640, height: int = 480) -> bytes:
    """A PNG of colour gradients, made here so that no step depends on a sample or an imaging library."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (x * 255 // width, y * 255 // height, (x ^ y) & 255))
        for y in range(height)
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
