"""`imagenet-serve export`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from service.cli.flags import checked, from_flags, overwrite_flag, settings_flags
from service.cli.progress import may_write


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@settings_flags(
    ["model", "weights", "labels", "device", "precision", "runtime", "max_batch_size"], server=False
)
@overwrite_flag
def export(out: Path, overwrite: bool, **given: Any) -> None:
    """Prepare a model ahead of time.

    With --runtime openvino the model is converted for a CPU. Serve it with --weights OUT; that needs neither torch
    nor the original weights.

    With --runtime compile, the default, it is compiled for this kind of device and this version of torch. Serve it
    with --runtime OUT; any other platform refuses it. It holds machine code, so serve only those that you made.
    """
    from service.cli.export import run

    may_write(out, overwrite=overwrite)
    sys.exit(run.run(checked(from_flags(given)), out))
