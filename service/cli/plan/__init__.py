"""`imagenet-serve plan`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from service.cli.flags import FILE, checked, from_flags, settings_flags
from service.settings import Settings

#: What the sweep leaves as the user wants it.
_FIXED_BY_THE_USER = ("model", "weights", "labels", "device", "precision", "decode", "max_image_pixels")


@click.command()
@click.option(
    "--p99",
    "objective_ms",
    required=True,
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="The latency that 99 of 100 requests must not exceed, in milliseconds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("plan"),
    show_default=True,
    help="The folder for the env file, resource requests, autoscaler values and the reasons.",
)
@click.option("--quick", is_flag=True, help="Fewer and shorter measurements: a minute or two, and rougher.")
@click.option(
    "--budget",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Begin no new trial after this long. [default: 420, with --quick 100]",
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=FILE,
    help="What clients will send; several in turn. [default: a made JPEG of 500x375]",
)
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="VALUE", help="Compare these. [default: all here]"
)
@settings_flags(_FIXED_BY_THE_USER, server=False)
def plan(
    objective_ms: float,
    out: Path,
    quick: bool,
    budget: float | None,
    photos: tuple[Path, ...],
    runtimes: tuple[str, ...],
    **given: Any,
) -> None:
    """Measure this machine and propose settings that keep a latency.

    Real servers run one after the other on loopback, under load: runtimes, batch sizes, front-ends, delays. Let
    nothing else run meanwhile. The exit code is 1, and nothing is written, if no setting keeps --p99.
    """
    from service.cli.bench import run as bench
    from service.cli.plan import run as room

    settings = checked(from_flags(given))
    fixed = {name: value for name in _FIXED_BY_THE_USER if (value := getattr(settings, name)) is not None}
    defaults = Settings.model_fields
    kept = {name: value for name, value in fixed.items() if value != defaults[name].default}
    if settings.named_model or settings.weights == "pretrained":
        kept["model"] = settings.model
    pictures = [photo.read_bytes() for photo in photos] or [bench.synthetic_photo(500, 375)]
    sys.exit(
        room.run(
            objective_ms,
            {"weights": settings.weights, **kept},
            runtimes or room.runtimes(settings.device),
            pictures,
            out,
            quick=quick,
            budget=budget if budget is not None else room.QUICK_BUDGET if quick else room.BUDGET,
        )
    )
