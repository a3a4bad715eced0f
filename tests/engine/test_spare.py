"""Spare time is when nobody asks anything, and ends at once when somebody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.engine.spare import Seen, SpareTime


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def spend(script: list[Seen], steps: int, patience: float) -> list[int]:
    """At which look each step was taken, for what is seen at one look after the other."""
    taken: list[int] = []
    looks, ended = 0, threading.Event()

    def seen() -> Seen:
        nonlocal looks
        looks += 1
        if looks > len(script):
            ended.set()
            return looks, True  # busy from here on
        return script[looks - 1]

    def work() -> Iterator[None]:
        for _ in range(steps):
            taken.append(looks)
            yield
        ended.set()

    spare = SpareTime(work(), seen, patience=patience, look=0.0, clock=Clock())
    spare.start()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "spare-time")
    assert ended.wait(30)
    spare.stop()
    return taken


def test_an_idle_engine_does_the_work() -> None:
    taken = spend([(0, False)] * 200, 5, patience=10)
    assert len(taken) == 5
    assert taken[0] > 10  # a look is a second here


def test_no_step_while_requests_come_or_run() -> None:
    busy = [(number, False) for number in range(100)]
    assert spend(busy, 5, patience=3) == []
    assert spend([(0, True)] * 100, 5, patience=3) == []


def test_work_pauses_when_somebody_comes_and_goes_on_after_as_long_a_silence() -> None:
    script = [(0, False)] * 10 + [(1, True)] * 20 + [(1, False)] * 100
    taken = spend(script, 40, patience=4)
    assert len(taken) == 40
    before = [look for look in taken if look <= 10]
    assert before
    assert not [look for look in taken if 11 < look < 33]


def test_work_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    failing = threading.Event()

    def fails() -> Iterator[None]:
        yield
        failing.set()
        raise ValueError("no")

    spare = SpareTime(fails(), lambda: (0, False), patience=0, look=0.0)
    spare.start()
    assert failing.wait(30)
    spare.stop()
    assert "spare time failed" in caplog.text
