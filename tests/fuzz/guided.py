"""`python -m tests.fuzz.guided decode|multipart|header [libFuzzer's arguments]`: coverage-guided, with Atheris.

Ends with a traceback and a ``crash-…`` file at the first input that brings anything but our own errors.
libFuzzer's arguments are ``-max_total_time=SECONDS``, ``-runs=N``, or a crash file to try it again.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "PIL", "python_multipart"]):
    from service.api import body
    from service.errors import RequestError
    from service.images.decode import decode, judge_header

from tests.fuzz import corpus

FORM = "multipart/form-data; boundary=b"
PARTS = 64


def fuzz_decode(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert decode(data, max_pixels=100_000).mode == "RGB"


def fuzz_header(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        judge_header(data, 100_000)


def fuzz_multipart(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        for part in body.parse(FORM, data, PARTS):
            assert len(part.data) <= len(data)
    with contextlib.suppress(RequestError):
        begun = body._begun(FORM, data, PARTS)
        assert len(begun) <= PARTS
    with contextlib.suppress(RequestError):
        body.parse(data[:2000].decode("latin-1"), data, PARTS)


def seeds(target: str) -> list[bytes]:
    images = list(corpus.whole().values())
    if target != "multipart":
        return images
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return [head + image[:200] + b"\r\n--b--\r\n" for image in images] + [(head + b"x\r\n") * 70 + b"--b--"]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": fuzz_decode,
    "header": fuzz_header,
    "multipart": fuzz_multipart,
}


def main() -> None:
    target = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(target)):
            Path(folder, str(number)).write_bytes(seed)
        files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        limits = ["-rss_limit_mb=4096", "-timeout=30", "-max_len=8192"]
        atheris.Setup([*sys.argv, *limits, *([] if files else [folder])], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
