"""SIGTERM under load, again and again; kills; hang-ups."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

from tests.drills import wire
from tests.drills.crowd import PHOTOS, Crowd, address_of, options
from tests.drills.report import Report, spread
from tests.server import Server

#: A device that does 140 images a second, in batches of 8, on any machine: it sleeps.
PACE = {"FIXED_MS": 20, "IMAGE_MS": 4.6}
#: Seconds within which whatever has to come back has to come back.
_PATIENCE = 60.0


def sigterm(times: int) -> Report:
    """SIGTERM while clients with new and with kept connections ask."""
    delay = 0.3
    report = Report(
        "SIGTERM", f"{times} services of two front-ends ended under load, drain_delay_ms {delay * 1000:.0f}"
    )
    flips: list[float] = []
    served: list[float] = []
    ends: list[float] = []
    codes: Counter[int] = Counter()
    answered = lost = wrong = 0
    reasons: Counter[str] = Counter()
    for number in range(times):
        settings = options(**PACE, frontends=2, drain_delay_ms=1000 * delay)
        with (
            Server(**settings) as server,
            Crowd(address_of(server.url), {"good": 5, "kept": 3}, seed=number) as crowd,
        ):
            time.sleep(0.2 + random.random() * 0.3)
            os.kill(server.pid, signal.SIGTERM)
            began = time.monotonic()
            flips.append(_until_not_ready(address_of(server.url), began))
            codes[server.wait()] += 1
            ends.append(time.monotonic() - began)
        ledger = crowd.ledger
        served.append(ledger.last_answer - began)
        answered += ledger.answered
        lost += len(ledger.lost)
        reasons.update(outcome.reason for outcome in ledger.lost)
        wrong += len(ledger.wrong)
    report.promise("readiness flips within 100 ms", max(flips) <= 0.1, f"ms: {spread(flips)}")
    report.promise(
        "goes on serving for drain_delay_ms", min(served) >= delay, f"at least {min(served):.2f} s"
    )
    report.promise(
        "no connection breaks without its answer",
        lost == 0,
        f"{lost} lost of {answered} {dict(reasons) or ''}",
    )
    report.promise("no wrong answer", wrong == 0, wrong)
    report.promise("exit code 0", set(codes) == {0}, dict(codes))
    report.figure("seconds from SIGTERM to the end", spread(ends, scale=1, digits=2))
    return report


def _until_not_ready(address: tuple[str, int], began: float) -> float:
    while time.monotonic() - began < _PATIENCE:
        asked = time.monotonic()
        outcome = wire.Client(address).ask(b"", "/readyz", "GET")
        if outcome.status == 503:
            # The answer was decided after the question: what passed until then bounds it from above.
            return asked + outcome.seconds - began
        time.sleep(0.002)
    return _PATIENCE


def kills(front_ends: int, engines: int) -> Report:
    """SIGKILL of front-ends and engines while batches run."""
    report = Report(
        "kill -9", f"{front_ends} front-ends and {engines} engines killed in mid-batch, under load"
    )
    served_again: dict[str, list[float]] = {"front-end": [], "engine": []}
    without_reason = wrong = answered = broken = leaks = 0
    not_ready: list[float] = []
    plan = ["front-end"] * front_ends + ["engine"] * engines
    random.Random(1).shuffle(plan)
    # Five engines that die young end the service, on purpose: so a new one after a few.
    for start in range(0, len(plan), 4):
        with Server(**options(**PACE, frontends=3, queue_capacity=64)) as server:
            address = address_of(server.url)
            killed: list[float] = []
            with Crowd(address, {"good": 8, "kept": 2, "batch": 1}, seed=start) as crowd:
                for victim in plan[start : start + 4]:
                    time.sleep(0.5 + random.random())
                    pid = random.choice(
                        [
                            pid
                            for name, pid in server.children().items()
                            if name.startswith(victim.replace("-", ""))
                        ]
                    )
                    restarts = _health(address)["restarts"]
                    os.kill(pid, signal.SIGKILL)
                    now = time.monotonic()
                    if victim == "front-end":
                        killed.append(now)
                    else:
                        not_ready += _until_failed(address, now, restarts)
                    served_again[victim].append(_until_served(address, now))
                time.sleep(1.0)
            ledger = crowd.ledger
            without_reason += len(ledger.lost_without_a_kill(killed))
            broken += len(ledger.lost)
            wrong += len(ledger.wrong)
            answered += ledger.answered
            leaks += _held(server)
    report.promise(
        "whoever is not connected to a killed front-end gets an answer",
        without_reason == 0,
        f"{without_reason} lost of {answered}",
    )
    report.figure("connections that broke with their front-end", broken)
    report.promise("no wrong answer", wrong == 0, wrong)
    report.promise("all slots are free again", leaks == 0, f"{leaks} held")
    report.promise(
        "a dead engine is not ready within 100 ms",
        max(not_ready, default=0) <= 0.1,
        f"ms: {spread(not_ready)}",
    )
    for victim, seconds in served_again.items():
        report.promise(
            f"serves again by itself after its {victim} was killed",
            max(seconds, default=0) < _PATIENCE,
            f"s: {spread(seconds, 1, 2)}",
        )
    return report


def _until_failed(address: tuple[str, int], began: float, restarts: int) -> list[float]:
    """Seconds until a front-end said that the engine had failed; none where another was there before we asked."""
    while time.monotonic() - began < _PATIENCE:
        health = _health(address)
        if health["state"] == "failed":
            return [time.monotonic() - began]
        if health["restarts"] > restarts:
            return []
        time.sleep(0.002)
    return [_PATIENCE]


def _health(address: tuple[str, int]) -> dict[str, Any]:
    while True:
        outcome = wire.Client(address).ask(b"", "/healthz", "GET")
        if outcome.status == 200:
            health: dict[str, Any] = outcome.document
            return health


def _until_served(address: tuple[str, int], began: float) -> float:
    photo, right = PHOTOS[0]
    while time.monotonic() - began < _PATIENCE:
        outcome = wire.Client(address).ask(photo)
        if outcome.status == 200 and outcome.document["predictions"][0]["class_id"] == right:
            break
        time.sleep(0.005)
    return time.monotonic() - began


def _held(server: Server) -> int:
    """Slots that nobody has given back although nobody asks any more."""
    give_up = time.monotonic() + 10
    while (held := server.metrics()["imagenet_in_flight_requests"]) and time.monotonic() < give_up:
        time.sleep(0.05)
    return int(held)


def hang_ups(count: int) -> Report:
    """Clients that go away in the middle of everything, beside others that stay."""
    report = Report(
        "hang-ups", f"{count} clients that went away after up to 150 ms, a third in the middle of their body"
    )
    with Server(**options(**PACE, frontends=2, queue_capacity=64)) as server:
        address = address_of(server.url)
        with Crowd(address, {"good": 4}) as crowd:
            threads = [
                threading.Thread(target=_go_away, args=(address, count // 8, seed)) for seed in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        held = _held(server)
        metrics = server.metrics()
    ledger = crowd.ledger
    gone = metrics.get('imagenet_requests_total{route="/predict",status="499"}', 0)
    report.promise("all slots are free again", held == 0, f"{held} held")
    report.promise(
        "the others get their answers",
        not ledger.lost and not ledger.wrong,
        f"{ledger.answered} answered, {len(ledger.lost)} lost, {len(ledger.wrong)} wrong",
    )
    report.promise(
        "no forward pass for expired work",
        metrics["imagenet_late_work_total"] == 0,
        int(metrics["imagenet_late_work_total"]),
    )
    report.promise(
        "hang-ups are seen before the model runs",
        metrics["imagenet_cancelled_total"] > 0,
        f"{metrics['imagenet_cancelled_total']:.0f} cancelled of {gone:.0f} gone",
    )
    return report


def _go_away(address: tuple[str, int], count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        photo, _ = rng.choice(PHOTOS)
        wire.hang_up(address, photo, rng.random() * 0.15, partly=rng.random() < 0.33)
