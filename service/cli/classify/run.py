"""`imagenet-serve classify`: classifies images on disk, with a model in this process or a running server.

paths ──▶ images ──▶ a classifier ──▶ a sink, one image after the other, as soon as it is done
                                              ├── table, json, jsonl, csv on standard output
                                              └── a CSV file, which another run goes on with (resume.py)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from service.classifier import Classification, Classifier, Image
from service.classifier.local import LocalClassifier
from service.cli.classify.resume import Resumed
from service.cli.classify.sinks import Form, Sink, open_sink
from service.cli.evaluate.dataset import SUFFIXES
from service.errors import ConfigurationError
from service.settings import Settings

STDIN = "-"
#: Images in a forward pass at most, under max_batch_size=auto: measuring the best size would take longer than it saves.
_BATCH = 8
#: The exit codes that a shell gives for SIGINT and SIGPIPE.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


@dataclass(frozen=True)
class Server:
    """A running server that classifies in place of a model in this process, as bulk work that yields to others."""

    url: str
    key: str | None
    concurrency: int


@dataclass(frozen=True)
class Shard:
    """One run's share of the images: every ``count``-th image, starting with number ``index``, counted from 0."""

    index: int
    count: int

    def of(self, images: dict[str, Image]) -> dict[str, Image]:
        return dict(islice(images.items(), self.index, None, self.count))


def run(
    settings: Settings,
    paths: Sequence[str],
    form: Form,
    resume: Path | None = None,
    *,
    server: Server | None = None,
    shard: Shard | None = None,
) -> int:
    """Classifies every image of ``paths`` and prints the best classes of each as soon as it is done.

    A path is a file, a folder (with its sub-folders), or ``-`` for an image on standard input. ``resume`` is a CSV
    file in place of standard output: its images are skipped, and the others are appended.

    Returns 1 if one was no usable image, 130 after Ctrl-C, 141 after a broken pipe, else 0. The results so far stay
    in each case. Raises `StartError` if the model cannot be loaded.
    """
    images = dict(_images(paths))
    if shard is not None:
        images = shard.of(images)
    resumed = Resumed(resume, settings.top_k) if resume is not None else None
    if resumed is not None:
        images = {name: image for name, image in images.items() if name not in resumed.done}
        print(
            f"imagenet-serve: {resume} holds {len(resumed.done)} images already; {len(images)} are left",
            file=sys.stderr,
        )
    if not images:
        return 0
    if settings.max_batch_size == "auto":
        settings = settings.model_copy(update={"max_batch_size": min(_BATCH, len(images))})
    try:
        sink = resumed.sink() if resumed else open_sink(form, sys.stdout, images)
        with _classifier(settings, server) as open_classifier:
            return _classify(open_classifier, images, sink)
    except BrokenPipeError:
        # Python flushes standard output when it ends, which would fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


#: Makes the classifier. Its argument is called with each step of the start, in words.
_Open = Callable[[Callable[[str], None]], Classifier]


@contextmanager
def _classifier(settings: Settings, server: Server | None) -> Iterator[_Open]:
    if server is None:
        yield lambda tell: LocalClassifier(settings, tell=tell)
        return
    from service.classifier.remote import RemoteClassifier

    with RemoteClassifier(
        server.url, key=server.key, top_k=settings.top_k, concurrency=server.concurrency, bulk=True
    ) as remote:
        yield lambda tell: remote


def _classify(open_classifier: _Open, images: dict[str, Image], sink: Sink) -> int:
    done, bad = 0, False
    with Bar(len(images)) as bar:
        try:
            # Before the sink: if the model cannot be loaded, not even a table's header is printed.
            classifier = open_classifier(bar.say)
            with sink:
                results = classifier.classify(images.values())
                for name, seen in zip(images, bar.track(results), strict=True):
                    if seen.error:
                        print(f"{name}: {seen.error}", file=sys.stderr)
                    sink.write(name, seen)
                    done, bad = done + 1, bad or bool(seen.error)
        except KeyboardInterrupt:
            print(f"imagenet-serve: interrupted after {done} of {len(images)} images", file=sys.stderr)
            return _INTERRUPTED
    return int(bad)


def _images(paths: Iterable[str]) -> Iterator[tuple[str, Image]]:
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


class Bar:
    """A progress bar on standard error if that is a terminal: first for the start's steps, then for the images."""

    def __init__(self, count: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._count = count
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        self._task = self._progress.add_task("loading the model", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Shows a step of the start."""
        if self._task is not None:
            self._progress.update(self._task, description=text)

    def track(self, results: Iterable[Classification]) -> Iterator[Classification]:
        """Passes the results on and counts them on the bar."""
        assert self._task is not None
        self._progress.reset(self._task, total=self._count, description="classifying")
        for seen in results:
            yield seen
            self._progress.advance(self._task)
