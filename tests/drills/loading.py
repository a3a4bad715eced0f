"""Three times the capacity for a minute, and deadlines while a batch runs."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np

from benchmarks.processes import memory_mib
from service.cli.bench import loadgen
from tests.drills import wire
from tests.drills.crowd import PHOTOS, address_of, options
from tests.drills.ending import PACE
from tests.drills.hostile import Trick, trick_image
from tests.drills.report import Report, spread
from tests.server import Server

#: Clients of the closed loop that finds the peak: several full batches, and less than the queue holds.
_CLIENTS = 64
#: Seconds to find the peak, and of a quiet service before and after.
_PEAK, _QUIET = 8.0, 5.0
#: Images of one kind for whole requests.
_REQUESTS = tuple(wire.request(photo) for photo, _ in PHOTOS)
#: MiB that the memory of a process tree may grow by: allocators and counters settle.
_FLAT = 16.0
_ANSWERED = 'imagenet_requests_total{route="/predict",status="200"}'
#: Samples, one a second, until the queue is as full as it gets.
_SETTLE = 3


@dataclass
class Sampler:
    """Memory, saturation and answers once a second, from a thread of its own."""

    server: Server
    memory: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)
    """When, and how many 200 there were until then."""

    def __enter__(self) -> Sampler:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.memory.append(memory_mib(self.server.pid))
            try:
                metrics = self.server.metrics()
            except httpx.TransportError:  # its front-end was killed: that is what soaks are about
                continue
            self.saturation.append(metrics["imagenet_saturation_ratio"])
            self.answers.append((time.monotonic(), metrics.get(_ANSWERED, 0.0)))

    def goodput(self) -> float:
        """200 a second, but for the first seconds, in which queues fill, and the last."""
        (began, first), (ended, last) = self.answers[_SETTLE], self.answers[-1]
        return (last - first) / (ended - began)


def overload(seconds: float) -> Report:
    """Open loop at three times the peak."""
    report = Report("overload", f"open loop at 3 times the capacity for {seconds:.0f} s")
    with Server(**options(**PACE, frontends=2)) as server:
        host, port = address_of(server.url)

        def load(duration: float, **kind: float) -> loadgen.Tally:
            return loadgen.generate(loadgen.Plan(host, port, _REQUESTS, duration, warm_up=2.0, **kind))  # type: ignore[arg-type]

        with Sampler(server) as samples:
            load(_PEAK, clients=_CLIENTS)
        peak = samples.goodput()
        normal = _latencies(server, _QUIET)
        ends = time.monotonic() + seconds
        samples = Sampler(server)
        with samples, ThreadPoolExecutor(1) as thread:
            loading = thread.submit(load, seconds, rate=3 * peak)
            time.sleep(max(0.0, ends - time.monotonic()))
            goodput = samples.goodput() / peak
            saturation = samples.saturation[-1]
            calm = _until_normal(server, normal)
            tally = loading.result()
        metrics = server.metrics()
    third = max(1, len(samples.memory) // 3)
    growth = float(np.mean(samples.memory[-third:]) - np.mean(samples.memory[:third]))
    refusals = np.array(tally.refusals)
    p99 = float(np.percentile(refusals, 99)) if len(refusals) else 0.0
    report.promise(
        "goodput at least 95 % of the peak", goodput >= 0.95, f"{goodput:.1%} of {peak:.1f} images/s"
    )
    report.promise("refusals answered within 10 ms (p99)", p99 <= 0.01, f"ms: {spread(refusals.tolist())}")
    report.promise(
        "every request is answered, 200 or 429",
        not tally.failures and set(tally.statuses) <= {200, 429},
        f"{dict(tally.statuses)} {dict(tally.failures) or ''}",
    )
    report.promise(
        f"memory flat (within {_FLAT:.0f} MiB)",
        growth <= _FLAT,
        f"{growth:+.1f} MiB, of {samples.memory[-1]:.0f}",
    )
    report.promise(
        "back to normal latency within 2 s", calm <= 2.0, f"{calm:.2f} s; normal is ms: {spread(normal)}"
    )
    report.promise(
        "no forward pass for expired work",
        metrics["imagenet_late_work_total"] == 0,
        int(metrics["imagenet_late_work_total"]),
    )
    expected = 3 * (1 - math.exp(-seconds / 10))  # it is smoothed over 10 s
    report.promise(
        f"imagenet_saturation_ratio says {expected:.1f} (within 15 %)",
        abs(saturation / expected - 1) <= 0.15,
        f"{saturation:.2f}",
    )
    report.figure("ms that the generator itself was late", spread(tally.lags))
    return report


def _latencies(server: Server, seconds: float) -> list[float]:
    client = wire.Client(address_of(server.url), keep=True)
    ends = time.monotonic() + seconds
    found = []
    while time.monotonic() < ends:
        found.append(client.ask(PHOTOS[0][0]).seconds)
        time.sleep(0.02)
    client.close()
    return found


def _until_normal(server: Server, normal: list[float]) -> float:
    """Seconds until ten answers in a row are as quick as they were before."""
    usual = 1.5 * float(np.percentile(normal, 95))
    client = wire.Client(address_of(server.url), keep=True)
    began = time.monotonic()
    quick, since = 0, 0.0
    while quick < 10 and time.monotonic() - began < 60:
        asked = time.monotonic()
        outcome = client.ask(PHOTOS[0][0])
        if outcome.status == 200 and outcome.seconds <= usual:
            since = asked - began if not quick else since
            quick += 1
        else:
            quick = 0
        time.sleep(0.02)
    client.close()
    return since if quick == 10 else 60.0


def deadlines(rounds: int) -> Report:
    """Deadlines that pass while a batch runs which takes far longer than any before."""
    report = Report("deadlines", f"{16 * rounds} requests whose deadline passed while a batch ran")
    late: list[float] = []
    statuses: dict[int | str, int] = {}
    with (
        Server(**options(FIXED_MS=5, SLOW_MS=1200, frontends=2)) as server,
        ThreadPoolExecutor(20) as threads,
    ):
        address = address_of(server.url)

        def one(number: int) -> None:
            patience = 0.1 + 0.05 * (number % 16)
            client = wire.Client(address, keep=True)
            client.ask(b"", "/livez", "GET")  # connected already
            outcome = client.ask(PHOTOS[number % 16][0], X_Request_Timeout_Ms=f"{1000 * patience:.0f}")
            client.close()
            statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
            if outcome.status == 504:
                late.append(outcome.seconds - patience)

        for _ in range(rounds):
            slow = threads.submit(wire.Client(address).ask, trick_image(Trick.SLOW))
            time.sleep(0.1)
            list(threads.map(one, range(16)))
            assert slow.result().status == 200
            for _ in range(60):  # what a batch takes lately is short again, or these would be refused at once
                wire.Client(address).ask(PHOTOS[0][0])
        metrics = server.metrics()
    p99 = float(np.percentile(late, 99)) if late else 1.0
    report.promise("504 within 10 ms of the deadline (p99)", p99 <= 0.01, f"ms: {spread(late)}")
    report.figure("answers", dict(statuses))
    report.promise(
        "no forward pass for expired work",
        metrics["imagenet_late_work_total"] == 0,
        int(metrics["imagenet_late_work_total"]),
    )
    return report
