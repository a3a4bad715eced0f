"""`imagenet-serve convert`: any weights into a checkpoint of the service's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.flags import checked, from_flags, overwrite_flag, settings_flags
from service.cli.progress import may_write, working


@click.command()
@click.argument("source")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@settings_flags(["model", "labels"], server=False)
@overwrite_flag
def convert(source: str, directory: Path, overwrite: bool, **given: Any) -> None:
    """Write any weights that the service reads, SOURCE, into a checkpoint DIRECTORY of its own format.

    SOURCE is whatever the setting weights takes. The directory holds the configuration, the preprocessing
    and the classes in one JSON file beside the tensors, and needs neither hub nor HDF5 to be served.
    """
    settings = checked(from_flags({**given, "weights": source}))
    may_write(directory, overwrite=overwrite)
    from service.models import loader
    from service.models.checkpoints import resolve, write

    with working(f"reading {source}") as work:
        checkpoint = resolve(
            settings.weights, settings.named_model, labels=settings.labels, progress=work.downloaded
        )
        loader.load(checkpoint)  # what makes no network is not written
        work.say(f"writing {directory}")
        write(checkpoint, directory)
        loader.load(resolve(str(directory), settings.named_model))
    click.echo(f"{directory}: {checkpoint.name} from {checkpoint.source}", err=True)
