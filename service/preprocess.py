"""Bytes → the pixels that a checkpoint was trained on. Pillow and NumPy only.

    bytes ─ decode ─▶ upright RGB ─ resize, crop ─▶ uint8 [height, width, 3] in a slot
            service.images.decode   service.images.resample        (mean and std: the model's first layer)

`Preprocessing` belongs to a checkpoint and says how; `prepare` does it. The pixels are equal to the bit to
torchvision's ``transforms._presets.ImageClassification`` before it turns them into floats, run on
``ImageOps.exif_transpose(Image.open(...)).convert("RGB")`` with the installed Pillow, or to what Keras's
``ImageConverter`` makes on torch before scale and offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import CheckpointError
from service.images.decode import EXTENT, Admit, Data, decode, load, sniff, to_rgb
from service.images.interpolate import AxisPart, interpolate
from service.images.resample import FILTERS, Window, resize_window

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing", "decode", "prepare", "sniff"]

#: Mean and standard deviation of the training images' pixels scaled to [0, 1]; red, green, blue. Every published VGG
#: and DenseNet of torchvision, timm and Keras shares these values.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The four values of `Preprocessing.fit`: ways to make an image of any shape fit the model's input.
RESIZE_CROP, CROP_RESIZE, PAD_RESIZE, STRETCH = "resize-crop", "crop-resize", "pad-resize", "stretch"

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """A checkpoint's preprocessing, from bytes to pixels. Sizes are ``(height, width)``, as arrays have them.

    ``fit``, with the model's input size in ``crop``:

    - ``resize-crop`` (torchvision, timm): resize with Pillow, then cut the centre. ``resize`` is the short
      side, or an exact pair, or None for no resize. An image smaller than the crop gets black borders.
    - ``crop-resize`` (Keras ``crop_to_aspect_ratio``): cut the centre of the right shape, then resize.
    - ``pad-resize`` (Keras ``pad_to_aspect_ratio``): black borders to the right shape, then resize.
    - ``stretch`` (Keras with neither): resize and distort.

    The last three resize as torch does, ignore ``resize``, and round to grey levels like Keras's
    ``preprocessor(x)`` on integer images. ``mean`` and ``std`` are of pixels scaled to [0, 1]; Keras's
    ``scale`` and ``offset`` are ``1 / 255 / std`` and ``-mean / std``.

    Raises `CheckpointError` for invalid or unknown values.
    """

    resize: int | Size | None = 256
    crop: Size = (224, 224)
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fit: str = RESIZE_CROP

    def __post_init__(self) -> None:
        if self.fit != RESIZE_CROP:
            # ``resize`` has no meaning for the other fits; None keeps two specs that mean the same pixels equal.
            object.__setattr__(self, "resize", None)
        complaint = _complaint(self)
        if complaint:
            raise CheckpointError(f"the checkpoint's preprocessing is not usable: {complaint}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the prepared pixels: (height, width, 3)."""
        return (*self.crop, 3)

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain JSON values, from which `from_json` makes an equal object."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, document: Any) -> Preprocessing:
        """Reads a spec from JSON values. Missing fields take the defaults; ``crop`` may be one number.

        Raises `CheckpointError` for anything else.
        """
        if not isinstance(document, dict):
            raise CheckpointError("the checkpoint's preprocessing must be a JSON object")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        if _is_size(fields.get("crop")):
            fields["crop"] = (fields["crop"], fields["crop"])
        try:
            return cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's preprocessing has an unknown field: {error}") from error


def _complaint(spec: Preprocessing) -> str | None:
    """Returns the first fault of a spec, in words; None if it has none."""
    torch_filters = ("nearest", "bilinear", "bicubic")
    if spec.fit not in (RESIZE_CROP, CROP_RESIZE, PAD_RESIZE, STRETCH):
        return f"fit {spec.fit!r} is unknown"
    if not (spec.resize is None or _is_size(spec.resize) or _is_pair(spec.resize)):
        return "resize must be a positive number, a pair (height, width) of them, or null"
    if not _is_pair(spec.crop):
        return "crop must be a positive number or a pair (height, width) of them"
    if spec.interpolation not in (tuple(FILTERS) if spec.fit == RESIZE_CROP else torch_filters):
        return f"interpolation {spec.interpolation!r} is unknown for fit {spec.fit!r}"
    if not isinstance(spec.antialias, bool):
        return "antialias must be true or false"
    if spec.fit == RESIZE_CROP and not spec.antialias and spec.interpolation != "nearest":
        return f"fit {spec.fit!r} resizes with Pillow, which always antialiases"
    if not _is_triple(spec.mean) or not _is_triple(spec.std) or min(spec.std) <= 0:
        return "mean and std must be three finite numbers each, and std positive"
    return None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 65535


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_size(side) for side in value)


def _is_triple(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 3:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)


def prepare(
    data: Data,
    spec: Preprocessing,
    out: Pixels,
    *,
    max_pixels: int,
    fast: bool = False,
    admit: Admit | None = None,
) -> Image.Image:
    """Decodes ``data``, fits the image to ``spec`` and writes the pixels into ``out``, uint8 ``spec.shape``.

    Returns the whole photo, upright, RGB or L; ``out`` shows the `seen_box` of it.

    ``fast`` decodes large JPEGs at a fraction of their size where the spec shrinks with antialiasing anyway, and
    resizes only the part that the crop keeps. The pixels then differ by a grey level or less on average (see
    `_fast_size`). ``admit`` is called with the opened picture before its pixels are decoded. ``out`` is left
    unchanged when this raises `EmptyBody`, `UnsupportedMediaType`, `ImageTooLarge` or `InvalidImage` (see `decode`).
    """
    if out.shape != spec.shape or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {spec.shape}, not {out.dtype} {out.shape}")
    image = load(data, max_pixels=max_pixels, at_least=_fast_size(spec) if fast else None, admit=admit)
    if spec.fit == RESIZE_CROP:
        _resize_crop(image, spec, out, exact=not fast or spec.interpolation == "nearest")
    else:
        out[...] = _fit_like_keras(to_rgb(image), spec)
    return image


def seen_box(size: Size, spec: Preprocessing) -> tuple[float, float, float, float]:
    """Returns the part of an upright photo of ``size`` (height, width) that the model sees.

    The box is left, top, right, bottom as fractions of the photo. Values below 0 or above 1 are padding.
    """
    if spec.fit == RESIZE_CROP:
        sides = resized_size(size, spec.resize)
        starts = [_first(side, crop) for side, crop in zip(sides, spec.crop, strict=True)]
        lengths: Sequence[int] = spec.crop
    else:
        parts = _keras_parts(size, spec)
        sides, starts, lengths = size, [part.start for part in parts], [part.length for part in parts]
    (top, left), (height, width) = (
        [value / side for value, side in zip(values, sides, strict=True)] for values in (starts, lengths)
    )
    return left, top, left + width, top + height


def _first(resized: int, crop: int) -> int:
    """Returns where a crop begins along a resized axis; negative where the axis is shorter than the crop."""
    window, border = _centre(resized, crop)
    return window.start - border


def _fast_size(spec: Preprocessing) -> int | None:
    """Returns the side in pixels that a scaled JPEG decode must keep; None where only a full decode will do.

    A full decode is needed where the spec does not average pixels (nearest), and where it cuts or pads whole pixels
    before the resize, since those would be larger in a scaled image.

    The limit is the target's own side, so an image between one and two times the target is decoded: 0.3 to 0.6 grey
    levels from exact on photo-like images of 1 to 12 megapixels. A limit of twice the target would halve the error
    and lose most of the speed. docs/PERFORMANCE.md has how often either changes a model's answer.
    """
    if spec.resize is None or spec.interpolation == "nearest":
        return None
    return spec.resize if isinstance(spec.resize, int) else max(spec.resize)


def _resize_crop(image: Image.Image, spec: Preprocessing, out: Pixels, *, exact: bool) -> None:
    whole = (0, 0, image.width, image.height)
    left, top, right, bottom = extent = whole if exact else image.info.get(EXTENT, whole)
    rows, columns, top, left = windows((bottom - top, right - left), spec)
    pixels = resize_window(image, rows, columns, spec.interpolation, None if exact else extent)
    if (rows.length, columns.length) != spec.crop:
        out[...] = 0
    target = out[top : top + rows.length, left : left + columns.length]
    target[...] = pixels if pixels.ndim == 3 else pixels[:, :, None]


def windows(size: tuple[float, float], spec: Preprocessing) -> tuple[Window, Window, int, int]:
    """Returns the rows and columns of the resized image that a crop keeps, and their top and left in the result.

    ``size`` is the photo's (height, width).
    """
    height, width = resized_size(size, spec.resize)
    rows, top = _centre(height, spec.crop[0])
    columns, left = _centre(width, spec.crop[1])
    return rows, columns, top, left


def resized_size(size: tuple[float, float], resize: int | Size | None) -> Size:
    """Returns (height, width) after torchvision's ``_compute_resized_output_size``: the long side is rounded down."""
    if not isinstance(resize, int):
        return resize or (int(size[0]), int(size[1]))
    height, width = size
    long = int(resize * max(size) / min(size))
    return (long, resize) if width <= height else (resize, long)


def _centre(resized: int, crop: int) -> tuple[Window, int]:
    """Returns the window of torchvision's ``center_crop`` on one axis, and where it begins in the result."""
    if resized < crop:
        return Window(resized, 0, resized), (crop - resized) // 2
    return Window(resized, round((resized - crop) / 2.0), crop), 0


def _fit_like_keras(image: Image.Image, spec: Preprocessing) -> Pixels:
    """Resizes like ``keras.ops.image.resize`` of the torch backend (``keras/src/backend/torch/image.py``)."""
    rows, columns = _keras_parts((image.height, image.width), spec)
    return interpolate(np.asarray(image), rows, columns, spec.crop, spec.interpolation, spec.antialias)


def _keras_parts(size: Size, spec: Preprocessing) -> tuple[AxisPart, AxisPart]:
    """Returns the rows and the columns of the source that become the result."""
    height, width = size
    # Each argument is the side that fits the other side at the result's aspect ratio, rounded down as in Keras.
    rows = _keras_part(height, int(width * spec.crop[0] / spec.crop[1]), spec.fit)
    columns = _keras_part(width, int(height * spec.crop[1] / spec.crop[0]), spec.fit)
    return rows, columns


def _keras_part(side: int, wanted: int, fit: str) -> AxisPart:
    """Returns the part of one axis that Keras resizes. The border that is cut off or added is rounded down at the
    start."""
    if fit == CROP_RESIZE:
        kept = max(min(side, wanted), 1)
        return AxisPart((side - kept) // 2, kept)
    if fit == PAD_RESIZE:
        # Both borders are equal, so the sum is one less than wanted where the difference is odd.
        border = (max(side, wanted) - side) // 2
        return AxisPart(-border, side + 2 * border)
    return AxisPart(0, side)
