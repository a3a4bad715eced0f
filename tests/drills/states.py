"""What the real service shows in every state that an alert is for, as series for promtool.

    python -m tests.drills.states          (make alert-series)

Brings the service into each state, scrapes it twice while kubelet-like probes ask, and writes
k8s/overlays/monitoring/rules_states_test.yml: the numbers of the second scrape, and counters that go on as they grew
between the two. promtool then says which alerts fire, and which do not; ``EXPECTED`` is what must.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.drills import wire
from tests.drills.crowd import PHOTOS, address_of, options
from tests.drills.hostile import Trick, trick_image
from tests.server import HTTP, Server

PLACE = Path(__file__).resolve().parents[2] / "k8s" / "overlays" / "monitoring"
#: Seconds between the two scrapes, of a series' step, and of the kubelet's readiness probe.
WATCHED, STEP, PROBED = 6.0, 30, 2.0
#: Steps of a series: half an hour.
STEPS = 60


@dataclass(frozen=True)
class Seen:
    """Two scrapes of one instance, ``seconds`` apart, by series."""

    first: dict[str, float]
    second: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class State:
    """``reach`` is entered with the state and left with its end; ``alerts`` are all that fire, by minute."""

    reach: Callable[[], contextlib.AbstractContextManager[Server]]
    alerts: dict[int, set[str]]


def watch(server: Server) -> Seen:
    first, began = series(server), time.monotonic()
    while (passed := time.monotonic() - began) < WATCHED:
        time.sleep(min(PROBED, WATCHED - passed))
        for path in ("/readyz", "/livez", "/v2/health/ready"):
            HTTP.get(server.url + path)
    return Seen(first, series(server), time.monotonic() - began)


def series(server: Server) -> dict[str, float]:
    """Of the metrics that the rules ask for."""
    asked = set(re.findall(r"imagenet_[a-z_]+", (PLACE / "rules.yml").read_text()))
    found = {name: value for name, value in server.metrics().items() if name.split("{")[0] in asked}
    return {name: value for name, value in found.items() if "le=" not in name or 'le="0.5"' in name}


def written(seen: Seen, instance: str) -> list[str]:
    """Lines of ``input_series``."""
    own = f'service="s", instance="{instance}"'
    lines = [f"      - {{series: 'up{{job=\"imagenet-serve\", {own}}}', values: 1x{STEPS}}}"]
    for name, value in sorted(seen.second.items()):
        metric, _, labels = name.partition("{")
        labels = ", ".join([own, *([labels.rstrip("}")] if labels else [])])
        step = 0.0
        if re.search(r"_(total|count|bucket|sum)$", metric):
            step = (value - seen.first.get(name, 0.0)) * STEP / seen.seconds
        lines.append(
            f"      - {{series: '{metric}{{{labels}}}', values: {value:g}+{max(step, 0):.6g}x{STEPS}}}"
        )
    return lines


# ---- the states ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def clients(server: Server, number: int, *images: bytes, **headers: str) -> Iterator[None]:
    """Each sends the images, one after the other, until the block ends."""
    stop = threading.Event()

    def one() -> None:
        client = wire.Client(address_of(server.url), keep=True)
        while not stop.is_set():
            for image in images:
                client.ask(image, **headers)
                stop.wait(0.01)
        client.close()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    try:
        yield
    finally:
        stop.set()


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@contextlib.contextmanager
def healthy() -> Iterator[Server]:
    with Server(**options(IMAGE_MS=2, frontends=1)) as server, clients(server, 2, PHOTOS[0][0]):
        yield server


@contextlib.contextmanager
def starting() -> Iterator[Server]:
    with failing("lost") as (server, _):
        yield server


@contextlib.contextmanager
def failing(*faults: str, wait: bool = False) -> Iterator[tuple[Server, Path]]:
    """tests/failing.py: an engine that loads while a fault is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for fault in faults:
            (folder / fault).touch()
        with Server(
            module="tests.failing", environment={"FAILING": name}, frontends=1, wait=wait, access_log=False
        ) as server:
            yield server, folder


@contextlib.contextmanager
def draining() -> Iterator[Server]:
    with Server(**options(IMAGE_MS=2, frontends=1, drain_delay_ms=60_000)) as server:
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: server.metrics()['imagenet_state{state="draining"}'])
        yield server


@contextlib.contextmanager
def overloaded() -> Iterator[Server]:
    settings = options(FIXED_MS=20, IMAGE_MS=10, frontends=1, queue_capacity=8, max_batch_size=4)
    with Server(**settings) as server, clients(server, 32, PHOTOS[0][0]):
        until(lambda: server.metrics()["imagenet_saturation_ratio"] > 1.1)
        yield server


@contextlib.contextmanager
def no_engine() -> Iterator[Server]:
    with failing(wait=True) as (server, folder):
        (folder / "lost").touch()  # and the next engine does not come up while it is
        until(lambda: not server.metrics()["imagenet_engine_up"])
        until(lambda: server.metrics()["imagenet_engine_restarts_total"])
        with clients(server, 1, PHOTOS[0][0]):
            yield server


@contextlib.contextmanager
def wrong_canary() -> Iterator[Server]:
    """Once: the engine is replaced, and serves."""
    with failing(wait=True) as (server, folder):
        (folder / "wrong").touch()
        wire.Client(address_of(server.url)).ask(PHOTOS[0][0])
        until(lambda: not server.metrics()["imagenet_engine_up"])
        (folder / "wrong").unlink()
        server.wait_ready()
        yield server


@contextlib.contextmanager
def full_gpu() -> Iterator[Server]:
    with failing(wait=True) as (server, folder):
        (folder / "full").touch()
        until(lambda: server.metrics().get('imagenet_gpu_memory_bytes{kind="used"}') == 78)
        yield server


@contextlib.contextmanager
def killed_with(server: Server) -> Iterator[None]:
    """What hangs outlives a supervisor that is killed."""
    pids = [server.pid, *server.children().values()]
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stuck_decoders() -> Iterator[Server]:
    with (
        Server(**{**options(frontends=1), "module": "tests.drills.stuck"}) as server,
        clients(server, 4, PHOTOS[0][0], X_Request_Timeout_Ms="1000"),
        killed_with(server),
    ):
        yield server


@contextlib.contextmanager
def hung_device() -> Iterator[Server]:
    """Before anybody has noticed: the service's own limit would end it after half a minute."""
    with Server(**options(LIMIT_S=3600, frontends=1)) as server:
        client = threading.Thread(
            target=wire.Client(address_of(server.url)).ask, args=(trick_image(Trick.HANG),), daemon=True
        )
        client.start()
        with clients(server, 4, PHOTOS[0][0], X_Request_Timeout_Ms="1000"), killed_with(server):
            yield server


@contextlib.contextmanager
def not_a_number() -> Iterator[Server]:
    with (
        Server(**options(IMAGE_MS=2, frontends=1)) as server,
        clients(server, 1, *[PHOTOS[0][0]] * 9, trick_image(Trick.NAN)),
    ):
        yield server


@contextlib.contextmanager
def slow() -> Iterator[Server]:
    with (
        Server(**options(SLOW_MS=700, IMAGE_MS=2, frontends=1)) as server,
        clients(server, 1, *[PHOTOS[0][0]] * 2, trick_image(Trick.SLOW)),
    ):
        yield server


@contextlib.contextmanager
def dying_engine() -> Iterator[Server]:
    with Server(**options(IMAGE_MS=2, frontends=1)) as server:
        # The first engine's death gives the image to the next one, if that is there in time.
        while server.metrics()["imagenet_engine_restarts_total"] < 2:
            wire.Client(address_of(server.url)).ask(trick_image(Trick.EXIT))
            server.wait_ready()
        yield server


@contextlib.contextmanager
def dying_front_ends() -> Iterator[Server]:
    with Server(**options(IMAGE_MS=2, frontends=2)) as server:
        for _ in range(3):
            pid = server.children()["frontend-1"]
            os.kill(pid, signal.SIGKILL)
            until(lambda: pid not in server.children().values() and len(server.children()) == 3)  # noqa: B023
        until(lambda: server.metrics()["imagenet_frontend_restarts_total"] == 3)
        yield server


STUCK = {"Stuck", "Expiring", "ErrorBudgetFastBurn", "LatencyBudgetFastBurn"}
#: Minutes: after which an alert must have fired, and before which one that is not yet one must not.
EXPECTED: dict[str, State] = {
    "healthy": State(healthy, {20: set()}),
    "starting": State(starting, {8: {"NoneReady"}, 12: {"NoneReady", "NotReady"}}),
    "draining": State(draining, {8: {"NoneReady"}, 12: {"NoneReady", "NotReady"}}),
    "overloaded": State(overloaded, {4: set(), 20: {"Rejecting", "Saturated"}}),
    "no engine": State(no_engine, {20: {"EngineDown", "NoneReady", "NotReady", "Rejecting", "ErrorBudgetFastBurn"}}),
    "decoders stuck": State(stuck_decoders, {20: STUCK | {"Saturated"}}),
    "device hung": State(hung_device, {20: STUCK}),
    "not a number": State(not_a_number, {20: {"NotANumber", "ErrorBudgetFastBurn"}}),
    "GPU full": State(full_gpu, {9: set(), 20: {"GpuMemory"}}),
    "slow": State(slow, {20: {"LatencyBudgetFastBurn"}}),
}  # fmt: skip

#: What happened before: the counters were lower then, and are not any more.
EVENTS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Server]], set[str]]] = {
    "canary wrong": (wrong_canary, {"Canary"}),
    "engine dies": (dying_engine, {"EngineRestarts"}),
    "front-ends die": (dying_front_ends, {"FrontEndRestarts"}),
}


def main() -> int:
    lines = [HEAD]
    with healthy() as server:
        well = watch(server)
    for name, state in EXPECTED.items():
        with state.reach() as server:
            seen = watch(server)
        print(f"{name}: {len(seen.second)} series", file=sys.stderr, flush=True)
        lines += test(name, written(seen, "a"), state.alerts)
        if name in ("starting", "draining"):  # as in a rollout: the others serve
            alerts = {8: set[str](), 12: {"NotReady"}}
            lines += test(
                f"{name} beside one that serves", [*written(seen, "a"), *written(well, "b")], alerts
            )
    for name, (reach, expected) in EVENTS.items():
        with reach() as server:
            seen = watch(server)
        print(f"{name}: {len(seen.second)} series", file=sys.stderr, flush=True)
        lines += test(name, happened(written(seen, "a")), {20: expected})
    lines += vanished(written(well, "a"))
    (PLACE / "rules_states_test.yml").write_text("".join(lines))
    return 0


HEAD = """\
# Written by tests/drills/states.py from scrapes of the real service in each state; do not edit.
rule_files: [rules.yml]
evaluation_interval: 30s
group_eval_order:
  - imagenet-serve.records
  - imagenet-serve.errors
  - imagenet-serve.slow
  - imagenet-serve.state
  - imagenet-serve.load
  - imagenet-serve.objectives
tests:
"""


def vanished(series_lines: list[str]) -> list[str]:
    """Without any target, and with one that answers no scrape. A series is stale five minutes after its last sample."""
    ended = [
        re.sub(r"values: (\S+)x\d+", rf"values: \1x{STEPS // 3} _x{STEPS}", line) for line in series_lines
    ]
    up = next(line for line in series_lines if "up{" in line)
    down = [up.replace("1x", "0x"), *(line for line in ended if "up{" not in line)]
    unreachable = {"TargetDown", "Unreachable"}
    return [
        *test("gone", ended, {9: set(), 22: {"Absent", "Gone"}}),
        *test("there, and answers no scrape", down, {3: unreachable, 22: {"Absent", "Gone", *unreachable}}),
    ]


def happened(lines: list[str]) -> list[str]:
    """Counters of what happened are 0 for five minutes first."""
    names = "canary_mismatch|engine_restarts|frontend_restarts"
    return [
        re.sub(r"values: ([\d.e+]+?)\+0x60", r"values: 0x10 \1x50", line) if re.search(names, line) else line
        for line in lines
    ]


def test(name: str, series_lines: list[str], alerts: dict[int, set[str]]) -> list[str]:
    lines = [
        f"  - name: {name}\n    interval: {STEP}s\n    input_series:\n",
        *(f"{line}\n" for line in series_lines),
    ]
    lines.append("    promql_expr_test:\n")
    for minute, names in alerts.items():
        lines.append(
            f'      - expr: count by (alertname) (ALERTS{{alertstate="firing"}})\n        eval_time: {minute}m\n'
        )
        samples = [
            f"          - {{labels: '{{alertname=\"ImagenetServe{alert}\"}}', value: 1}}\n"
            for alert in sorted(names)
        ]
        lines += ["        exp_samples:\n", *samples] if samples else ["        exp_samples: []\n"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
