"""A progress bar over images, on standard error if that is a terminal."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """The bar, in a ``with`` block. With ``transient`` it disappears at the end of the block."""

    def __init__(self, text: str, total: int | None = None, *, transient: bool = False) -> None:
        """Takes the text beside the bar, and the number of images; None if the work has not begun."""
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=console, transient=transient, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(text, total=total, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Replaces the text beside the bar."""
        self._progress.update(self._task, description=text)

    def count_from_zero(self, text: str, total: int) -> None:
        """Begins to count ``total`` images, with another text."""
        self._progress.reset(self._task, total=total, description=text)

    def step(self, figures: str = "") -> None:
        """Counts an image, and shows ``figures`` behind the count."""
        self._progress.update(self._task, advance=1, figures=figures)

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(escape(line), soft_wrap=True, highlight=False)
