"""``decode=gpu``: JPEG files to prepared pixels on the device, by NVIDIA's nvImageCodec and Pillow's arithmetic.

nvImageCodec decodes with libjpeg's triangle filter for chroma (``fancy_upsampling``; torchvision's CUDA decoder takes
the nearest pixel). The two decoders then differ only by the rounding of the inverse transform, a grey level on
average. Resize and crop use Pillow's fixed point, so they add no difference. At a start both paths decode the same
pictures; if they differ by more than `AGREEMENT`, decoding stays on the CPU.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.images.resample import PRECISION_BITS, Taps, pillow_passes
from service.preprocess import RESIZE_CROP, Preprocessing, prepare, windows

Pixels = NDArray[np.uint8]


class Decoder(Protocol):
    """A `service.engine.files.FileDecoder`."""

    def decode(self, files: Sequence[bytes]) -> list[Pixels | None]: ...


#: Decodes files to uint8 ``[H, W, 3]`` on a device, at full size; None for a file that cannot be decoded.
Codec = Callable[[Sequence[bytes]], Sequence[Tensor | None]]

#: Grey levels by which prepared pixels may differ from the CPU's: on average, and at most.
AGREEMENT = (1.0, 16)
#: Number of photo sizes whose taps are cached.
_KEPT = 256


class JpegDecoder:
    """A `service.engine.files.FileDecoder` on the GPU. Belongs to one thread."""

    def __init__(self, codec: Codec, spec: Preprocessing) -> None:
        self._codec, self._spec = codec, spec
        self._passes = lru_cache(_KEPT)(self._make_passes)

    def decode(self, files: Sequence[bytes]) -> list[Pixels | None]:
        photos = self._codec(files)
        assert len(photos) == len(files)
        prepared = [None if photo is None else self._prepared(photo) for photo in photos]
        # All work is enqueued before the first copy to the host waits.
        return [None if pixels is None else pixels.cpu().numpy() for pixels in prepared]

    @torch.inference_mode()
    def _prepared(self, photo: Tensor) -> Tensor:
        height, width, _ = photo.shape
        passes, top, left = self._passes(height, width, photo.device)
        for index, weight, axis in passes:
            photo = _weighted(photo, index, weight, axis)
        out = torch.zeros(self._spec.shape, dtype=torch.uint8, device=photo.device)
        out[top : top + photo.shape[0], left : left + photo.shape[1]] = photo
        return out

    def _make_passes(
        self, height: int, width: int, device: torch.device
    ) -> tuple[list[tuple[Tensor, Tensor, int]], int, int]:
        rows, columns, top, left = windows((height, width), self._spec)
        passes = pillow_passes((width, height), rows, columns, self._spec.interpolation)
        return [(*_on(taps, device), axis) for taps, axis in passes], top, left


def _on(taps: Taps, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(taps.index.T.copy()).to(device),
        torch.from_numpy(taps.weight.T.astype(np.int32)).to(device),
    )


def _weighted(photo: Tensor, index: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Runs one pass of `service.images.resample.pillow_passes`. ``index`` and ``weight`` are ``[taps, n]``."""
    shape = [1, 1, 1]
    shape[axis] = -1
    size = list(photo.shape)
    size[axis] = index.shape[1]
    total = torch.full(size, 1 << (PRECISION_BITS - 1), dtype=torch.int32, device=photo.device)
    for places, factors in zip(index, weight, strict=True):
        total += photo.index_select(axis, places).int() * factors.view(shape)
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def open_decoder(spec: Preprocessing, device: torch.device) -> Decoder:
    """Returns the device's decoder, checked against the CPU's. Raises any error, with a sentence for people."""
    if spec.fit != RESIZE_CROP or not spec.antialias:
        raise ValueError(
            f"fit {spec.fit!r} is resized by torch's arithmetic, which decode=gpu does not support"
        )
    if device.type != "cuda":
        raise ValueError("the model runs on the CPU, and so do the decoders")
    decoder = JpegDecoder(_nvimagecodec(device), spec)
    prove(decoder, spec)
    return decoder


def _nvimagecodec(device: torch.device) -> Codec:
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise ValueError(
            "nvImageCodec is not installed; pip install 'imagenet-serve[gpu]' brings it"
        ) from error
    # Only the GPU and its JPEG engine: files that they refuse go to this project's CPU decoders, not to a third kind.
    kinds = (
        nvimgcodec.BackendKind.HW_GPU_ONLY,
        nvimgcodec.BackendKind.GPU_ONLY,
        nvimgcodec.BackendKind.HYBRID_CPU_GPU,
    )
    decoder = nvimgcodec.Decoder(
        device_id=device.index or 0,
        backends=[nvimgcodec.Backend(kind) for kind in kinds],
        options=":fancy_upsampling=1",
    )
    params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
    stream = torch.cuda.Stream(device)

    def decode(files: Sequence[bytes]) -> list[Tensor | None]:
        with torch.cuda.stream(stream):
            streams = [nvimgcodec.CodeStream(data) for data in files]
            images: list[Any] = decoder.decode(streams, params=params, cuda_stream=stream.cuda_stream)
            photos = [None if image is None else torch.as_tensor(image, device=device) for image in images]
            # Copied, since the library's buffers are freed with its images, even while this stream still reads.
            copies = [photo if photo is None else _colour(photo).clone() for photo in photos]
        stream.synchronize()
        return copies

    return decode


def _colour(photo: Tensor) -> Tensor:
    return photo if photo.shape[2] == 3 else photo.expand(-1, -1, 3)


def prove(decoder: Decoder, spec: Preprocessing) -> None:
    """Raises `ValueError` unless ``decoder`` makes the CPU's pixels of every kind of JPEG, within `AGREEMENT`."""
    pictures = dict(known())
    for (name, data), got in zip(pictures.items(), decoder.decode(list(pictures.values())), strict=True):
        if got is None:
            raise ValueError(f"the GPU does not decode a JPEG of kind {name}")
        wanted = np.empty(spec.shape, np.uint8)
        prepare(data, spec, wanted, max_pixels=1 << 26)
        away = np.abs(got.astype(np.int16) - wanted)
        if away.mean() > AGREEMENT[0] or away.max() > AGREEMENT[1]:
            raise ValueError(
                f"the GPU's pixels of a JPEG of kind {name} are {away.mean():.2g} grey levels off on average and "
                f"{away.max()} at most; {AGREEMENT[0]:g} and {AGREEMENT[1]} are allowed"
            )


def known() -> Iterator[tuple[str, bytes]]:
    """Yields generated JPEGs of every kind that the GPU decodes, by name: waves, edges of colour and grain."""
    for width, height in ((320, 240), (317, 251), (64, 400)):
        rows, columns = np.ogrid[:height, :width]
        planes = [128 + 90 * np.sin(rows / (9.0 + k)) * np.cos(columns / (7.0 + 2 * k)) for k in range(3)]
        grain = np.random.default_rng(width).normal(0, 6, (height, width, 3))
        picture = Image.fromarray(np.clip(np.stack(planes, -1) + grain, 0, 255).astype(np.uint8))
        for name, sampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
            for progressive in (False, True):
                yield (
                    f"{name}, {width} x {height}{', progressive' if progressive else ''}",
                    _saved(picture, subsampling=sampling, progressive=progressive),
                )
        yield f"grey, {width} x {height}", _saved(picture.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 1
    yield "upright by EXIF", _saved(picture, exif=exif)


def _saved(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()
