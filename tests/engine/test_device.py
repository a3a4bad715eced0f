"""The device's threads without the loop: what they run, in which order they report it, and when they end."""

from __future__ import annotations

import gc
import itertools
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.arena import Arena, Geometry
from service.engine.batcher import Request
from service.engine.device import Batch, DeviceThread, RestThread, StreamThreads
from service.shared.batches import BatchReport, DeviceFailed, Memory
from service.shared.outputs import OutputKind
from tests.fakes import FakeRunner, FakeRunning, VirtualClock, fingerprint

NOW = 1000.0
SLOTS = 6
#: Seconds after which something that was held back may go on, while a thread has to wait for it.
SOON = 0.05


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(Geometry(SLOTS, 2, 2, 3, results=10))
    made.pixels[...] = np.arange(made.pixels.size).reshape(made.pixels.shape) % 251
    yield made
    made.close()


def batch(number: int, slots: Sequence[int], late: Sequence[int] = (), stream: int | None = None) -> Batch:
    """A batch of ``slots``, of which those in ``late`` have expired already."""
    requests = [Request(slot, NOW if slot in late else NOW + 60, NOW - 1) for slot in slots]
    return Batch(number, requests, [OutputKind.CLASSIFY] * len(slots), stream)


@contextmanager
def running(runner: FakeRunner, arena: Arena, clock: Callable[[], float]) -> Iterator[DeviceThread]:
    device = DeviceThread(runner, arena, clock)
    device.start()
    try:
        yield device
    finally:
        runner.may_run.set()
        device.stop()


@given(st.lists(st.floats(-2, 2), max_size=6))
def test_who_has_expired_does_not_run_and_the_others_keep_their_outputs(times_left: list[float]) -> None:
    requests = [Request(slot, NOW + left, NOW - 1) for slot, left in enumerate(times_left)]
    kinds = [list(OutputKind)[slot % len(OutputKind)] for slot in range(len(requests))]
    started = Batch(1, requests, list(kinds))
    slots, wanted = started.start(NOW)
    due = [slot for slot, left in enumerate(times_left) if NOW + left > NOW]
    assert slots == due
    assert wanted == [kinds[slot] for slot in due]
    assert started.late == [slot for slot in range(len(requests)) if slot not in due]
    assert started.started == NOW
    assert started.is_canary == (not times_left)
    assert str(started) == (f"a batch of {len(requests)}" if requests else "the canary")


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_batches_are_reported_in_their_order_whatever_becomes_of_them(
    in_flight: int, arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    runner = FakeRunner(in_flight=in_flight)
    ill = RuntimeError("this one fails at its start")

    def start(*arguments: object) -> object:
        raise ill

    with running(runner, arena, lambda: NOW) as device:
        submitted = [batch(1, [0, 1]), batch(2, [2], late=[2]), batch(3, []), batch(4, [3, 4], late=[3])]
        runner.may_run.clear()  # the second would be done before the first
        for one in submitted:
            device.submit(one)
        threading.Timer(SOON, runner.may_run.set).start()
        collected = [device.collect() for _ in submitted]
        assert collected == submitted
        assert runner.batches == [[0, 1], [4]]
        for slot in (0, 1, 4):
            assert (arena.results[slot] == fingerprint(arena.pixels[slot], 10)).all()
        runner.start = start  # type: ignore[method-assign,assignment]
        failing = batch(5, [0])
        device.submit(failing)
        assert device.collect() is failing
    first, skipped, canary, partial = submitted
    for one in (*submitted, failing):
        assert (one.started, one.finished) == (NOW, NOW)
    for one in (first, canary, partial):
        assert (one.error, one.ran is None) == (None, False)
    assert (skipped.error, skipped.ran, skipped.late) == (None, None, [2])
    assert (failing.error, failing.ran) == (ill, None)
    assert "the model failed on a batch of 1" in caplog.text
    assert str(ill) in caplog.text
    assert device.failed == ""


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_no_more_batches_are_on_the_device_than_it_takes(in_flight: int, arena: Arena) -> None:
    runner = FakeRunner(in_flight=in_flight)
    runner.may_run.clear()
    with running(runner, arena, lambda: NOW) as device:
        submitted = [batch(number, [number]) for number in range(SLOTS)]
        for one in submitted:
            device.submit(one)
        threading.Timer(SOON, runner.may_run.set).start()
        assert [device.collect() for _ in submitted] == submitted
    assert [one.error for one in submitted] == [None] * SLOTS  # the runner refuses one too many


def test_the_oldest_batch_is_reported_when_it_is_done_whatever_the_newest_does(arena: Arena) -> None:
    runner, done = FakeRunner(in_flight=3), [threading.Event(), threading.Event()]

    class Held(FakeRunning):
        def done(self) -> bool:
            return done[self.slots[0]].is_set()

        def finish(self) -> BatchReport:
            assert self.done(), "the thread would wait"
            return BatchReport(1)

    begun = threading.Semaphore(0)

    def start(*given: Any) -> Held:
        begun.release()
        return Held(runner, *given)

    runner.start = start  # type: ignore[method-assign,assignment]
    with running(runner, arena, lambda: NOW) as device:
        submitted = [batch(number, [number]) for number in range(2)]
        for one in submitted:
            device.submit(one)
            assert begun.acquire(timeout=60)
        for one, event in zip(submitted, done, strict=True):
            event.set()
            assert device.collect() is one
    assert [one.error for one in submitted] == [None, None]


def test_a_batch_that_another_may_join_is_looked_at_all_the_time(arena: Arena) -> None:
    """So that its end is seen at once, though no other batch comes."""
    runner, often, looks = FakeRunner(in_flight=2), threading.Event(), itertools.count(1)

    class Looked(FakeRunning):
        def done(self) -> bool:
            if next(looks) == 60:
                often.set()
            return super().done()

    runner.start = lambda *given: Looked(runner, *given)  # type: ignore[method-assign]
    runner.may_run.clear()
    runner.running += 1  # as its own start would
    with running(runner, arena, lambda: NOW) as device:
        one = batch(1, [0])
        device.submit(one)
        assert often.wait(30)
        runner.may_run.set()
        assert device.collect() is one


def test_an_idle_device_is_checked_now_and_then(arena: Arena) -> None:
    runner = FakeRunner(memory=Memory(3, 7))
    clock = VirtualClock()
    checks = []
    checked = threading.Semaphore(0)

    def check() -> Memory:
        checks.append(clock.now)
        checked.release()
        return runner.memory

    runner.check = check  # type: ignore[method-assign]
    with running(runner, arena, clock) as device:
        assert checked.acquire(timeout=60)
        for number in range(5):  # a batch's end is no reason for a check that is not due
            device.submit(batch(number, [0]))
            device.collect()
        assert checks == [clock.now]
        assert device.memory == (3, 7)
        clock.advance(0.5)
        assert checked.acquire(timeout=60)
    assert checks == [1000.0, 1000.5]


def test_a_device_that_fails_its_check_is_reported_once_without_a_batch(arena: Arena) -> None:
    runner = FakeRunner(broken="it has fallen off the bus")
    device = DeviceThread(runner, arena, lambda: NOW)
    device.start()
    assert device.collect() is None
    assert device.failed == "it has fallen off the bus"
    device.stop()
    assert not select.select([device], [], [], 0)[0]
    os.close(device.fileno())


@pytest.mark.parametrize("trouble", [{"error": DeviceFailed("ill")}, {"distrust": "ill"}])
@pytest.mark.parametrize("canary_first", [False, True])
def test_a_device_that_is_not_trusted_gets_no_more(
    trouble: dict[str, object], canary_first: bool, arena: Arena
) -> None:
    runner = FakeRunner(**trouble)  # type: ignore[arg-type]
    device = DeviceThread(runner, arena, lambda: NOW)
    device.start()
    if canary_first:
        device.submit(batch(0, []))
        assert device.collect() is not None
        assert device.failed == ""
    last, never = batch(1, [0]), batch(2, [1])
    device.submit(last)
    assert device.collect() is last
    assert device.failed == "ill"
    device.submit(never)
    device.stop()  # waits for nothing: such a device may hang
    assert runner.batches == [[0]]
    assert not select.select([device], [], [], 0)[0]
    os.close(device.fileno())


@pytest.mark.parametrize("started", [True, False])
def test_stopping_waits_for_what_was_submitted_and_leaves_no_descriptor_open(
    started: bool, arena: Arena
) -> None:
    gc.collect()  # what others have left is closed now, and not meanwhile
    before = os.listdir("/proc/self/fd")
    runner = FakeRunner(in_flight=2)
    device = DeviceThread(runner, arena, lambda: NOW)
    device.start()
    submitted = [batch(number, [number]) for number in range(4)] if started else []
    runner.may_run.clear()
    for one in submitted:
        device.submit(one)
    threading.Timer(SOON, runner.may_run.set).start()
    device.stop()
    assert [one.ran is not None for one in submitted] == [True] * len(submitted)
    assert os.listdir("/proc/self/fd") == before


def test_answers_that_are_completed_later_are_complete_when_they_are_told(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[Batch, list[str]]] = []
    done: list[str] = []
    may = threading.Event()

    def completes() -> None:
        assert may.wait(60)
        done.append("made")

    def fails() -> None:
        raise ValueError("this map cannot be made")

    rest = RestThread(lambda one: told.append((one, list(done))))
    rest.stop()  # one that was never started has nothing to wait for
    rest = RestThread(lambda one: told.append((one, list(done))))
    rest.start()
    first, second = batch(1, [0]), batch(2, [1])
    first.ran, second.ran = BatchReport(1, rest=completes), BatchReport(1, rest=fails)
    rest.submit(first)
    rest.submit(second)
    threading.Timer(SOON, may.set).start()
    rest.stop()
    assert told == [(first, ["made"]), (second, ["made"])]
    assert first.error is None
    assert isinstance(second.error, ValueError)
    assert "this map cannot be made" in caplog.text


def test_streams_run_their_images_and_end_after_the_last(arena: Arena) -> None:
    runner = FakeRunner(stream_count=3)
    assert runner.streams is not None
    told: list[Batch] = []
    threads = StreamThreads(runner.streams, arena, lambda: NOW, told.append)
    threads.stop()  # never started
    threads = StreamThreads(runner.streams, arena, lambda: NOW, told.append)
    assert sorted(threads.free) == [0, 1, 2]
    threads.start()
    stuck, late, canary = batch(1, [0], stream=0), batch(2, [1], late=[1], stream=1), batch(3, [], stream=2)
    arena.pixels[0].flat[0] = runner.streams.STUCK
    runner.streams.may_leave.clear()
    for one in (stuck, late, canary):
        threads.submit(one)
    threading.Timer(SOON, runner.streams.may_leave.set).start()
    threads.stop()
    assert sorted(one.number for one in told) == [1, 2, 3]
    assert (arena.results[0] == fingerprint(arena.pixels[0], 10)).all()
    assert (late.late, late.ran, late.error) == ([1], None, None)
    assert canary.ran is not None
    assert all((one.started, one.finished) == (NOW, NOW) for one in told)


def test_what_a_stream_raises_is_its_image_s(arena: Arena, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(stream_count=2, error=RuntimeError("no numbers today"))
    assert runner.streams is not None
    told: list[Batch] = []
    threads = StreamThreads(runner.streams, arena, lambda: NOW, told.append)
    threads.start()
    threads.submit(batch(1, [0], stream=1))
    threads.stop()
    assert [(one.error, one.ran) for one in told] == [(runner.error, None)]
    assert "the model failed on a batch of 1" in caplog.text
