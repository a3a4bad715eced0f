"""Options of a source of weights: ``NAME?option=value&option=value``.

They say what a file cannot say of itself. This module imports no torch, so a typo is reported before anything is
loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args
from urllib.parse import parse_qsl

from service.errors import CheckpointError
from service.models.head import Nonlinearity, Pooling

Size = tuple[int, int]

#: Longest side of the network's images in pixels.
_MAX_SIDE = 4096


@dataclass(frozen=True)
class Options:
    """Options of a source of weights.

    For any kind of file: ``preprocessing`` is the scale of the images that the model expects: ``raw`` (0 to 255),
    ``unit`` (0 to 1), ``imagenet`` (mean and deviation), ``tf`` (-1 to 1) or ``caffe`` (BGR less its mean).
    ``image_size`` is (height, width). ``pooling`` is how the map becomes a vector. ``classifier_activation`` is
    softmax, sigmoid or linear.

    For files of tensors: ``head_activation`` stands between the layers of the head, ``key`` chooses one of several
    networks, ``head`` one of several heads.

    ``legacy_head``: a KerasHub VGG answers as KerasHub before 0.27 did. ``test_size``: a timm network takes the
    larger images that it was tested on.
    """

    legacy_head: bool = False
    test_size: bool = False
    preprocessing: str | None = None
    classifier_activation: str | None = None
    image_size: Size | None = None
    pooling: str | None = None
    head_activation: str | None = None
    key: str | None = None
    head: str | None = None

    def only(self, *names: str) -> Options:
        """Returns these options. Raises `CheckpointError` if one is set that is not in ``names``."""
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) != field.default:
                raise CheckpointError(
                    f"the option {field.name} does not apply to this kind of weights; leave it out"
                )
        return self


def parse(weights: str) -> tuple[str, Options]:
    """Splits a source into its name and its options. Raises `CheckpointError` for an unknown option or value."""
    source, _, query = weights.partition("?")
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _PARSERS:
            raise CheckpointError(f"'{weights}' has no option '{name}'; there are {', '.join(_PARSERS)}")
        try:
            values[name] = _PARSERS[name](text)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"'{text}' is no value for the option {name} of '{source}'; {_meaning(name)}"
            ) from error
    return source, Options(**values)


_FLAGS = {"true": True, "1": True, "false": False, "0": False}

_WORDS: dict[str, tuple[str, ...]] = {
    "preprocessing": ("raw", "unit", "imagenet", "tf", "caffe"),
    "classifier_activation": ("softmax", "sigmoid", "linear"),
    "pooling": get_args(Pooling),
    "head_activation": get_args(Nonlinearity),
}


def _meaning(name: str) -> str:
    """Returns the accepted values of an option, in words."""
    if name == "image_size":
        return f"write HEIGHTxWIDTH, each from 1 to {_MAX_SIDE}, such as 224x224"
    if name in ("key", "head"):
        return "write a name behind it"
    return f"it takes {', '.join(_WORDS.get(name, ('true', 'false')))}"


def _flag(text: str) -> bool:
    return _FLAGS[text.lower()]


def _one_of(accepted: tuple[str, ...]) -> Callable[[str], str]:
    return {name: name for name in accepted}.__getitem__


def _size(text: str) -> Size:
    height, width = (int(side) for side in text.lower().split("x"))
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise ValueError(text)
    return height, width


def _name(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_PARSERS: dict[str, Callable[[str], Any]] = {
    "legacy_head": _flag,
    "test_size": _flag,
    **{name: _one_of(words) for name, words in _WORDS.items()},
    "image_size": _size,
    "key": _name,
    "head": _name,
}
