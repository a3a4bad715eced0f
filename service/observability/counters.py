"""The counts of processes that have ended, merged into one file for each type of metric.

prometheus_client keeps the file of each process for ever. A front-end that is replaced again and again would fill the
folder with them, and every scrape would read them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

#: The process id in the name of the merged file.
_DEAD = "dead"


def merge_dead(directory: Path, process: int) -> None:
    """Adds the counts of ``process``, which has ended, to the merged file, and removes the process's own file.

    While the folder is read (`reading`) nothing happens, since the reader could count a number twice or not at all.
    The file then stays, and costs a later scrape one more file to read.
    """
    with contextlib.suppress(BlockingIOError), _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for kind in ("counter", "histogram"):
            own = directory / f"{kind}_{process}.db"
            if own.exists():
                _add(own, directory / f"{kind}_{_DEAD}.db")
                own.unlink()


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Prevents merges in ``directory`` until the block ends."""
    with _locked(directory, fcntl.LOCK_SH):
        yield


def _add(source: Path, target: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    sums = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            sums.write_value(key, sums.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        sums.close()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
