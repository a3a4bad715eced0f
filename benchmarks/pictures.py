"""The cost of preparing the largest allowed pictures, by format, mode and orientation: memory and CPU.

    python -m benchmarks.pictures [--megapixels 50]

Each is prepared in a process of its own; memory is how far its address space grew at most (VmPeak, which is what a
decoder's limit counts), beside what `service.images.decoders.cost` allows it.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import report

Make = Callable[[tuple[int, int]], bytes]


def _photo(mode: str, size: tuple[int, int]) -> Image.Image:
    """Returns a smooth picture with a little noise, which compresses like a photo and stays below ten megabytes."""
    small = np.random.default_rng(0).integers(0, 256, (size[1] // 97 + 2, size[0] // 97 + 2, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _encoded(mode: str, name: str, size: tuple[int, int], orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    _photo(mode, size).save(out, name, **({"exif": exif} if orientation != 1 else {}), **options)
    return out.getvalue()


def _kinds() -> Iterator[tuple[str, Make]]:
    for turned, orientation in (("", 1), (", turned", 6)):
        for mode, name, options in (
            ("RGB", "JPEG", {"quality": 75}),
            ("RGB", "JPEG", {"quality": 75, "progressive": True}),
            ("RGB", "JPEG", {"quality": 75, "progressive": True, "subsampling": 0}),
            ("CMYK", "JPEG", {"quality": 75}),
            ("CMYK", "JPEG", {"quality": 75, "progressive": True}),
            ("L", "JPEG", {"quality": 75}),
            ("RGB", "PNG", {"compress_level": 1}),
            ("RGBA", "PNG", {"compress_level": 1}),
            ("P", "PNG", {"compress_level": 1}),
            ("L", "PNG", {"compress_level": 1}),
            ("LA", "PNG", {"compress_level": 1}),
            ("1", "PNG", {"compress_level": 1}),
            ("I;16", "PNG", {"compress_level": 1}),
            ("RGB", "WEBP", {"quality": 60, "method": 0}),
            ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
            ("P", "GIF", {}),
            ("RGB", "BMP", {}),
            ("RGB", "TIFF", {"compression": "tiff_lzw"}),
            ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
            ("F", "TIFF", {"compression": "tiff_lzw"}),
            ("RGB", "TIFF", {"compression": "jpeg"}),
            ("RGB", "TIFF", {}),
        ):
            if turned and name in ("GIF", "BMP"):
                continue
            words = "".join(f" {key}" for key, value in options.items() if value is True)
            if "subsampling" in options:
                words += " 4:4:4"
            yield (
                f"{name} {mode}{words}{turned}",
                partial(_encoded, mode, name, orientation=orientation, **options),
            )


def _field(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _cost(path: str, row: dict[str, Any], out: Any) -> None:
    """Measures one picture, in a process of its own."""
    from service.preprocess import Preprocessing, prepare

    data = Path(path).read_bytes()
    spec = Preprocessing()
    pixels = np.empty(spec.shape, np.uint8)
    warm = io.BytesIO()
    Image.new("RGB", (300, 300)).save(warm, row["kind"].split()[0])
    prepare(warm.getvalue(), spec, pixels, max_pixels=10**9)
    before, resident, began = _field("VmSize"), _field("VmRSS"), time.process_time()
    try:
        prepare(data, spec, pixels, max_pixels=10**9)
        outcome = ""
    except Exception as error:
        outcome = str(error)[:60]
    row |= {
        "bytes": len(data),
        "CPU s": round(time.process_time() - began, 2),
        "address space MiB": round(_field("VmPeak") - before),
        "resident MiB": round(_field("VmHWM") - resident),
        "outcome": outcome,
    }
    out.put(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=50.0)
    arguments = parser.parse_args()
    side = int((arguments.megapixels * 1e6) ** 0.5)
    context = multiprocessing.get_context("spawn")
    rows = []
    import tempfile

    for kind, make in _kinds():
        with tempfile.NamedTemporaryFile() as file:
            file.write(make((side, side)))
            file.flush()
            out = context.SimpleQueue()
            process = context.Process(target=_cost, args=(file.name, {"kind": kind}, out))
            process.start()
            rows.append(out.get())
            process.join()
        print(rows[-1], flush=True)
    notes = [f"Pictures of {side} x {side} pixels, smooth; each prepared in a process of its own."]
    report.publish("pictures", "What the largest pictures cost to prepare", {"pictures": rows}, notes)


if __name__ == "__main__":
    main()
