"""The command line: the group of all commands, one file or folder each. Results on stdout, messages on stderr.

What a command needs is imported when it runs: `--help` and completion wait for none of it.
"""

from __future__ import annotations

import os
import sys

import click

from service import __version__
from service.cli.bench import bench
from service.cli.classify import classify
from service.cli.completion import completion
from service.cli.convert import convert
from service.cli.demo import demo
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.export import export
from service.cli.models import models
from service.cli.plan import plan
from service.cli.quantize import quantize
from service.cli.serve import serve
from service.cli.switch import switch
from service.errors import StartError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="imagenet-serve")
def cli() -> None:
    """ImageNet classification with a VGG or a DenseNet: behind an HTTP port, or right here."""


for _command in (
    serve,
    demo,
    models,
    classify,
    evaluate,
    doctor,
    completion,
    quantize,
    export,
    convert,
    bench,
    plan,
    switch,
):
    cli.add_command(_command)


def main() -> None:
    """Runs the command line. A `StartError` becomes one sentence and exit code 1; wrong usage is exit code 2."""
    # The service forks from this process, which therefore must have no threads: OpenBLAS, under NumPy, starts some.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        cli(prog_name="imagenet-serve", standalone_mode=True)
    except StartError as error:
        click.echo(f"imagenet-serve: {error}", err=True)
        sys.exit(1)
