"""What an operator may add to a source of weights: ``NAME?option=value&option=value``.

Only for what a file cannot say of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl

from service.errors import CheckpointError


@dataclass(frozen=True)
class Options:
    """``legacy_head``: a KerasHub VGG answers as KerasHub before 0.27 did. ``test_size``: a timm network
    takes the larger images it was tested on.

    For KerasCV: ``preprocessing`` is what images went through before the model, ``raw`` (0 to 255),
    ``unit`` (0 to 1), ``imagenet`` (mean and deviation) or ``caffe`` (BGR less its mean);
    ``classifier_activation`` is softmax, sigmoid or linear; ``image_size`` is (height, width).
    """

    legacy_head: bool = False
    test_size: bool = False
    preprocessing: str | None = None
    classifier_activation: str | None = None
    image_size: tuple[int, int] | None = None

    def only(self, *names: str) -> Options:
        """These options, of which a kind of source knows ``names``. Raises `CheckpointError` for any other."""
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) != field.default:
                raise CheckpointError(
                    f"the option {field.name} means nothing to this kind of weights; leave it out"
                )
        return self


def parse(weights: str) -> tuple[str, Options]:
    """The source without its options, and these. Raises `CheckpointError` for one that does not exist."""
    source, _, query = weights.partition("?")
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _PARSERS:
            raise CheckpointError(f"'{weights}' has no option '{name}'; there are {', '.join(_PARSERS)}")
        try:
            values[name] = _PARSERS[name](text)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"'{text}' is no value for the option {name} of '{source}'") from error
    return source, Options(**values)


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _one_of(*accepted: str) -> Callable[[str], str]:
    return {name: name for name in accepted}.__getitem__


def _size(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.lower().split("x"))
    return height, width


_PARSERS: dict[str, Callable[[str], Any]] = {
    "legacy_head": _flag,
    "test_size": _flag,
    "preprocessing": _one_of("raw", "unit", "imagenet", "caffe"),
    "classifier_activation": _one_of("softmax", "sigmoid", "linear"),
    "image_size": _size,
}
