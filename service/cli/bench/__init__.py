"""`imagenet-serve bench`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("url")
@click.option(
    "--photo",
    "photos",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The photo to send; several are sent in turn. [default: a synthetic one]",
)
@click.option(
    "--size", metavar="WxH", default="500x375", show_default=True, help="Pixels of the synthetic photo."
)
@click.option("--clients", type=click.IntRange(1), metavar="N", help="Closed loop of N clients. [default: 8]")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Open loop of R requests a second."
)
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds of load, the warm-up included.",
)
@click.option(
    "--warm-up", type=click.FloatRange(0), default=0.0, help="Seconds at the start that do not count."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which a request without an answer has failed.",
)
@click.option(
    "--raw/--form", default=True, help="Send the photo as the raw body, or as a form's file. [default: raw]"
)
@click.option("--header", "-H", "headers", multiple=True, metavar="LINE", help="Such as 'X-API-Key: KEY'.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def bench(
    url: str,
    photos: tuple[str, ...],
    size: str,
    clients: int | None,
    rate: float | None,
    duration: float,
    warm_up: float,
    timeout: float,
    raw: bool,
    headers: tuple[str, ...],
    form: Literal["table", "json"],
) -> None:
    """Put load on the service at URL and show its throughput and latency.

    With --clients each client sends its next request when it has its answer (closed loop). With --rate requests
    leave at random moments, whether answers come or not (open loop, Poisson), and each latency counts from the
    moment when its request was due. That is what users see of a server that falls behind.
    """
    from service.cli.bench import run

    if clients is not None and rate is not None:
        raise click.UsageError("--clients and --rate are two kinds of load; give one")
    try:
        width, height = (int(side) for side in size.lower().split("x"))
        pictures = [Path(photo).read_bytes() for photo in photos] or [run.synthetic_photo(width, height)]
        plan = run.plan(
            url,
            pictures,
            run.Upload(form=not raw, headers=headers),
            duration=duration,
            clients=clients or 8,
            rate=rate,
            warm_up=warm_up,
            timeout=timeout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(run.run(plan, form))
