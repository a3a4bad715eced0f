"""`imagenet-serve convert`: writes any weights as a checkpoint in the service's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.flags import checked, from_flags, overwrite_flag, settings_flags
from service.cli.progress import may_write, read_checkpoint, working


@click.command()
@click.argument("source")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@settings_flags(["model", "labels"], server=False)
@overwrite_flag
def convert(source: str, directory: Path, overwrite: bool, **given: Any) -> None:
    """Write the weights of SOURCE into DIRECTORY, as a checkpoint in the service's own format.

    SOURCE takes the values of the setting weights. The directory holds the tensors and one JSON file with the
    configuration, the preprocessing and the classes. Serving it needs neither a hub nor HDF5.
    """
    settings = checked(from_flags({**given, "weights": source}))
    may_write(directory, overwrite=overwrite)
    from service.models import loader
    from service.models.checkpoints import resolve, write

    checkpoint = read_checkpoint(settings, f"reading {source}")
    with working(f"writing {directory}"):
        loader.load(checkpoint)  # fails before anything is written if the tensors do not fit the network
        write(checkpoint, directory)
        loader.load(resolve(str(directory), settings.named_model))  # proves that the directory can be served
    click.echo(f"{directory}: {checkpoint.name} from {checkpoint.source}", err=True)
