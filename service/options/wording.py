"""The allowed values of a setting or query parameter in words, for error messages and ``--help``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from service.options.nearest import did_you_mean, one_of

#: The words for the number types.
_KINDS = {int: "a whole number", float: "a number"}
_TRUTH = ["true", "false"]


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The values of a type ``annotation``, such as ``auto or a whole number from 1``; empty if any text is allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return allowed(inner, [*more, *metadata])
    if origin in (Union, UnionType):
        parts = [allowed(part, metadata) for part in get_args(annotation) if part is not NoneType]
        return one_of([part for part in parts if part]) if any(parts) else ""
    if origin is Literal:
        return one_of([str(value) for value in get_args(annotation)])
    if annotation is bool:
        return one_of(_TRUTH)
    if annotation in _KINDS:
        limits = _flat(metadata)
        if annotation is int and "gt" in limits:
            limits["ge"] = limits.pop("gt") + 1
        return _KINDS[annotation] + _limits(limits)
    return "a file" if annotation is Path else ""


def choices(annotation: Any) -> list[str]:
    """The words among the values of ``annotation``."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if annotation is bool:
        return _TRUTH
    return [word for part in get_args(annotation) if not isinstance(part, str) for word in choices(part)]


def unfit(value: Any, annotation: Any, metadata: Iterable[Any] = ()) -> str | None:
    """The message ``must be ...``, with the most similar word if there is one; None if any text is allowed."""
    fitting = allowed(annotation, metadata)
    if not fitting:
        return None
    return f"must be {fitting}{did_you_mean(str(value), choices(annotation))}"


def size(count: int) -> str:
    """A number of bytes in words: ``10 MiB``, ``1.5 MiB``, ``640 KiB``, ``12 bytes``."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{round(count / 2**power, 1):g} {unit}"
    return f"{count} bytes"


def _flat(metadata: Iterable[Any]) -> dict[str, Any]:
    """The limits in ``metadata``, those inside a Field included, by pydantic's names: ge, gt, le, lt."""
    found: dict[str, Any] = {}
    for item in metadata:
        found |= _flat(getattr(item, "metadata", ()))
        found |= {
            name: value
            for name in ("ge", "gt", "le", "lt")
            if (value := getattr(item, name, None)) is not None
        }
    return found


def _limits(limits: Mapping[str, Any]) -> str:
    least = _lower(limits)
    most = limits.get("le")
    if least and most is not None:
        return f" {least} to {most:,}" if least.startswith("from") else f" {least} and up to {most:,}"
    return f" {least}" if least else f" up to {most:,}" if most is not None else ""


def _lower(limits: Mapping[str, Any]) -> str:
    if "ge" in limits:
        return f"from {limits['ge']:,}"
    return f"above {limits['gt']:,}" if "gt" in limits else ""


_VALUE_ERROR = re.compile(r"^(Value error|Assertion failed), ")


def sentence_of(message: str) -> str:
    """A validator's message without pydantic's prefix, as the second half of a sentence."""
    plain = _VALUE_ERROR.sub("", message)
    return plain[:1].lower() + plain[1:]
