"""`imagenet-serve serve`: runs the service until a signal ends it."""

from __future__ import annotations

import sys
from typing import Any

import click

from service.cli.flags import all_settings, checked, from_flags
from service.host.collector import resting


@click.command()
@all_settings
def serve(**given: Any) -> None:
    """Serve the model over HTTP.

    Every option can also be given as an environment variable: IMAGENET_ and its name in capitals, such
    as IMAGENET_MAX_BATCH_SIZE=32.
    """
    with resting():
        from service.supervisor.supervisor import Supervisor

    sys.exit(Supervisor(checked(from_flags(given, warn=False))).run())
