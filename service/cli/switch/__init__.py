"""`imagenet-serve switch`: its flags. `run` is the work."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("url")
@click.option("--model", help="The variant of the new weights. [default: the present one]")
@click.option(
    "--weights",
    help="The weights to load; paths are the server's. [default: the present ones, read again]",
)
@click.option("--name", help="The model to replace, on a server of several. [default: the server's default]")
@click.option(
    "--other-classes", is_flag=True, help="Allow a new model with other classes than the present one."
)
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 1),
    help="The share of known images that must keep their top class. [default: 0]",
)
@click.option("--no-wait", is_flag=True, help="Return before the switch is complete.")
@click.option("--rollback", is_flag=True, help="Go back at once to the model before the last switch.")
@click.option(
    "--api-key", metavar="KEY", envvar="IMAGENET_API_KEY", show_envvar=True, help="The server's key."
)
def switch(url: str, *, rollback: bool, api_key: str | None, no_wait: bool, **given: Any) -> None:
    """Replace the model of the server at URL without an interruption.

    The server loads the new model beside the old one, checks it with known images, and then replaces the old one at
    one moment. If the load fails, nothing changes and the exit code is 1. The server needs API keys, or
    --model-control=open.
    """
    from service.cli.switch import run as switching

    asked = {name: value for name, value in given.items() if value not in (None, False)}
    if no_wait:
        asked["wait"] = False
    if rollback and asked.keys() - {"name"}:
        raise click.UsageError("--rollback goes with --name alone")
    click.echo(switching.sentence(switching.order(url, rollback=rollback, key=api_key, wish=asked)))
