"""Whether the weights on disk have changed, and whether whoever changes them is done: pure but for `look_at`."""

from __future__ import annotations

from pathlib import Path

#: Where the weights lie and what each file is like: (name, inode, bytes, nanoseconds of the last change).
Signature = tuple[str, tuple[tuple[str, int, int, int], ...]]


def look_at(weights: str) -> Signature | None:
    """The files that ``weights`` name, as they are now; None where they name none, or none that can be read."""
    path = Path(weights).expanduser()
    try:
        real = path.resolve(strict=True)
        files = sorted(real.rglob("*")) if real.is_dir() else [real]
        found = [(file, file.stat()) for file in files if file.is_file()]
    except OSError:
        return None
    return str(real), tuple(
        (str(file.relative_to(real)), status.st_ino, status.st_size, status.st_mtime_ns)
        for file, status in found
    )


class Watch:
    """Told what is there at every look. A change counts when two looks in a row have seen the same."""

    def __init__(self, first: Signature | None) -> None:
        self._loaded = self._last = first

    def changed(self, seen: Signature | None) -> bool:
        """Whether ``seen`` is something else than what was loaded, and has settled. True once for each change."""
        settled = seen == self._last
        self._last = seen
        if seen is None or not settled or seen == self._loaded:
            return False
        self._loaded = seen
        return True
