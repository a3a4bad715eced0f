"""Resuming a run of `classify` from the CSV file that it left: complete images are skipped, a cut-off one is redone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from service.cli.classify.sinks import COLUMNS, CsvFile, Sink
from service.errors import ConfigurationError


class Resumed:
    """The CSV file at ``path``, which need not exist yet. ``top_k`` is the number of lines for each image.

    ``done`` holds the names of its images. The last image counts only if all of its lines are present, since a run
    may have been killed while it wrote them. Raises `ConfigurationError` for a file that `classify` did not write.
    """

    def __init__(self, path: Path, top_k: int) -> None:
        self._path = path
        try:
            text = _text(path.read_bytes()) if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from error
        header = ",".join(COLUMNS) + "\n"
        if text and not text.startswith(header) and not header.startswith(text):
            raise ConfigurationError(
                f"{path} is not a CSV that classify wrote; name another file to begin anew"
            )
        self._keep = _complete(text, header, top_k)
        rows = csv.DictReader(io.StringIO(self._keep, newline=""))
        self.done = {row["file"] for row in rows}

    def sink(self) -> Sink:
        """Cuts off an incomplete end of the file, and returns a sink that appends to the rest."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            stream = self._path.open("r+" if self._path.exists() else "w", encoding="utf-8", newline="")
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error
        stream.seek(len(self._keep.encode()))
        stream.truncate()
        return CsvFile(stream, header=not self._keep)


def _text(data: bytes) -> str:
    """Decodes UTF-8 and drops a last character that was cut off. Raises `UnicodeDecodeError` for any other fault."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return data[: error.start].decode()


def _complete(text: str, header: str, top_k: int) -> str:
    """``text`` without the lines of an incomplete last image."""
    if not text.startswith(header):
        return ""
    images: list[tuple[int, list[list[str]]]] = []
    end = len(header)
    for place, row in _records(text, len(header)):
        if len(row) != len(COLUMNS):
            break
        if not images or images[-1][1][0][0] != row[0]:
            images.append((end, []))
        images[-1][1].append(row)
        end = place
    if not images:
        return header
    start, last = images[-1]
    # A model may have fewer classes than top_k: the earlier images show how many lines an image has.
    expected = max((len(rows) for _, rows in images[:-1] if not rows[0][-1]), default=top_k)
    return text[:end] if last[0][-1] or len(last) >= expected else text[:start]


def _records(text: str, start: int) -> Iterator[tuple[int, list[str]]]:
    """Yields each complete record as (offset of its end, fields). A quoted field may contain line ends."""
    pending = ""
    for line in re.findall(r"[^\n]*\n", text[start:]):
        pending += line
        if pending.count('"') % 2 == 0:
            start += len(pending)
            yield start, next(csv.reader([pending]), [""])
            pending = ""
