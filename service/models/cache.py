"""The cache between two starts, and hashes of files without a second reading.

    $XDG_CACHE_HOME/imagenet-serve      ~/.cache/imagenet-serve without it
        openvino/     converted models and their measured times        runtimes/artifact.py, runtimes/machine.py
        sources/      the converted model that belongs to some weights         sources.py
        hashes/       SHA-256 of files read before                   here

Every file can be deleted at any time and is made again. A cache that cannot be written costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

#: Bytes from which a hash is worth keeping: smaller files are read in a few milliseconds.
_WORTH_REMEMBERING = 1 << 20
#: Seconds after which a file counts as settled. A file just written could change within the same tick of the file
#: system's clock, so its hash is not kept.
_SETTLED = 2.0


def root() -> Path:
    """Returns the cache's folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "imagenet-serve"


def is_writable() -> bool:
    """Returns True if new files can be kept."""
    try:
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root()):
            return True
    except OSError:
        return False


def digest(document: Any) -> str:
    """Returns a name of 32 hex digits for plain JSON values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Returns a file's SHA-256 as 64 hex digits. Raises OSError.

    A large file is read once. Later calls return the kept hash as long as device, inode, size and times are
    unchanged.
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
    """Writes a JSON file atomically, replacing an existing one. Raises OSError."""
    write_bytes(path, json.dumps(document).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically, replacing an existing one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
