"""BMP: the run-length codings, which Pillow decodes in Python."""

from __future__ import annotations

from service.errors import ImageTooLarge

#: Most pixels, and most bytes, of a run-length coded BMP: some two seconds of CPU.
MAX_RUN_LENGTH = 2_000_000

_RUN_LENGTHS = (1, 2)


def judge(data: bytes) -> None:
    """Raises `ImageTooLarge`."""
    if len(data) < 34 or int.from_bytes(data[14:18], "little") < 40:
        return
    if int.from_bytes(data[30:34], "little") not in _RUN_LENGTHS:
        return
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    if max(abs(width * height), len(data)) > MAX_RUN_LENGTH:
        raise ImageTooLarge(f"a run-length coded BMP may have {MAX_RUN_LENGTH} pixels, and as many bytes")
