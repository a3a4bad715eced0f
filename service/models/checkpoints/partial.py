"""A download under way: a neighbour of the file that it is going to be, kept when the process dies.

    NAME.partial        the bytes so far; locked by the one process that adds to them
    NAME.partial.from   JSON: the address that they come from, and the server's mark for this very content

The next process goes on where the last one stopped. Processes that want the same file at the same time (several pods
on one volume) have one of them fetch it, and the others wait. The lock is the kernel's, so it ends with its holder.
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
#: Seconds between two looks at a download of another process.
_LOOK_EVERY = 0.2
#: Seconds without a new byte after which the other process is taken for hung: two of a connection's silences.
PATIENCE = 120.0
#: Seconds after its last byte that a leftover is kept for. Another process may fetch another file beside it.
_KEPT = 3600.0
#: What file systems answer that know no locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclass
class Partial:
    """The bytes of ``destination`` so far, ours alone while it is open."""

    destination: Path
    path: Path
    file: BinaryIO

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def mark(self, url: str) -> str | None:
        """What the server called the content when these bytes came from ``url``; None if they did not."""
        try:
            origin = json.loads(self._origin.read_text("utf-8"))
            return str(origin["mark"]) if origin["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restart(self, url: str, mark: str) -> None:
        """Drops the bytes; those that come now are of ``url``. ``mark`` is its ETag or date, or empty."""
        self._origin.unlink(missing_ok=True)
        self.file.seek(0)
        self.file.truncate()
        self._origin.write_text(json.dumps({"url": url, "mark": mark}), "utf-8")

    def publish(self) -> None:
        """Gives the file its name. It is whole."""
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
    """The file under way, locked; None when another process has finished ``destination`` meanwhile.

    While another one fetches it, ``waiting`` is called with its bytes, whenever there are more. Raises `OSError`.
    """
    path = destination.with_name(destination.name + _SUFFIX)
    before = _identity(destination)
    file = _locked(path, waiting)
    if file is None:  # it is held by a process that does nothing, or this file system has no locks
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
    """Removes what dead processes have left half done in ``folder``, files and folders, unless it is that young.

    ``stem`` is the pattern of what stands before the suffix, for folders that are not ours alone. Those of living
    processes are locked (`claim`, `locked`); where the file system knows no locks, age alone decides.
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
    """Inside the block, `sweep` leaves this folder alone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # without locks its age has to do
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
    """The file, open and locked; None where nobody can say who may write."""
    seen, since = -1, time.monotonic()
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):
                return file
            file.close()  # it was published or discarded before we had it: look again
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
    """Whether a living process has it; None where nobody can say."""
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
