"""`imagenet-serve quantize`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from service.cli.flags import checked, from_flags, overwrite_flag, settings_flags
from service.cli.progress import may_write


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--calibrate",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder with a few hundred images of the kind that will be served; sub-folders are read too.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write the artifact even if the models agree on less than 98 % of the images.",
)
@settings_flags(["model", "weights", "labels", "max_image_pixels"], server=False)
@overwrite_flag
def quantize(out: Path, calibrate: Path, force: bool, overwrite: bool, **given: Any) -> None:
    """Write an int8 artifact of a model into OUT, to be served with --runtime OUT.

    It runs several times as fast on a CPU. Images of FOLDER that were not used for the calibration show how often
    its top class is that of the fp32 model; the artifact records that share.
    """
    from service.cli.quantize import run

    may_write(out, overwrite=overwrite)
    sys.exit(run.run(checked(from_flags(given)), calibrate, out, force=force))
