"""A download in progress: a file beside its destination that outlives the process.

    NAME.partial        the bytes so far; locked by the one process that appends to them
    NAME.partial.from   JSON: the URL that they come from, and the server's validator of this content (ETag or date)

The next process resumes where the last one stopped. Of several processes that want the same file (pods on one
volume), one downloads it and the others wait. The lock is the kernel's, so it ends with its holder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".partial"
#: Seconds between two checks of another process's download.
_LOOK_EVERY = 0.2
#: Seconds without a new byte after which the other process counts as hung: twice a connection's time-out.
PATIENCE = 120.0
#: Seconds after its last byte during which a leftover is kept.
_KEPT = 3600.0
#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclass
class Partial:
    """The bytes of ``destination`` so far, locked by this process while open."""

    destination: Path
    path: Path
    file: BinaryIO

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def mark(self, url: str) -> str | None:
        """Returns the server's validator of these bytes; None if they did not come from ``url``."""
        try:
            origin = json.loads(self._origin.read_text("utf-8"))
            return str(origin["mark"]) if origin["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restart(self, url: str, mark: str) -> None:
        """Drops the bytes and notes that the next ones come from ``url``. ``mark`` is its ETag or date, or empty."""
        self._origin.unlink(missing_ok=True)
        self.file.seek(0)
        self.file.truncate()
        self._origin.write_text(json.dumps({"url": url, "mark": mark}), "utf-8")

    def publish(self) -> None:
        """Gives the complete file its final name."""
        self.file.flush()
        self.path.replace(self.destination)
        self._origin.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    @property
    def _origin(self) -> Path:
        return self.path.with_name(f"{self.path.name}.from")


@contextlib.contextmanager
def claim(destination: Path, waiting: Callable[[int], object]) -> Iterator[Partial | None]:
    """Yields the locked partial file; None if another process has finished ``destination`` meanwhile.

    While another process downloads it, ``waiting`` is called with the number of its bytes, each time that it grows.
    Raises `OSError`.
    """
    path = destination.with_name(destination.name + _SUFFIX)
    before = _identity(destination)
    file = _locked(path, waiting)
    if file is None:  # a hung process holds it, or this file system has no locks
        path = destination.with_name(f"{destination.name}.{uuid.uuid4().hex}{_SUFFIX}")
        file = path.open("w+b")
    with file:
        partial = Partial(destination, path, file)
        if _identity(destination) != before:
            partial.discard()
            yield None
        else:
            yield partial


def sweep(folder: Path, kept: float = _KEPT, stem: str = "*") -> None:
    """Removes files and folders that dead processes left incomplete in ``folder``, unless they are younger than
    ``kept`` seconds.

    ``stem`` is the pattern of the names before the suffix, for folders that others use as well. Leftovers of living
    processes are locked (`claim`, `locked`); on a file system without locks, age alone decides.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{stem}{_SUFFIX}"):
            with contextlib.suppress(OSError):
                held = _held(path)
                age = time.time() - path.stat().st_mtime
                if held or age <= (_KEPT if held is None else kept):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                    path.with_name(f"{path.name}.from").unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps `sweep` away from this folder inside the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # without locks, its age protects it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _locked(path: Path, waiting: Callable[[int], object]) -> BinaryIO | None:
    """Returns the file, open and locked; None if the lock cannot be had."""
    seen, since = -1, time.monotonic()
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):
                return file
            file.close()  # it was published or discarded before this lock: open it anew
            continue
        except BlockingIOError:
            size = os.fstat(file.fileno()).st_size
            file.close()
        except OSError as error:
            file.close()
            if error.errno in _NO_LOCKS:
                return None
            raise
        now = time.monotonic()
        if size != seen:
            seen, since = size, now
            waiting(size)
        elif now - since > PATIENCE:
            return None
        time.sleep(_LOOK_EVERY)


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _held(path: Path) -> bool | None:
    """Returns True if a living process holds the lock; None on a file system without locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
