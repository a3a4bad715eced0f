"""`imagenet-serve classify`: images on disk to labels, in this process, without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service import tables
from service.classifier import Image, Seen
from service.errors import ConfigurationError
from service.evaluate.dataset import SUFFIXES
from service.local import LocalClassifier
from service.settings import Settings

STDIN = "-"
#: Images in a forward pass, where there are so many: a command is no service that would measure the best size first.
_BATCH = 8


def run(settings: Settings, paths: Sequence[str], form: tables.Form) -> int:
    """Classifies every image of ``paths`` and prints the best classes.

    A path is a file, a folder (with all that is below it), or ``-`` for an image on standard input. Returns 1
    when one of them was no usable image, else 0. Raises `StartError` when the model cannot be had.
    """
    images = dict(_images(paths))
    if settings.max_batch_size == "auto":
        settings = settings.model_copy(update={"max_batch_size": min(_BATCH, len(images))})
    looks = LocalClassifier(settings).look(images.values())
    results = list(zip(images, _tracked(looks, len(images)), strict=True))
    for name, seen in results:
        if seen.error:
            print(f"{name}: {seen.error}", file=sys.stderr)
    shapes = {"table": _cells, "csv": _rows, "json": _documents}
    tables.show([row for name, seen in results for row in shapes[form](name, seen)], form)
    return int(any(seen.error for _, seen in results))


def _images(paths: Iterable[str]) -> Iterator[tuple[str, Image]]:
    """Each image by the name it is shown under; one that is named twice is looked at once."""
    for name in paths:
        path = Path(name)
        if name == STDIN:
            yield "(stdin)", sys.stdin.buffer.read()
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ConfigurationError(f"there are no images in '{name}'")
            yield from ((str(file), file) for file in files)
        else:
            yield name, path


def _tracked(looks: Iterator[Seen], count: int) -> Iterator[Seen]:
    """The same, with a progress bar on standard error, where that is a terminal and there are several."""
    console = Console(stderr=True)
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = count == 1 or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield from progress.track(looks, total=count)


def _documents(name: str, seen: Seen) -> Iterator[dict[str, Any]]:
    """One object an image."""
    yield (
        {"file": name, "error": seen.error} if seen.error else {"file": name, "predictions": seen.predictions}
    )


def _rows(name: str, seen: Seen) -> Iterator[dict[str, Any]]:
    """One line a class, or one with the error."""
    empty = {"rank": "", "class_id": "", "wnid": "", "label": "", "probability": "", "error": seen.error}
    if seen.error:
        yield {"file": name, **empty}
    for rank, prediction in enumerate(seen.predictions, start=1):
        yield {"file": name, **empty, "rank": rank, **prediction}


def _cells(name: str, seen: Seen) -> Iterator[dict[str, Any]]:
    """The same for people: the name stands on the first line only, and a probability is a percentage."""
    for row in _rows(name, seen):
        shown = "" if seen.error else f"{100 * row['probability']:.2f} %"
        yield {
            "file": name if row["rank"] in (1, "") else "",
            "rank": str(row["rank"]),
            "label": f"({seen.error})" if seen.error else row["label"],
            "probability": shown.rjust(9),
            "class_id": str(row["class_id"]),
            "wnid": row["wnid"] or "",
        }
