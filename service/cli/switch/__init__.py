"""`imagenet-serve switch`: its flags. `run` is the work."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("url")
@click.option("--model", help="The variant of the new weights. [default: as it is]")
@click.option("--weights", help="What to load, as the server finds it. [default: the same, read again]")
@click.option("--name", help="Which of several models. [default: the server's default]")
@click.option(
    "--other-classes", is_flag=True, help="The new model may have other classes than the one that serves."
)
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 1),
    help="The share of known images that must get the same top class. [default: 0]",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for the end of it.")
@click.option("--rollback", is_flag=True, help="Go back to the model before the last switch, at once.")
@click.option(
    "--api-key", metavar="KEY", envvar="IMAGENET_API_KEY", show_envvar=True, help="The server's key."
)
def switch(url: str, *, rollback: bool, api_key: str | None, no_wait: bool, **given: Any) -> None:
    """Let the server at URL answer with another model, without a gap.

    The new one is loaded beside the old one, has to answer known images, and takes its place at one moment. A load
    that fails changes nothing, and the exit code is 1. For a server with API keys, or with --model-control=open.
    """
    from service.cli.switch import run as switching

    asked = {name: value for name, value in given.items() if value not in (None, False)}
    if no_wait:
        asked["wait"] = False
    if rollback and asked.keys() - {"name"}:
        raise click.UsageError("--rollback goes with --name alone")
    click.echo(switching.sentence(switching.order(url, rollback=rollback, key=api_key, wish=asked)))
