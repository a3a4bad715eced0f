"""`imagenet-serve demo`: the service with the packaged model, and a first client, the visitor.

    imagenet-serve demo ── runs ──▶ Supervisor                    until Ctrl-C, as `serve` does
                       └─ starts ─▶ python -m service.cli.demo.run URL    waits for ready, classifies the samples, ends

The visitor is a process of its own, since the supervisor forks and its process must therefore have no threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from service.classifier import Classification, Identity
from service.classifier.remote import RemoteClassifier
from service.cli import tables
from service.client import Client, ClientError, Unreachable
from service.errors import ConfigurationError, StartError
from service.host.interpreter import module_command, module_environment
from service.host.samples import Sample, samples
from service.options.wording import size
from service.settings import Settings

#: The environment variable that gives the visitor its key; `evaluate` and `classify` read the same one.
KEY_VARIABLE = "IMAGENET_API_KEY"
_TOP = 3
#: Characters of a bar of probability 1.
_BAR = 24
#: Seconds between two requests to a service that starts, and the timeout of each.
_POLL, _TIMEOUT = 0.2, 5.0


def run(settings: Settings) -> int:
    """Serves until a signal, while a visitor shows the samples' classes. Returns the exit code.

    Raises `ConfigurationError` if the port is taken or the samples are missing.
    """
    from service.supervisor.supervisor import Supervisor

    if not samples():
        raise ConfigurationError("this installation has no sample photos; install imagenet-serve again")
    supervisor = Supervisor(settings)
    url = _reachable(supervisor.bind())
    visitor = subprocess.Popen(module_command("service.cli.demo.run", url), env=_environment(settings))
    try:
        code = supervisor.run()
    finally:
        visitor.terminate()
        visited = visitor.wait()
    return code or max(visited, 0)  # negative: the signal that `terminate` sent


def visit(url: str, key: str | None) -> int:
    """Waits for the service at ``url``, classifies the samples and shows the result. Returns the exit code."""
    photos = samples()
    if not _wait_ready(url, key):
        return 0  # the service has already logged why it ended
    with RemoteClassifier(url, key=key, top_k=_TOP, concurrency=1) as server:
        results = list(server.classify(photo.path for photo in photos))
        _show(url, server.identity, photos, results)
    return int(any(seen.error for seen in results))


def _environment(settings: Settings) -> dict[str, str]:
    """The visitor's environment, with an API key that the service accepts."""
    from service.api.keys import Keys

    environment = module_environment()
    if settings.api_keys_file is not None:
        environment[KEY_VARIABLE] = Keys(settings.api_keys_file).any().decode()
    return environment


def _reachable(url: str) -> str:
    """``url`` with the loopback address if its host means every interface."""
    parts = urlsplit(url)
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # nosec B104: read, not bound
    host = anywhere.get(parts.hostname or "")
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}")) if host else url


def _wait_ready(url: str, key: str | None) -> bool:
    """Waits for the service and shows its progress. True when it is ready, False if it ended before."""
    console = Console(stderr=True)
    with console.status("starting") as status, Client(url, key=key, timeout=_TIMEOUT) as client:
        while True:
            try:
                if client.ready():
                    return True
                status.update(_progress(client.health()))
            except Unreachable:
                return False
            except ClientError:
                pass  # the port is bound before the process that answers has started
            time.sleep(_POLL)


def _progress(health: dict[str, Any]) -> str:
    done, total = (health.get("progress") or {}).get("done"), (health.get("progress") or {}).get("total")
    words = f"{health.get('state', 'starting')}: {health.get('detail', '')}".rstrip(": ")
    if done is not None:
        words += f", {size(done)}" + (f" of {size(total)}" if total else "")
    return escape(words)


def _show(url: str, identity: Identity, photos: Sequence[Sample], results: Sequence[Classification]) -> None:
    console = tables.screen()
    console.print(_table(identity, photos, results))
    example = _from_here(photos[0].path)
    for name, value in (
        ("In a browser", f"{url}/"),
        ("From a shell", f"curl -F file=@{example} {url}/predict"),
        ("To end it", "Ctrl-C"),
    ):
        console.print(Text.assemble((f"{name:14}", "bold"), value), soft_wrap=True)
    sys.stdout.flush()


def _table(identity: Identity, photos: Sequence[Sample], results: Sequence[Classification]) -> Table:
    title = f"{identity.model}, weights {identity.weights}: {len(identity.classes):,} classes"
    table = Table(title=Text(title, "bold"), title_justify="left", header_style="bold", show_lines=True)
    for heading in ("photo", "label", "probability"):
        table.add_column(heading)
    table.add_column("ms", justify="right")
    for photo, seen in zip(photos, results, strict=True):
        name = Text(photo.path.name, "bold")
        if seen.error:
            table.add_row(name, Text(seen.error, "red"), "", "")
            continue
        ranked = list(enumerate(seen.predictions))
        labels = Text("\n").join(Text(entry["label"], "" if rank else "bold") for rank, entry in ranked)
        bars = Text("\n").join(_bar(entry["probability"], first=not rank) for rank, entry in ranked)
        table.add_row(name, labels, bars, f"{seen.milliseconds or 0:.1f}")
    return table


def _bar(probability: float, *, first: bool) -> Text:
    """A bar with a resolution of an eighth of a character, and the figure beside it."""
    eighths = round(probability * _BAR * 8)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else ""
    bar = ("█" * (eighths // 8) + partial).ljust(_BAR)
    return Text.assemble((bar, "green" if first else "bright_black"), f" {100 * probability:5.1f} %")


def _from_here(path: Path) -> str:
    """The path as a user would type it: relative, if it lies below the current directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _main() -> None:
    try:
        sys.exit(visit(sys.argv[1], os.environ.get(KEY_VARIABLE)))
    except KeyboardInterrupt:
        sys.exit(0)  # the service ends as well, and says so
    except StartError as error:
        print(f"imagenet-serve: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()
