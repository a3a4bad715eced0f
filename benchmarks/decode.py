"""Bytes to pixels on one core: images a second, exact and fast, beside Pillow's plain decode and resize.

    python -m benchmarks.decode [--photos FOLDER] [--seconds 2]

The baseline is what any Python server does: ``Image.open``, ``convert("RGB")``, resize the short side to 256
(bilinear), crop 224 from the centre, into a NumPy array. One thread; CPU time, so that company on the host
matters little. The rows alternate and the best round of each counts.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from benchmarks import report
from service.cli.bench.run import synthetic_photo
from service.preprocess import Preprocessing, prepare

SIZES = ((500, 375), (1600, 1200), (4000, 3000))
#: JPEG qualities of a camera and of the web. At 75 the entropy code, which no scaled decode shortens, is half as
#: long.
QUALITIES = (90, 75)
_SPEC = Preprocessing()
_LIMIT = 50_000_000
_ROUNDS = 5

Decode = Callable[[bytes, np.ndarray[Any, Any]], None]


def plain(data: bytes, out: np.ndarray[Any, Any]) -> None:
    """Decodes with Pillow in the plainest way: the baseline."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 224) // 2, (height - 224) // 2
    out[...] = np.asarray(image.crop((left, top, left + 224, top + 224)))


def exact(data: bytes, out: np.ndarray[Any, Any]) -> None:
    prepare(data, _SPEC, out, max_pixels=_LIMIT)


def fast(data: bytes, out: np.ndarray[Any, Any]) -> None:
    prepare(data, _SPEC, out, max_pixels=_LIMIT, fast=True)


def eighth(data: bytes, out: np.ndarray[Any, Any]) -> None:
    """Decodes at libjpeg's smallest scale: reads the whole entropy code, which no decoder can skip, and little else."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (1, 1))
    image.load()


KINDS: dict[str, Decode] = {"plain Pillow": plain, "exact": exact, "fast": fast, "libjpeg at 1/8": eighth}


def milliseconds(decode: Decode, photos: list[bytes], seconds: float) -> float:
    """Returns CPU milliseconds for one image."""
    out = np.empty((224, 224, 3), np.uint8)
    done, began = 0, time.thread_time()
    while (spent := time.thread_time() - began) < seconds or done < len(photos):
        decode(photos[done % len(photos)], out)
        done += 1
    return 1000 * spent / done


def measure(photos: list[bytes], seconds: float) -> dict[str, float]:
    """Returns the best round of each kind, in CPU milliseconds."""
    rounds = [
        {name: milliseconds(decode, photos, seconds / _ROUNDS) for name, decode in KINDS.items()}
        for _ in range(_ROUNDS)
    ]
    return {name: min(once[name] for once in rounds) for name in KINDS}


def row(name: str, photos: list[bytes], seconds: float) -> dict[str, Any]:
    """Returns one line of the table."""
    found = measure(photos, seconds)
    size = sum(map(len, photos)) / len(photos)
    return {
        "photos": name,
        "KiB": round(size / 1024),
        **{f"{kind}, images/s": round(1000 / took, 1) for kind, took in found.items()},
        "exact / plain": round(found["plain Pillow"] / found["exact"], 2),
        "fast / plain": round(found["plain Pillow"] / found["fast"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, beside the made ones")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the three, each size")
    arguments = parser.parse_args()
    rows = [
        row(
            f"made, {width} x {height}, quality {quality}",
            [synthetic_photo(width, height, quality=quality)],
            arguments.seconds,
        )
        for quality in QUALITIES
        for width, height in SIZES
    ]
    if arguments.photos:
        photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jp*g"))]
        rows.append(row(f"{len(photos)} in {arguments.photos.name}", photos, arguments.seconds))
    turbo = features.version("jpg") if features.check("libjpeg_turbo") else "none"
    notes = [
        f"Pillow's libjpeg-turbo: {turbo}",
        "Images a second of CPU time, one thread.",
        "'libjpeg at 1/8' reads the whole file's entropy code and computes 1/64 of the pixels: no way of "
        "decoding with libjpeg is faster.",
    ]
    report.publish("decode", "Bytes to pixels, one core", {"images a second": rows}, notes)


if __name__ == "__main__":
    main()
