"""`imagenet-serve switch`: orders a running server to load another model, or to go back to the previous one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from service.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

#: Seconds for connecting. The answer has no limit, since a large model may take minutes to load.
_CONNECT = 10.0


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
    asked = {name: value for name, value in given.items() if value not in (None, False)}
    if no_wait:
        asked["wait"] = False
    if rollback and asked.keys() - {"name"}:
        raise click.UsageError("--rollback goes with --name alone")
    click.echo(sentence(order(url, rollback=rollback, key=api_key, wish=asked)))


def order(url: str, *, rollback: bool, key: str | None, wish: dict[str, Any]) -> dict[str, Any]:
    """Sends the order to the server at ``url`` and returns its answer.

    ``wish`` is the JSON body of `/models/load`, or of `/models/rollback`. Raises `ConfigurationError` with one sentence
    if the server refuses or does not answer.
    """
    import httpx  # here, so that the other commands do not wait for it

    path = "/models/rollback" if rollback else "/models/load"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            url.rstrip("/") + path,
            json=wish,
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT),
            verify=url.startswith("https:"),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"{url} does not answer: {error}") from error
    document = _document(answer)
    if answer.status_code == 401:
        raise ConfigurationError(f"{url} wants a key: give it with --api-key or IMAGENET_API_KEY")
    if not answer.is_success:
        detail = document.get("detail", answer.reason_phrase)
        raise ConfigurationError(f"{url} answered {answer.status_code}: {detail}")
    return document


def sentence(document: dict[str, Any]) -> str:
    """The server's answer as a sentence."""
    if "previous" not in document:
        return "the server loads the model; /healthz shows its progress"
    before = document["previous"]
    told = f"{_called(document)} answers now, in place of {_called(before)}"
    if document.get("seconds") is not None:
        told += f", after {document['seconds']:.1f} s"
    if document.get("agreement") is not None:
        told += f"; both give {document['agreement']:.0%} of the known images the same class"
    return told


def _called(version: dict[str, Any]) -> str:
    return f"{version['model']} ({version['weights']})"


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{answer.url} does not answer as imagenet-serve does")
    return document
