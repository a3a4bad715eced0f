"""JPEG (ITU-T T.81, annex B): limits on segments, scans and stray bytes."""

from __future__ import annotations

import re

from service.errors import InvalidImage
from service.images.dimensions import FRAMES

#: Most scans. Encoders write three or four baseline scans and some ten progressive ones. Each costs a pass over its
#: blocks, even if it is empty and ten bytes long.
MAX_SCANS = 100
#: Most scans times pixels: 20 scans of 50 megapixels, 83 of twelve.
MAX_SCANNED = 1_000_000_000
#: Most segments. Ten megabytes of metadata in the largest segments are 160; tables are a few for each scan.
MAX_SEGMENTS = 2_000
#: Most EXIF segments. Pillow joins them one after the other, which is quadratic.
MAX_EXIF = 200
#: Most bytes that belong to no segment: Pillow reads them one by one.
MAX_STRAY = 65_536

#: A marker other than a restart. In coded data, FF is followed by 00; FF before a marker is fill.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_START, _END, _SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1


def judge(data: bytes) -> None:
    """Raises `InvalidImage`."""
    at, segments, exif, stray, scans, pixels = 2, 0, 0, 0, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker = data[found.end() - 1]
        if not scans:
            stray += found.start() - at
            if stray > MAX_STRAY:
                raise InvalidImage(f"the JPEG has more than {MAX_STRAY} bytes that belong to no segment")
        elif marker == _END:
            return
        segments += 1
        if segments > MAX_SEGMENTS:
            raise InvalidImage(f"the JPEG has more than {MAX_SEGMENTS} segments")
        at = found.end()
        if marker in (_START, _END):
            continue
        body = at + 2
        at += max(2, int.from_bytes(data[at:body], "big"))
        if marker in FRAMES:
            height, width = (int.from_bytes(data[body + 1 + k : body + 3 + k], "big") for k in (0, 2))
            pixels = max(pixels, width * height)
        elif marker == _SCAN:
            scans += 1
            _judge_scans(scans, pixels)
        elif marker == _APP1 and data.startswith(b"Exif", body):
            exif += 1
            if exif > MAX_EXIF:
                raise InvalidImage(f"the JPEG has more than {MAX_EXIF} segments of EXIF")
    if not scans and len(data) - at > MAX_STRAY:
        raise InvalidImage(f"the JPEG has more than {MAX_STRAY} bytes that belong to no segment")


def _judge_scans(scans: int, pixels: int) -> None:
    if scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans")
    if scans * pixels > MAX_SCANNED:
        raise InvalidImage(f"the JPEG has more than {scans - 1} scans of {pixels} pixels")


def kind(data: bytes) -> str | None:
    """Returns the kind of a JPEG that libjpeg may not have been built for, in words; None for an ordinary one."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, body = data[found.end() - 1], found.end() + 2
        if marker in FRAMES and body + 6 <= len(data):
            bits, layers = data[body], data[body + 5]
            if bits != 8:
                return f"a JPEG of {bits} bits a sample"
            if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                return "a lossless or hierarchical JPEG"
            if layers not in (1, 3, 4):
                return f"a JPEG of {layers} components"
            return "an arithmetic-coded JPEG" if marker in (0xC9, 0xCA) else None
        at = found.end()
        if marker == _SCAN:
            return None
        if marker not in (_START, _END):
            at += max(2, int.from_bytes(data[found.end() : body], "big"))
    return None
