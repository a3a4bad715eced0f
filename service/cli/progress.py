"""Progress on standard error while something takes long, and a question before a directory is overwritten."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.errors import ConfigurationError
from service.options.wording import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from service.models.checkpoints import Checkpoint
    from service.settings import Settings


class Work:
    """The line that says what is being done. `say` replaces its text; `downloaded` adds a count of bytes to it."""

    def __init__(self, progress: Progress, task: TaskID, text: str) -> None:
        self._progress, self._task, self._text = progress, task, text

    def say(self, text: str) -> None:
        self._text = text
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            print(text, file=sys.stderr, flush=True)

    def downloaded(self, done: int, total: int | None) -> None:
        """Shows the bytes of a download so far; a `service.models.checkpoints.Progress`.

        Shown on a terminal only, since a log needs no line for each megabyte.
        """
        of = f" of {size(total)}" if total else ""
        self._progress.update(self._task, description=f"{self._text}: {size(done)}{of}")


@contextmanager
def working(text: str) -> Iterator[Work]:
    """Shows ``text``, a spinner and the elapsed time until the block ends. Without a terminal it prints one line."""
    # Imported here: a server starts sooner without them.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        work = Work(progress, progress.add_task(text, total=None), text)
        work.say(text)
        yield work


def read_checkpoint(settings: Settings, text: str) -> Checkpoint:
    """Reads the settings' weights and shows ``text`` meanwhile. Raises `CheckpointError`."""
    from service.models.checkpoints import resolve

    with working(text) as work:
        return resolve(
            settings.weights, settings.named_model, labels=settings.labels, progress=work.downloaded
        )


def check_artifact_directory(out: Path) -> None:
    """Raises `ConfigurationError` if the directory exists and holds something else than an artifact."""
    if out.exists() and not (out / "about.json").exists():
        raise ConfigurationError(f"'{out}' exists and is no artifact; choose another folder")


def may_write(directory: Path, *, overwrite: bool) -> None:
    """Asks before a ``directory`` with files in it is overwritten; without a terminal it raises click's usage error."""
    if overwrite or not directory.exists() or not any(directory.iterdir()):
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"'{directory}' exists already; --overwrite replaces it")
    click.confirm(f"'{directory}' exists already. Overwrite it?", abort=True, err=True)
