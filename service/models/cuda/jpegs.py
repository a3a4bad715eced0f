"""``decode=gpu``: JPEG files to prepared pixels on the device, by NVIDIA's nvImageCodec and Pillow's arithmetic.

nvImageCodec decodes with libjpeg's triangle filter for chroma (``fancy_upsampling``; torchvision's CUDA decoder takes
the nearest pixel). The two decoders then differ only by the rounding of the inverse transform, a grey level on
average. Resize and crop use Pillow's fixed point, so they add no difference. At a start both paths decode the same
pictures; if they differ by more than `AGREEMENT`, decoding stays on the CPU.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.models.cuda import host_memory
from service.models.cuda.resize import PassCache, Resize, by_torch
from service.preprocess import RESIZE_CROP, Preprocessing, prepare

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Decoder(Protocol):
    """A `service.engine.files.FileDecoder`."""

    def decode(self, files: Sequence[bytes], into: Sequence[Pixels]) -> Sequence[bool]: ...


#: Decodes files to uint8 ``[H, W, 3]`` on a device, at full size, in the order of the current stream; None for a file
#: that cannot be decoded. A photo's memory stays while its tensor is there.
Codec = Callable[[Sequence[bytes]], Sequence[Tensor | None]]

#: Grey levels by which prepared pixels may differ from the CPU's: on average, and at most.
AGREEMENT = (1.0, 16)


class JpegDecoder:
    """A `service.engine.files.FileDecoder` by ``codec``, on the GPU. Belongs to one thread."""

    def __init__(
        self, codec: Codec, spec: Preprocessing, device: torch.device, resize: Resize | None = None
    ) -> None:
        self._codec, self._shape = codec, spec.shape
        self._passes = PassCache(spec, device)
        self._resize = resize or _fastest(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def decode(self, files: Sequence[bytes], into: Sequence[Pixels]) -> list[bool]:
        """See `service.engine.files.FileDecoder`. Copies to registered memory run beside each other."""
        with torch.cuda.stream(self._stream):
            photos = self._codec(files)
            assert len(photos) == len(files)
            decoded = [photo for photo in photos if photo is not None]
            targets = [target for photo, target in zip(photos, into, strict=True) if photo is not None]
            if decoded:
                passes = [self._passes.of(photo.shape[0], photo.shape[1]) for photo in decoded]
                prepared = self._resize(decoded, passes, self._shape)
                for pixels, target in zip(prepared, targets, strict=True):
                    torch.from_numpy(target).copy_(pixels, non_blocking=True)
            if self._stream is not None:
                # Until here the photos' memory is read, so they must live.
                self._stream.synchronize()
        return [photo is not None for photo in photos]


def _fastest(device: torch.device) -> Resize:
    """Returns the kernel where Triton is installed and the device is a GPU, and torch elsewhere."""
    if device.type != "cuda":
        return by_torch
    try:
        from service.models.cuda.resize_kernel import by_triton
    except ImportError:
        return by_torch
    return by_triton


def open_decoder(spec: Preprocessing, device: torch.device) -> Decoder:
    """Returns the device's decoder, checked against the CPU's. Raises any error, with a sentence for people."""
    if spec.fit != RESIZE_CROP or not spec.antialias:
        raise ValueError(
            f"fit {spec.fit!r} is resized by torch's arithmetic, which decode=gpu does not support"
        )
    if device.type != "cuda":
        raise ValueError("the model runs on the CPU, and so do the decoders")
    decoder = JpegDecoder(_nvimagecodec(device), spec, device)
    prove(decoder, spec)
    return decoder


def _nvimagecodec(device: torch.device) -> Codec:
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise ValueError(
            "nvImageCodec is not installed; pip install 'imagenet-serve[gpu]' brings it"
        ) from error
    kinds = nvimgcodec.BackendKind
    # The GPU's JPEG engine where there is one; the rest (progressive files, say) with the GPU's multiprocessors. Both
    # in one decoder would share each batch with the processor's cores, at ten times the CPU. Files that both refuse
    # go to this project's own decoders.
    decoders = [
        decoder
        for backends in ([kinds.HW_GPU_ONLY], [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU])
        if (decoder := _decoder(nvimgcodec, device, backends)) is not None
    ]
    if not decoders:
        raise ValueError("nvImageCodec has no JPEG decoder for this GPU")
    params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)

    def decode(files: Sequence[bytes]) -> list[Tensor | None]:
        current = torch.cuda.current_stream(device).cuda_stream
        streams = [nvimgcodec.CodeStream(data) for data in files]
        images: list[Any] = [None] * len(files)
        for decoder in decoders:
            left = [number for number, image in enumerate(images) if image is None]
            if left:
                these = [streams[number] for number in left]
                made = decoder.decode(these, params=params, cuda_stream=current)
                for number, image in zip(left, made, strict=True):
                    images[number] = image
        return [None if image is None else _colour(torch.as_tensor(image, device=device)) for image in images]

    return decode


def _decoder(library: Any, device: torch.device, kinds: Sequence[Any]) -> Any:
    """Returns a decoder of these kinds; None where this GPU has none of them."""
    try:
        return library.Decoder(
            device_id=device.index or 0,
            backends=[library.Backend(kind) for kind in kinds],
            options=":fancy_upsampling=1",
        )
    except RuntimeError as error:
        log.info("nvImageCodec has no decoder of the kinds %s here: %s", list(kinds), error)
        return None


def _colour(photo: Tensor) -> Tensor:
    return photo if photo.shape[2] == 3 else photo.expand(-1, -1, 3)


def adopt(pixels: Pixels) -> None:
    """Registers the memory of all future targets with CUDA, as `host_memory.register` does. A refusal is logged."""
    if torch.cuda.is_available():
        refused = host_memory.register(pixels, host_memory.driver())
        if refused:
            log.warning("photos are copied from the device one after the other: %s", refused)


def prove(decoder: Decoder, spec: Preprocessing) -> None:
    """Raises `ValueError` unless ``decoder`` makes the CPU's pixels of every kind of JPEG, within `AGREEMENT`."""
    pictures = dict(known())
    into = np.empty((len(pictures), *spec.shape), np.uint8)
    decoded = decoder.decode(list(pictures.values()), list(into))
    for (name, data), done, got in zip(pictures.items(), decoded, into, strict=True):
        if not done:
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
