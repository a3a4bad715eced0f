"""What is kept between two starts, and how a file is recognised without reading it again.

    $XDG_CACHE_HOME/imagenet-serve      ~/.cache/imagenet-serve without it
        openvino/     converted models, and what was measured of them        runtimes/artifact.py, runtimes/machine.py
        sources/      which converted model belongs to which weights         sources.py
        hashes/       SHA-256 of files that were read once                   here

Everything in it can be deleted at any time; it is made again. A cache that cannot be written costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

#: A smaller file is read in a few milliseconds.
_WORTH_REMEMBERING = 1 << 20
#: Seconds. A file that was written a moment ago could be written again within the same tick of the file system's clock.
_SETTLED = 2.0


def root() -> Path:
    """Where all of it lies."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "imagenet-serve"


def is_writable() -> bool:
    """Whether something new can be kept."""
    try:
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root()):
            return True
    except OSError:
        return False


def trim_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def digest(document: Any) -> str:
    """A name of 32 hex digits for plain JSON values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises OSError.

    A large file is read once. As long as its size, its times and its inode are the same, what was found then is
    the answer; when one of them differs it is read again.
    """
    status = path.stat()
    if status.st_size < _WORTH_REMEMBERING:
        return _read(path)
    note = root() / "hashes" / digest(str(path.absolute()))
    identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text("utf-8"))
        if known["identity"] == identity:
            return str(known["sha256"])
    sha256 = _read(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
        with contextlib.suppress(OSError):
            write(note, {"identity": identity, "sha256": sha256})
    return sha256


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, document: Any) -> None:
    """A JSON file, whole or not at all, in place of one that is there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(json.dumps(document), "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
