"""`imagenet-serve bench URL`: sends load to a running service and reports throughput and latency."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.cli.bench import loadgen
from service.cli.bench.loadgen import Plan, Tally

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
#: Upper edges of the histogram's rows, in milliseconds: six a decade.
_EDGES = tuple(step * 10.0**power for power in range(-1, 8) for step in (1, 1.5, 2, 3, 5, 7))
#: Characters of the longest bar of the histogram.
_BAR = 40
#: Pixels of a side of the square of film grain that a synthetic photo repeats.
_GRAIN = 256
#: Seconds that the first connection may take.
_CONNECT = 5.0
_BOUNDARY = "imagenet-serve-bench"

Form = Literal["table", "json"]


@dataclass(frozen=True)
class Upload:
    """The kind of request that carries a photo: a form with the part ``file``, like ``curl -F``, or the raw body."""

    form: bool = False
    headers: tuple[str, ...] = ()
    """Further header lines, such as an API key."""

    def request(self, host: str, path: str, photo: bytes) -> bytes:
        """The bytes of the whole HTTP/1.1 request."""
        body, content_type = (_form(photo), _FORM_TYPE) if self.form else (photo, _content_type(photo))
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {host}",
            "User-Agent: imagenet-serve-bench",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            *self.headers,
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


_FORM_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def _form(photo: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo"\r\n'
        f"Content-Type: {_content_type(photo)}\r\n\r\n"
    )
    return head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _content_type(photo: bytes) -> str:
    return "image/png" if photo.startswith(b"\x89PNG") else "image/jpeg"


def plan(url: str, photos: Sequence[bytes], upload: Upload, **load: Any) -> Plan:
    """The plan of a load on ``url``, whose path is ``/predict`` unless it has one. ``load`` is passed on to `Plan`.

    Raises `ValueError` for anything but an http URL.
    """
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is no http:// URL (over https, TLS would be measured)")
    path = parts.path if parts.path not in ("", "/") else "/predict"
    path += f"?{parts.query}" if parts.query else ""
    requests = [upload.request(parts.netloc, path, photo) for photo in photos]
    return Plan(parts.hostname, parts.port or 80, requests, **load)


def synthetic_photo(width: int, height: int, seed: int = 0, quality: int = 90) -> bytes:
    """A JPEG, 4:2:0, that costs a decoder what a photograph costs: coarse shapes, finer grey ones, and grain.

    It has about 2.2 bits a pixel at any size, in the middle of what photographs have; at quality 75 half of that.
    """
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    for grid, amplitude in ((2, 40), (4, 30), (8, 20), (16, 14), (32, 9), (64, 6)):
        shapes = rng.normal(0, amplitude, (grid, grid, 1)) + 0.4 * rng.normal(0, amplitude, (grid, grid, 3))
        pixels += _enlarge(shapes.astype(np.float32), width, height)
    coarse = np.kron(rng.normal(0, 6, (_GRAIN // 2, _GRAIN // 2)), np.ones((2, 2)))
    grain = (coarse + rng.normal(0, 4, (_GRAIN, _GRAIN))).astype(np.float32)
    tiled = np.tile(grain, (-(-height // _GRAIN), -(-width // _GRAIN)))
    pixels += tiled[:height, :width, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _enlarge(grid: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    channels = [
        Image.fromarray(grid[:, :, channel]).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def report(load: Plan, tally: Tally) -> dict[str, Any]:
    """The document that `--format json` prints. Latencies are milliseconds, of answers with a 2xx status."""
    return {
        "loop": "closed" if load.rate is None else "open",
        "clients": load.clients if load.rate is None else None,
        "rate": load.rate,
        "seconds": round(tally.seconds, 3),
        "sent": tally.sent,
        "throughput": round(tally.throughput, 2),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "failures": dict(tally.failures),
        "latency_ms": percentiles(tally.latencies),
        "histogram_ms": histogram(tally.latencies),
        "generator": {
            "cpu_us_per_request": round(1e6 * tally.cpu / max(1, tally.cpu_requests), 1),
            "most_connections": tally.most_connections,
            "lag_ms": percentiles(tally.lags),
        },
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, `PERCENTILES` and maximum of times in seconds, in milliseconds. Empty for no times."""
    if not len(seconds):
        return {}
    values = 1000 * np.asarray(seconds)
    # "higher" is a time that was measured, not one between two.
    found = np.percentile(values, PERCENTILES, method="higher")
    named = {f"p{point:g}": round(float(value), 3) for point, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": round(float(values.mean()), 3), **named, "max": round(float(values.max()), 3)}


def histogram(seconds: Sequence[float]) -> list[dict[str, float]]:
    """Rows ``{"le": upper edge in ms, "count": n}`` from the first row that counts anything to the last."""
    if not len(seconds):
        return []
    edges = np.array([0.0, *_EDGES])
    counts, _ = np.histogram(1000 * np.asarray(seconds), edges)
    filled = np.flatnonzero(counts)
    return [
        {"le": float(edges[row + 1]), "count": int(counts[row])} for row in range(filled[0], filled[-1] + 1)
    ]


class Progress:
    """One line on the terminal, redrawn while the load runs: between two requests, so it needs no thread."""

    def __init__(self, load: Plan) -> None:
        self._load = load
        self._console = Console(stderr=True)
        self._seen = 0
        self._seen_at = 0.0

    def __call__(self, elapsed: float, tally: Tally) -> None:
        if not self._console.is_terminal or elapsed - self._seen_at < 0.5:
            return
        fresh = 1000 * np.asarray(tally.latencies[self._seen :])
        rate = len(fresh) / (elapsed - self._seen_at)
        self._seen, self._seen_at = len(tally.latencies), elapsed
        p50, p99 = np.percentile(fresh, (50, 99)) if len(fresh) else (0.0, 0.0)
        bad = tally.answered - len(tally.latencies) + sum(tally.failures.values())
        line = (
            f"[bold]{min(elapsed, self._load.duration):4.0f}/{self._load.duration:.0f} s[/]  "
            f"{rate:8.1f} answers/s  p50 {p50:.1f} ms  p99 {p99:.1f} ms  [{'red' if bad else 'dim'}]{bad} not 2xx[/]"
        )
        self._console.print(line, end="\r", highlight=False, no_wrap=True)

    def end(self) -> None:
        """Clears the line for the report."""
        if self._console.is_terminal:
            self._console.print(" " * (self._console.width - 1), end="\r")


def run(load: Plan, form: Form) -> int:
    """Runs the load, prints the report on stdout and returns the exit code: 1 if no answer had a 2xx status."""
    progress = Progress(load)
    try:
        with socket.create_connection((load.host, load.port), _CONNECT):
            pass  # reports a closed port at once, not after the whole duration
        tally = loadgen.generate(load, progress)
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        print(
            f"imagenet-serve: {load.host}:{load.port}: {reason}; is the service running there?",
            file=sys.stderr,
        )
        return 1
    progress.end()
    document = report(load, tally)
    if form == "json":
        print(json.dumps(document, indent=2))
    else:
        show(document)
    if not tally.latencies:
        reasons = ", ".join([*tally.failures, *(f"status {status}" for status in tally.statuses)])
        print(f"imagenet-serve: no request was answered 2xx ({reasons or 'none was sent'})", file=sys.stderr)
    return 0 if tally.latencies else 1


def show(document: dict[str, Any]) -> None:
    """Prints the report as tables and bars."""
    console = Console(highlight=False)
    load = (
        f"{document['clients']} clients"
        if document["loop"] == "closed"
        else f"{document['rate']:g} requests/s due"
    )
    console.print(
        f"[bold]{document['throughput']:.1f} answers/s[/]  {document['loop']} loop, {load}, {document['seconds']:g} s"
    )
    outcomes = {**document["statuses"], **document["failures"]}
    console.print("  ".join(f"{name}: {count:,}" for name, count in outcomes.items()))
    latency = Table(title="latency, ms", title_justify="left", header_style="bold")
    for name in document["latency_ms"]:
        latency.add_column(name, justify="right")
    latency.add_row(*(f"{value:.2f}" for value in document["latency_ms"].values()))
    console.print(latency)
    most = max((row["count"] for row in document["histogram_ms"]), default=1)
    for row in document["histogram_ms"]:
        bar = "█" * round(_BAR * row["count"] / most) or "▏" * bool(row["count"])
        console.print(f"≤ {row['le']:>8g} ms {row['count']:>9,} {bar}")
    generator = document["generator"]
    lag = f", p99 lag {generator['lag_ms']['p99']:.2f} ms" if generator["lag_ms"] else ""
    console.print(f"[dim]generator: {generator['cpu_us_per_request']:.0f} µs CPU a request{lag}[/]")
