"""`imagenet-serve demo`: its flags. `run` is the work."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from service.cli.flags import checked, from_flags, settings_flags
from service.settings import Settings

#: What `demo` takes where neither a flag nor the environment says otherwise.
_DEMO = {"weights": "demo", "log_format": "text", "log_level": "warning"}


@click.command()
@settings_flags(Settings.model_fields, defaults=_DEMO)
def demo(**given: Any) -> None:
    """Serve the small model that comes along, and classify its sample photos.

    The server stays up until Ctrl-C, with the page at /. Every option of serve can be given.
    """
    from service.cli.demo import run as room

    for name, value in _DEMO.items():
        if given[name] is None and f"IMAGENET_{name.upper()}" not in os.environ:
            given[name] = value
    sys.exit(room.run(checked(from_flags(given, warn=False))))
