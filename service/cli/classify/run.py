"""`imagenet-serve classify`: classifies images on disk, with a model in this process or a running server.

paths ──▶ images ──▶ a classifier ──▶ a sink, one image after the other, as soon as it is done
                                              ├── table, json, jsonl, csv on standard output
                                              └── a CSV file, which another run goes on with (resume.py)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from service.classifier import Classifier, Image
from service.classifier.local import LocalClassifier
from service.cli.bar import Bar
from service.cli.classify.resume import Resumed
from service.cli.classify.sinks import Form, Sink, open_sink
from service.cli.evaluate.dataset import images_below
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
        return _classify(settings, server, images, sink)
    except BrokenPipeError:
        # Python flushes standard output when it ends, which would fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


@contextmanager
def _classifier(settings: Settings, server: Server | None, bar: Bar) -> Iterator[Classifier]:
    if server is None:
        yield LocalClassifier(settings, tell=bar.say)
        return
    from service.classifier.remote import RemoteClassifier

    with RemoteClassifier(
        server.url, key=server.key, top_k=settings.top_k, concurrency=server.concurrency, bulk=True
    ) as remote:
        yield remote


def _classify(settings: Settings, server: Server | None, images: dict[str, Image], sink: Sink) -> int:
    done, bad = 0, False
    with Bar("loading the model", transient=True) as bar:
        try:
            # The sink comes second: if the model cannot be loaded, not even a table's header is printed.
            with _classifier(settings, server, bar) as classifier, sink:
                bar.count_from_zero("classifying", len(images))
                for name, seen in zip(images, classifier.classify(images.values()), strict=True):
                    if seen.error:
                        print(f"{name}: {seen.error}", file=sys.stderr)
                    sink.write(name, seen)
                    done, bad = done + 1, bad or bool(seen.error)
                    bar.step()
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
            files = images_below(path)
            if not files:
                raise ConfigurationError(f"there are no images in '{name}'")
            yield from ((str(file), file) for file in files)
        else:
            yield name, path
