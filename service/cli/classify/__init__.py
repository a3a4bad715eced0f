"""`imagenet-serve classify`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.flags import (
    MODEL_SETTINGS,
    checked,
    concurrency_flag,
    from_flags,
    key_flag,
    refuse_model_flags,
    settings_flags,
    url_flag,
)

if TYPE_CHECKING:
    from service.cli.classify import run, sinks


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@settings_flags([*MODEL_SETTINGS, "max_batch_size", "top_k"], server=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="The form of the output; jsonl is one JSON object a line.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write CSV into FILE and skip the images that it holds already, to continue an earlier run.",
)
@url_flag
@key_flag
@concurrency_flag
@click.option(
    "--shard",
    metavar="INDEX/COUNT",
    help="Take only every COUNT-th image, starting with number INDEX (0-based), so that runs can share a folder.",
)
def classify(
    paths: tuple[str, ...],
    form: sinks.Form,
    resume: Path | None,
    url: str | None,
    api_key: str | None,
    concurrency: int,
    shard: str | None,
    **given: Any,
) -> None:
    """Classify image files, and all images in folders, without a server. The PATH - is an image on standard input.

    With --url a running server classifies them as bulk work, which yields to its other clients.

    Each result is printed as soon as it is known, so Ctrl-C or a broken pipe loses nothing that was done. The output
    names files that are no usable images; the exit code is 1 if there was one.
    """
    from service.cli.classify import run

    if paths.count(run.STDIN) > 1:
        raise click.UsageError("standard input can be read once; give - once")
    if url:
        refuse_model_flags({name: value for name, value in given.items() if name != "top_k"})
    server = run.Server(url, api_key, concurrency) if url else None
    settings = from_flags(given) if url else checked(from_flags(given))
    sys.exit(run.run(settings, paths, form, resume, server=server, shard=_shard(shard)))


def _shard(text: str | None) -> run.Shard | None:
    from service.cli.classify import run

    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise click.UsageError(f"--shard={text[:50]}: must be like 0/4")
    if not int(index) < int(count):
        raise click.UsageError(f"--shard={text[:50]}: the index must be less than the count")
    return run.Shard(int(index), int(count))
