"""`imagenet-serve demo`: its flags. `run` is the work."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from service.cli.flags import checked, from_flags, settings_flags
from service.settings import Settings

#: The settings of `demo` unless a flag or the environment gives others.
_DEMO = {"weights": "demo", "log_format": "text", "log_level": "warning"}


@click.command()
@settings_flags(Settings.model_fields, defaults=_DEMO)
def demo(**given: Any) -> None:
    """Serve the small model that is part of the package, and classify its sample photos.

    The server runs until Ctrl-C; its page is at /. demo takes all options of serve.
    """
    from service.cli.demo import run

    for name, value in _DEMO.items():
        if given[name] is None and f"IMAGENET_{name.upper()}" not in os.environ:
            given[name] = value
    sys.exit(run.run(checked(from_flags(given, warn=False))))
