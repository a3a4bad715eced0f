"""`imagenet-serve doctor`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from typing import Any

import click

from service.cli.flags import all_settings, from_flags


@click.command()
@all_settings
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, for programs.")
def doctor(as_json: bool, **given: Any) -> None:
    """Check whether this host can serve with these settings, and say how to mend what is wrong.

    Takes the options and the environment of serve. It changes nothing, and uses the network only to ask for
    weights that are not on this host. The exit code is 1 if a check says FAIL.
    """
    from service.cli.doctor import run

    sys.exit(run.run(run.examine(from_flags(given, warn=False)), as_json=as_json))
