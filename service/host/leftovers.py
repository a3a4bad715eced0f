"""Folders in the temporary directory whose owner was killed: found and removed by the next who makes one.

An owner holds a lock on a file in its folder. The kernel drops it however the owner ends, so a lock that can be had
means a dead owner, also where the folder is on a volume that outlives the container and numbers of processes
begin again at 1.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

_LOCK = "owner.lock"
#: The same file until its lock is held: who finds it under its own name finds it locked, or its owner dead.
_UNLOCKED = "owner.lock.new"
#: Seconds after which an empty folder without a lock is nobody's: between making one and locking it lie microseconds.
_NEWBORN = 60.0


class Claim:
    """The lock on a folder, for as long as this process lives or until `close`."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _UNLOCKED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _UNLOCKED).rename(folder / _LOCK)

    def close(self) -> None:
        """Lets go of this process's copy. A fork that must not keep the folder alive calls it at once."""
        os.close(self._descriptor)


def remove(prefix: str) -> None:
    """Removes every folder in the temporary directory that begins with ``prefix`` and whose owner has died."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if _is_dead(folder):
                shutil.rmtree(folder)
                log.info("removed %s, which a service that was killed had left", folder)
        except OSError as error:  # another user's, or another start was quicker
            log.debug("%s stays: %s", folder, error.strerror)


def _is_dead(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        unborn = all(path.name == _UNLOCKED for path in folder.iterdir())
        return unborn and time.time() - folder.stat().st_mtime > _NEWBORN
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
