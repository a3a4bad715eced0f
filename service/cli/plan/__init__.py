"""`imagenet-serve plan`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from service.cli.flags import FILE, checked, from_flags, settings_flags
from service.settings import Settings

#: The settings that the sweep does not vary.
_FIXED_BY_THE_USER = ("model", "weights", "labels", "device", "precision", "decode", "max_image_pixels")


@click.command()
@click.option(
    "--p99",
    "objective_ms",
    required=True,
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="The objective: 99 of 100 requests are answered within MS milliseconds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("plan"),
    show_default=True,
    help="The folder for the env file, the resource requests, the autoscaler's values and the reasons.",
)
@click.option(
    "--quick", is_flag=True, help="Make fewer and shorter measurements: a minute or two, but rough."
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Begin no new trial after this time. [default: 420, with --quick 100]",
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=FILE,
    help="A photo like those of the clients; several are sent in turn. [default: a synthetic JPEG of 500x375]",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="VALUE",
    help="A runtime to compare; can be given several times. [default: all that run here]",
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
    """Measure this machine and propose the settings that keep a latency objective.

    Servers with different runtimes, batch sizes, front-ends and delays run one after the other on loopback, under
    load. Run nothing else meanwhile. If no settings keep --p99, the exit code is 1 and nothing is written.
    """
    from service.cli.bench import run as bench
    from service.cli.plan import run

    settings = checked(from_flags(given))
    fixed = {name: value for name in _FIXED_BY_THE_USER if (value := getattr(settings, name)) is not None}
    defaults = Settings.model_fields
    kept = {name: value for name, value in fixed.items() if value != defaults[name].default}
    if settings.named_model or settings.weights == "pretrained":
        kept["model"] = settings.model
    pictures = [photo.read_bytes() for photo in photos] or [bench.synthetic_photo(500, 375)]
    sys.exit(
        run.run(
            objective_ms,
            {"weights": settings.weights, **kept},
            runtimes or run.runtimes(settings.device),
            pictures,
            out,
            quick=quick,
            budget=budget if budget is not None else run.QUICK_BUDGET if quick else run.BUDGET,
        )
    )
