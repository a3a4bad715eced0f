"""The command `switch`: orders a running server to load another model, or to go back to the previous one."""

from __future__ import annotations

from typing import Any

import httpx

from service.errors import ConfigurationError

#: Seconds for connecting. The answer has no limit, since a large model may take minutes to load.
_CONNECT = 10.0


def order(url: str, *, rollback: bool, key: str | None, wish: dict[str, Any]) -> dict[str, Any]:
    """Sends the order to the server at ``url`` and returns its answer.

    ``wish`` is the JSON body of `/models/load`, or of `/models/rollback`. Raises `ConfigurationError` with one sentence
    if the server refuses or does not answer.
    """
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
