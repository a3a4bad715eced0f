"""Two instances behind a proxy, replaced one after the other as a Deployment does it, and killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.drills import proxies, wire
from tests.drills.crowd import PHOTOS, options
from tests.drills.report import Report
from tests.server import Server

#: As k8s/base, but shorter: longer than a proxy's two checks.
DRAIN_DELAY_MS = 3000
#: A device that does some thousand images a second: it sleeps.
PACE = {"FIXED_MS": 1, "IMAGE_MS": 0.5}
_CLIENTS = 12


def rollouts(requests: int) -> Report:
    """``requests`` behind each way that must lose nothing, a quarter behind the others, then with kills."""
    report = Report(
        "rollouts",
        f"two services behind nginx and HAProxy, replaced one after the other under load; {requests} requests behind "
        f"each recommended way, {requests // 4} behind the others; drain_delay_ms {DRAIN_DELAY_MS}",
    )
    for way in proxies.WAYS:
        title = f"{way.proxy}, {way.balance}, {way.name}"
        if proxies.missing(way.proxy):
            report.figure(title, "not run: it is not installed")
            continue
        seen = rollout(way, requests if way.keeps else requests // 4)
        told = f"{seen.failed} of {seen.asked} failed in {seen.replaced} replacements {seen.reasons()}"
        if way.keeps:
            report.promise(f"{title}: no failed request", seen.failed == 0, told)
        else:
            report.figure(title, told)
    for way in [way for way in proxies.WAYS if way.keeps and not proxies.missing(way.proxy)]:
        seen = rollout(way, requests // 4, kill=True)
        report.figure(
            f"{way.proxy}, {way.balance}, {way.name}, instances killed by SIGKILL",
            f"{seen.failed} of {seen.asked} failed in {seen.replaced} kills {seen.reasons()}",
        )
    return report


@dataclass
class Seen:
    """What clients were told."""

    outcomes: Counter[int | str] = field(default_factory=Counter)
    replaced: int = 0

    @property
    def asked(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return self.asked - self.outcomes[200]

    def reasons(self) -> str:
        return str({k: v for k, v in self.outcomes.items() if k != 200} or "")


def rollout(way: proxies.Way, requests: int, *, kill: bool = False) -> Seen:
    """Replaces instances in turn until so many requests have been answered, and both once at least."""
    ports = [proxies.free_port(), proxies.free_port()]
    seen = Seen()
    with contextlib.ExitStack() as stack:
        instances = [stack.enter_context(service(port)) for port in ports]
        address = stack.enter_context(proxies.running(way, ports))
        with clients(address, seen):
            while seen.asked < requests or seen.replaced < len(ports):
                turn = seen.replaced % len(ports)
                time.sleep(0.5 + random.random())
                _end(instances[turn], kill=kill)
                instances[turn] = stack.enter_context(service(ports[turn]))
                seen.replaced += 1
                time.sleep(1.5)  # the proxy has to find it, as a Deployment's minReadySeconds lets it
    return seen


def _end(instance: Server, *, kill: bool) -> None:
    if not kill:
        assert instance.terminate() == 0
        return
    for pid in [instance.pid, *instance.children().values()]:
        os.kill(pid, signal.SIGKILL)
    instance.wait()


def service(port: int) -> Server:
    return Server(**options(**PACE, frontends=2, port=port, drain_delay_ms=DRAIN_DELAY_MS))


@contextlib.contextmanager
def clients(address: tuple[str, int], seen: Seen) -> Iterator[None]:
    """Half of them ask without a pause; the others let the proxy's connections lie idle, and use them again."""
    stop, lock = threading.Event(), threading.Lock()

    def one(number: int) -> None:
        rng, client = random.Random(number), wire.Client(address, keep=True)
        while not stop.is_set():
            photo, right = PHOTOS[rng.randrange(len(PHOTOS))]
            outcome = client.ask(photo)
            status = outcome.status
            if status == 200 and outcome.document["predictions"][0]["class_id"] != right:
                status = "wrong"
            with lock:
                seen.outcomes[status] += 1
            if number % 2:
                stop.wait(rng.random() * 0.3)
        client.close()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
