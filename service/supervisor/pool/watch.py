"""Detects that weights on disk have changed and are complete. Pure, except for `signature_of`."""

from __future__ import annotations

from pathlib import Path

#: The path of the weights and each file's (name, inode, bytes, nanoseconds of the last change).
Signature = tuple[str, tuple[tuple[str, int, int, int], ...]]


def signature_of(weights: str) -> Signature | None:
    """The present signature of the files that ``weights`` names; None if there are none, or they cannot be read."""
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


class SignatureWatch:
    """Compares signatures. A change counts when two in a row are equal, so that it is complete."""

    def __init__(self, first: Signature | None) -> None:
        self._loaded = self._last = first

    def changed(self, seen: Signature | None) -> bool:
        """True, once for each change, if ``seen`` differs from the loaded weights and equals the last signature."""
        settled = seen == self._last
        self._last = seen
        if seen is None or not settled or seen == self._loaded:
            return False
        self._loaded = seen
        return True
