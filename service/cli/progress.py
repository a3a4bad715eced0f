"""A sign of life on standard error while something takes long, and a question before something is overwritten."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.options.wording import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Work:
    """What is being done, in words; `say` changes them, `downloaded` counts bytes."""

    def __init__(self, progress: Progress, task: TaskID, text: str) -> None:
        self._progress, self._task, self._text = progress, task, text

    def say(self, text: str) -> None:
        self._text = text
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            print(text, file=sys.stderr, flush=True)

    def downloaded(self, done: int, total: int | None) -> None:
        """As `service.models.checkpoints.Progress`. Seen on a terminal only: a log wants no line for each megabyte."""
        of = f" of {size(total)}" if total else ""
        self._progress.update(self._task, description=f"{self._text}: {size(done)}{of}")


@contextmanager
def working(text: str) -> Iterator[Work]:
    """Shows ``text`` with a spinner and the time until the block ends; one line where there is no terminal."""
    # Which a server has no use for.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        work = Work(progress, progress.add_task(text, total=None), text)
        work.say(text)
        yield work


def may_write(directory: Path, *, overwrite: bool) -> None:
    """Asks before ``directory`` is written over, where somebody can answer. Raises click's usage error elsewhere."""
    if overwrite or not directory.exists() or not any(directory.iterdir()):
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"'{directory}' is there already; --overwrite writes over it")
    click.confirm(f"'{directory}' is there already. Write over it?", abort=True, err=True)
