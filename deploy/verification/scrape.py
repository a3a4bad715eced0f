"""Two instances of the service under load, a real Prometheus, and numbers that have to be equal."""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from verification.monitoring import PLACE, dashboard_queries
from verification.steps import ROOT, Failure, Skip, need, photo, step

PROMETHEUS = 19090
INSTANCES = (18001, 18002)
SCRAPES_S = (
    3  # a busy host takes more than a second for one, and a scrape's time is over when the next one begins
)
LOAD_S = 15.0  # five scrapes, so that every rate has samples
PATIENCE_S = 180.0  # for what comes with the next scrapes, and with the rules of half a minute
CLIENTS = 4
START_S = 300.0  # as the startup probe: importing torch and warming up on a busy host

Seen = TypeVar("Seen")

#: Panels that are rightly empty here.
EMPTY_HERE = {
    "GPU memory": "no GPU",
    "Refused before any work, by reason": "nobody is refused at this load",
    "annotation": "no alert fires",
}


@step
def scrape() -> str:
    """Targets up, counters equal to what the load generator counted, every query and rule evaluated."""
    prometheus = need("prometheus", "Debian: prometheus")
    python = _python_with_the_service()
    with (
        tempfile.TemporaryDirectory() as folder,
        _service(python, folder),
        _prometheus(prometheus, Path(folder)),
    ):
        sent = _load()
        eventually(_targets_up)
        eventually(partial(_counts_equal, sent))
        empty = eventually(_every_query)
        number = eventually(_every_rule)
        firing = sorted({alert["metric"]["alertname"] for alert in query('ALERTS{alertstate="firing"}')})
    queries = f"{len(dashboard_queries())} queries (empty as expected: {', '.join(empty) or 'none'})"
    return f"counts equal: {sent}; {queries}; {number} rules evaluated, firing: {', '.join(firing) or 'none'}"


def _python_with_the_service() -> str:
    """An interpreter that has the service's dependencies: $IMAGENET_PYTHON, or the checkout's .venv."""
    for python in (os.environ.get("IMAGENET_PYTHON"), str(ROOT / ".venv" / "bin" / "python")):
        if python and Path(python).exists():
            command = [python, "-c", "import torch, fastapi, service.cli.main"]
            if not subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode:
                return python
    raise Skip("no environment in which the service runs (`make run` makes .venv; or set IMAGENET_PYTHON)")


@contextmanager
def _process(command: list[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, **more)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def _service(python: str, folder: str) -> Iterator[None]:
    # A model of the tests, so small that counting and not computing is what is measured.
    weights = os.environ.get("IMAGENET_WEIGHTS", str(ROOT / "tests" / "fixtures" / "timm_vgg"))
    command = [
        python,
        "-m",
        "service",
        "serve",
        "--weights",
        weights,
        "--frontends",
        "2",
        "--max-batch-size",
        "8",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        started = []
        for port in INSTANCES:
            log = Path(folder) / f"service-{port}.log"
            process = stack.enter_context(_process([*command, "--port", str(port)], log, env=environment))
            started.append((port, process, log))
        for port, process, log in started:
            _wait(port, "/readyz", process, log)
        yield


def _wait(port: int, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if _request(port, "GET", path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(1)
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if "service.access" not in line]
    raise Failure(f"port {port} did not answer {path}:\n" + "\n".join(lines[-30:]))


@contextmanager
def _prometheus(prometheus: str, folder: Path) -> Iterator[None]:
    """The compose file's configuration, but for the targets' addresses and more frequent scrapes."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPES_S}s", "evaluation_interval": f"{SCRAPES_S}s"}
    config["rule_files"] = [str(PLACE / "rules.yml")]
    job = config["scrape_configs"][0]
    del job["dns_sd_configs"], job["relabel_configs"]
    targets = [f"127.0.0.1:{port}" for port in INSTANCES]
    job["static_configs"] = [{"targets": targets, "labels": {"service": "imagenet-serve"}}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [prometheus, f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command.append(f"--web.listen-address=127.0.0.1:{PROMETHEUS}")
    log = folder / "prometheus.log"
    with _process(command, log) as process:
        _wait(PROMETHEUS, "/-/ready", process, log)
        yield


def _request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _load() -> dict[str, int]:
    """Photos and, one in ten, a body that is no image, to both instances; what came back, by status."""
    picture = photo()
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + LOAD_S

    def client(number: int) -> None:
        sent = number
        while time.monotonic() < end:
            sent += 1
            body = b"no image" if sent % 10 == 0 else picture
            status, _ = _request(INSTANCES[sent % 2], "POST", "/predict", body)
            counts[str(status)] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(counts)


def query(expression: str) -> list[dict[str, Any]]:
    status, body = _request(
        PROMETHEUS, "GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    )
    document = json.loads(body)
    if status != 200 or document["status"] != "success":
        raise Failure(f"{expression}: {document.get('error', status)}")
    result: list[dict[str, Any]] = document["data"]["result"]
    return result


def eventually(check: Callable[[], Seen]) -> Seen:
    """What the check returns, once it does not raise `Failure`; its last one when the patience is over."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return check()
        except Failure:
            if time.monotonic() > give_up:
                raise
        time.sleep(SCRAPES_S)


def _counts_equal(sent: dict[str, int]) -> None:
    series = query('sum by (status) (imagenet_requests_total{route="/predict"})')
    counted = {one["metric"]["status"]: int(float(one["value"][1])) for one in series}
    if counted != sent:
        raise Failure(f"the load generator counted {sent}, Prometheus {counted}")
    images = int(float(query("sum(imagenet_images_total)")[0]["value"][1]))
    if images != sent["200"]:
        raise Failure(f"{sent['200']} images answered, {images} through the model")


def _targets_up() -> None:
    document = json.loads(_request(PROMETHEUS, "GET", "/api/v1/targets")[1])
    down = [
        (t["scrapeUrl"], t["lastError"]) for t in document["data"]["activeTargets"] if t["health"] != "up"
    ]
    if down:
        raise Failure(f"targets down: {down}")


def _every_query() -> list[str]:
    empty = [title for title, expression in dashboard_queries() if not query(expression)]
    if unexpected := [title for title in empty if title not in EMPTY_HERE]:
        raise Failure(f"panels without data: {', '.join(unexpected)}")
    return empty


def _every_rule() -> int:
    """Every rule has been evaluated without an error; those of the slower groups come later."""
    document = json.loads(_request(PROMETHEUS, "GET", "/api/v1/rules")[1])
    every = [rule for group in document["data"]["groups"] for rule in group["rules"]]
    bad = [f"{r['name']}: {r['health']} {r.get('lastError', '')}" for r in every if r["health"] != "ok"]
    if bad:
        raise Failure("; ".join(bad))
    return len(every)
