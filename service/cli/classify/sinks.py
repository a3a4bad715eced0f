"""The outputs of `classify`. Each image is written as soon as it is done, so an early end loses nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self, TextIO

from service.classifier import Classification

Form = Literal["table", "json", "jsonl", "csv"]

COLUMNS = ("file", "rank", "class_id", "wnid", "label", "probability", "error")
#: Characters of a table's columns at most; what is longer moves the rest of its line.
_MAX_NAME, _LABEL = 48, 32


class Sink:
    """The base of all outputs, used in a ``with`` block: writes an image's text to ``stream`` in one piece."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Completes the output, even if the block ends early; nothing is left to do for most forms."""

    def write(self, name: str, seen: Classification) -> None:
        """Writes one image's results and flushes them."""
        raise NotImplementedError

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Table(Sink):
    """Aligned columns, a line for each class. The file's name stands on its first line only."""

    def __init__(self, stream: TextIO, names: Iterable[str]) -> None:
        super().__init__(stream)
        self._width = min(_MAX_NAME, max(map(len, names), default=0))

    def __enter__(self) -> Self:
        self._put(self._line("file", "rank", "label", "probability", "class_id", "wnid"))
        return self

    def write(self, name: str, seen: Classification) -> None:
        if seen.error:
            self._put(self._line(name, "", f"({seen.error})", "", "", ""))
            return
        lines = [
            self._line(
                name if rank == 1 else "",
                str(rank),
                one["label"],
                f"{100 * one['probability']:.2f} %",
                str(one["class_id"]),
                one["wnid"] or "",
            )
            for rank, one in enumerate(seen.predictions, start=1)
        ]
        self._put("".join(lines))

    def _line(self, name: str, rank: str, label: str, probability: str, class_id: str, wnid: str) -> str:
        cells = (name.ljust(self._width), rank.rjust(4), label.ljust(_LABEL), probability.rjust(11))
        return "  ".join((*cells, class_id.rjust(8), wnid)).rstrip() + "\n"


class JsonLines(Sink):
    """JSON Lines: one object a line for each image."""

    def write(self, name: str, seen: Classification) -> None:
        self._put(json.dumps(_document(name, seen), ensure_ascii=False) + "\n")


class Json(Sink):
    """One JSON list. Its bracket is closed even if the run ends early."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._separator = "[\n"

    def write(self, name: str, seen: Classification) -> None:
        text = json.dumps(_document(name, seen), indent=2, ensure_ascii=False)
        self._put(self._separator + text)
        self._separator = ",\n"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not BrokenPipeError:
            self._put("[]\n" if self._separator == "[\n" else "\n]\n")


class Csv(Sink):
    """CSV: a line for each class, or one line with the error. ``header`` is False for a file that has one already."""

    def __init__(self, stream: TextIO, *, header: bool = True) -> None:
        super().__init__(stream)
        self._header = header

    def __enter__(self) -> Self:
        if self._header:
            self._put(",".join(COLUMNS) + "\n")
        return self

    def write(self, name: str, seen: Classification) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(_rows(name, seen))
        self._put(text.getvalue())


class CsvFile(Csv):
    """CSV into a file that is closed at the end."""

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def open_sink(form: Form, stream: TextIO, names: Iterable[str]) -> Sink:
    """The sink of a form. ``names`` are all images' names; a table takes its width from them."""
    if form == "table":
        return Table(stream, names)
    return {"json": Json, "jsonl": JsonLines, "csv": Csv}[form](stream)


def _document(name: str, seen: Classification) -> dict[str, Any]:
    return (
        {"file": name, "error": seen.error} if seen.error else {"file": name, "predictions": seen.predictions}
    )


def _rows(name: str, seen: Classification) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(COLUMNS, "") | {"file": name, "error": seen.error}
    if seen.error:
        yield empty
    for rank, prediction in enumerate(seen.predictions, start=1):
        yield {**empty, "rank": rank, **prediction}
