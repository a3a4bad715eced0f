"""The engine's loop on a virtual clock: what it publishes, what it returns, and what it does when."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.arena import FILE, Arena, Decoding, Gauge, Outcome
from service.engine.batcher import Batcher
from service.engine.core import EngineCore
from service.engine.device import Batch, DeviceThread
from service.engine.files import MAX_WAITING, FileDecoding
from service.engine.load import LoadMeter
from service.shared.batches import BatchReport, DeviceFailed
from service.shared.outputs import OutputKind
from service.shared.transport import Link, socket_pair
from tests.engine.driven import Driven
from tests.engine.virtual import GEOMETRY, MOST, SLOTS
from tests.fakes import FakeRunner, VirtualClock

MEASURED = ("BUSY_RATIO", "CAPACITY", "SATURATION", "ARRIVALS", "DECODE_CAPACITY", "DECODE_BUSY")


@pytest.fixture
def driven() -> Iterator[Driven]:
    made = Driven()
    yield made
    made.close()


def submit(driven: Driven, slots: list[int], patience: float = 1000.0) -> None:
    for slot in slots:
        driven.arena.owners[slot] = 1
        driven.arena.record_submission(
            slot, driven.clock.now + patience, driven.clock.now, OutputKind.CLASSIFY
        )
    driven.link.send(slots)
    driven.core.step(0)


def replies(driven: Driven) -> dict[int, Outcome]:
    """The slots that came back, with what their records say."""
    slots = driven.link.receive() or []
    for slot in slots:
        driven.arena.owners[slot] = 0
    return {slot: Outcome(driven.arena.record(slot).outcome) for slot in slots}


@dataclass
class Moment:
    """What happens between two turns of the loop: seconds that pass, arrivals, decodes, and a batch."""

    seconds: float
    arrivals: int
    decoded: int
    images: int
    during: float


moments = st.builds(
    Moment,
    st.floats(0.26, 5.0),
    st.integers(0, 50),
    st.integers(0, 9),
    st.integers(0, MOST),
    st.floats(0.01, 0.2),
)


@settings(max_examples=30)
@given(st.lists(moments, min_size=1, max_size=6), st.integers(1, 4))
def test_the_gauges_are_what_a_meter_of_the_same_events_says(events: list[Moment], threads: int) -> None:
    driven = Driven()
    meter = LoadMeter(driven.clock.now, 10.0, MOST)
    arena, gauges = driven.arena, driven.arena.gauges
    try:
        assert gauges[Gauge.MAX_BATCH_SIZE] == MOST
        assert gauges[Gauge.CAPACITY] == 10.0  # before the first turn
        arena.decoding[1, Decoding.THREADS] = threads
        driven.core.step(0)
        for event in events:
            driven.clock.advance(event.seconds)
            arena.arrivals[1] += event.arrivals
            arena.decoding[1, [Decoding.IMAGES, Decoding.SECONDS]] += event.decoded, 0.1 * event.decoded
            arena.decoding[1, Decoding.BUSY] += 0.05 * event.decoded
            sums = arena.decoding.sum(axis=0)
            decoded, seconds, threads_, busy = (float(value) for value in sums[: Decoding.MEMORY])
            meter.update(driven.clock.now, int(arena.arrivals.sum()), decoded, seconds, threads_, busy)
            driven.core.step(0)  # with the canary, where it is quiet
            if driven.device.given is not None:
                driven.device.finish()
                driven.core.step(0)
            for name in MEASURED:
                assert gauges[Gauge[name]] == pytest.approx(
                    getattr(meter, _ATTRIBUTES.get(name, name.lower()))
                )
            if event.images:
                submit(driven, list(range(event.images)))
                driven.device.finish(during=event.during)
                meter.record_batch(event.images, event.during)
                driven.core.step(0)
                assert len(replies(driven)) == event.images
                assert gauges[Gauge.PASS] == pytest.approx(meter.seconds)
    finally:
        driven.close()


_ATTRIBUTES = {"ARRIVALS": "arrival_rate"}


def test_the_gauges_follow_the_queue_and_the_device(driven: Driven) -> None:
    gauges = driven.arena.gauges
    seen = [Gauge.QUEUE_DEPTH, Gauge.RUNNING, Gauge.BUSY_SINCE]
    assert list(gauges[seen]) == [0, 0, 0]
    submit(driven, [0, 1])
    began = driven.clock.now
    assert list(gauges[seen]) == [0, 2, began]
    driven.clock.advance(0.1)
    submit(driven, [2, 3, 4, 5])
    assert list(gauges[seen]) == [4, 2, began]
    driven.device.finish(during=0.1)
    driven.core.step(0)
    assert list(gauges[seen]) == [1, 3, driven.clock.now]
    for _ in range(2):
        driven.device.finish(during=0.1)
        driven.core.step(0)
    assert list(gauges[seen]) == [0, 0, 0]
    assert sorted(replies(driven)) == list(range(6))


def test_gauges_are_renewed_four_times_a_second_and_heartbeats_called_once(driven: Driven) -> None:
    beats: list[float] = []
    driven.core.every_second(lambda: beats.append(driven.clock.now))
    began = driven.clock.now
    renewed = []
    for _ in range(17):
        driven.arena.gauges[Gauge.CAPACITY] = 0.0
        driven.core.step(0)
        if driven.arena.gauges[Gauge.CAPACITY]:
            renewed.append(driven.clock.now - began)
        if driven.device.given is not None:
            driven.device.finish()
            driven.core.step(0)
        driven.clock.advance(0.125)
    assert renewed == [0.25 * turn for turn in range(9)]
    assert [beat - began for beat in beats] == [0.0, 1.0, 2.0]


def test_a_batch_is_overdue_after_the_longest_and_is_said_once(driven: Driven) -> None:
    said: list[float] = []
    driven.core.when_overdue(2.0, said.append)
    driven.clock.advance(0.25)
    submit(driven, [0])
    for passed, expected in ((2.0, []), (0.25, [2.25]), (5.0, [2.25])):
        driven.clock.advance(passed)
        driven.core.step(0)
        assert said == expected


def test_an_answer_s_record_is_that_of_its_batch_without_those_that_were_late(driven: Driven) -> None:
    submit(driven, [0, 1], patience=10.0)
    submit(driven, [2], patience=0.5)  # waits for the device
    submit(driven, [3], patience=10.0)
    driven.device.finish(during=0.25)
    driven.core.step(0)
    assert replies(driven) == {0: Outcome.OK, 1: Outcome.OK}
    began = driven.clock.now
    driven.device.finish(before=0.3, during=0.25)  # 2 expires between the loop and the device
    driven.core.step(0)
    assert replies(driven) == {2: Outcome.EXPIRED, 3: Outcome.OK}
    record, earlier = driven.arena.record(3), driven.arena.record(0)
    assert record.started == pytest.approx(began + 0.3)
    assert record.finished == pytest.approx(began + 0.55)
    assert (earlier.batch_size, record.batch_size) == (2, 1)
    assert (earlier.batch, record.batch) == (1, 2)
    assert driven.passes == 2


def test_a_batch_of_which_everybody_was_late_counts_as_none(driven: Driven) -> None:
    driven.core.step(0)
    capacity = driven.arena.gauges[Gauge.CAPACITY]
    submit(driven, [0], patience=0.1)
    driven.device.finish(before=0.2)
    driven.core.step(0)
    assert replies(driven) == {0: Outcome.EXPIRED}
    assert driven.passes == 0
    assert driven.arena.gauges[Gauge.PASS] == 0
    assert driven.arena.gauges[Gauge.CAPACITY] == capacity


def test_the_next_batch_begins_before_the_answers_leave_but_on_no_device_that_has_failed(
    driven: Driven,
) -> None:
    submit(driven, [0])
    submit(driven, [1])
    driven.device.finish()
    driven.core.step(0)
    assert driven.followed == [True]
    submit(driven, [2])
    driven.runner.error = DeviceFailed("it is ill")
    driven.device.finish()
    with pytest.raises(DeviceFailed, match="it is ill"):
        driven.core.step(0)
    assert driven.followed == [True, False]
    assert replies(driven) == {0: Outcome.OK}  # the others are for another engine


def test_the_canary_of_an_idle_device_is_hurried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hurries: list[FakeRunner] = []
    monkeypatch.setattr(FakeRunner, "hurry", lambda self: hurries.append(self))
    driven = Driven()
    driven.clock.advance(0.5)
    driven.core.step(0)
    assert driven.device.given is not None
    for slot in range(3):
        submit(driven, [slot])
    assert len(hurries) == 1
    for _ in range(2):
        driven.device.finish()
        driven.core.step(0)
    driven.clock.advance(10.0)
    driven.core.step(0)
    driven.device.finish()
    driven.core.step(0)
    submit(driven, [3])  # the canary has ended by itself
    assert len(hurries) == 1
    driven.close()


class Recording(DeviceThread):
    """Keeps what it gets, which has run when `ends` says so."""

    def __init__(self, runner: FakeRunner, arena: Arena) -> None:
        super().__init__(runner, arena, lambda: 0.0)
        self.given: list[Batch] = []

    def submit(self, batch: Batch) -> None:
        self.given.append(batch)

    def ends(self, batch: Batch, *, canary_due: bool, finished: float = 1.0) -> None:
        batch.ran, batch.finished = BatchReport(1, canary_due=canary_due), finished
        self.tell(batch)


@contextmanager
def recorded(in_flight: int) -> Iterator[tuple[EngineCore, Recording, Link, Arena]]:
    """A loop whose device takes several batches at once, and a front-end's end of its link."""
    runner, arena = FakeRunner(max_batch_size=MOST, in_flight=in_flight), Arena.create(GEOMETRY)
    device = Recording(runner, arena)
    core = EngineCore(runner, arena, Batcher(MOST), capacity=1.0, clock=lambda: 0.0, device=device)
    core.begin()
    ours, theirs = socket_pair()
    link = Link(ours)
    core.attach(1, Link(theirs))
    for slot in range(SLOTS):
        arena.record_submission(slot, 1e12, 0.0, OutputKind.CLASSIFY)
    yield core, device, link, arena
    core.end()
    link.close()
    arena.close()


def test_a_canary_that_is_due_goes_first_and_images_run_beside_it_where_there_is_room() -> None:
    with recorded(in_flight=2) as (core, device, link, _):
        link.send([0])
        core.step(0)
        device.ends(device.given[0], canary_due=True)
        link.send([1])
        core.step(0)
        assert [batch.slots for batch in device.given] == [[0], [], [1]]


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 2)), min_size=2, max_size=2))
def test_time_in_which_two_batches_overlap_counts_once(times: list[tuple[float, float]]) -> None:
    meter = LoadMeter(0.0, 1.0, MOST)
    with recorded(in_flight=2) as (core, device, link, arena):
        link.send(range(2 * MOST))
        core.step(0)
        assert [len(batch.slots) for batch in device.given] == [MOST, MOST]
        busy_until = 0.0
        for batch, (started, during) in zip(list(device.given), sorted(times), strict=True):
            batch.started, finished = started, started + during
            device.ends(batch, canary_due=False, finished=finished)
            core.step(0)
            if finished > busy_until:
                meter.record_batch(MOST, finished - max(started, busy_until))
                busy_until = finished
            assert arena.gauges[Gauge.PASS] == pytest.approx(meter.seconds)


class Lanes:
    """Streams that take half a second for an image each, all at the same time."""

    due = False
    """Whether the canary is, after every image."""
    canaries = 0

    def __init__(self, clock: VirtualClock, count: int) -> None:
        self.count = count
        self._clock = clock
        self._all = threading.Barrier(count)

    def sooner(self, images: int) -> bool:
        return True

    def run(self, stream: int, *arguments: object) -> BatchReport:
        if self._all.wait(60) == 0:
            self._clock.advance(0.5)
        self._all.wait(60)
        return BatchReport(1, canary_due=self.due)

    def canary(self, stream: int) -> BatchReport:
        assert self.due
        self.canaries += 1
        return BatchReport(1)


@contextmanager
def streaming(lanes: Lanes, clock: VirtualClock) -> Iterator[tuple[EngineCore, Arena]]:
    """A loop with ``lanes``, each of which has run one image."""
    runner, arena = FakeRunner(max_batch_size=MOST), Arena.create(GEOMETRY)
    runner.streams = lanes  # type: ignore[assignment]
    core = EngineCore(runner, arena, Batcher(MOST), capacity=10.0, clock=clock)
    core.begin()
    ours, theirs = socket_pair()
    link = Link(ours)
    core.attach(1, Link(theirs))
    for slot in range(lanes.count):
        arena.record_submission(slot, clock.now + 1000, clock.now, OutputKind.CLASSIFY)
    link.send(range(lanes.count))
    answered: list[int] = []
    while len(answered) < lanes.count:
        core.step(1.0)
        answered += link.receive() or []
    yield core, arena
    core.end()
    link.close()
    arena.close()


@pytest.mark.parametrize("count", [1, 2])
def test_images_in_streams_show_the_capacity_of_all_of_them(count: int) -> None:
    clock = VirtualClock()
    meter = LoadMeter(clock.now, 10.0, MOST)
    with streaming(Lanes(clock, count), clock) as (core, arena):
        for number in range(count):
            meter.record_stream(0.5, count, full=number == 0)
        clock.advance(0.3)  # the gauges are renewed, and no canary is welcome yet
        core.step(0)
        assert list(arena.gauges[[Gauge.CAPACITY, Gauge.PASS]]) == pytest.approx(
            [meter.capacity, meter.seconds]
        )


def test_a_canary_that_is_due_in_streams_runs_there_though_nobody_asks() -> None:
    clock = VirtualClock()
    lanes = Lanes(clock, 2)
    lanes.due = True
    with streaming(lanes, clock) as (core, arena):
        core.step(0)
        while arena.gauges[Gauge.BUSY_SINCE]:
            core.step(1.0)
        assert lanes.canaries == 1
        core.step(0)
        assert not arena.gauges[Gauge.BUSY_SINCE]  # one is enough


def test_what_waits_past_its_deadline_is_answered_in_the_next_turn(driven: Driven) -> None:
    submit(driven, [0])
    submit(driven, [1], patience=0.5)
    driven.clock.advance(0.5)
    driven.core.step(0)
    assert replies(driven) == {1: Outcome.EXPIRED}
    driven.link.send([~0])  # runs: it comes back with its batch
    submit(driven, [2])
    driven.link.send([~2])
    driven.core.step(0)
    assert replies(driven) == {2: Outcome.CANCELLED}
    driven.device.finish()
    driven.core.step(0)
    assert replies(driven) == {0: Outcome.OK}


def test_a_front_end_that_goes_takes_its_decoders_along_and_leaves_its_counts(driven: Driven) -> None:
    decoding = driven.arena.decoding
    decoding[1] = range(1, 1 + decoding.shape[1])
    driven.arena.owners[[0, 1]] = 1
    driven.link.close()
    driven.core.step(0)
    assert list(decoding[1]) == [
        0 if kind in (Decoding.THREADS, Decoding.MEMORY) else 1 + kind for kind in range(decoding.shape[1])
    ]
    assert driven.arena.free == driven.arena.geometry.slots


def test_an_engine_without_a_decoder_refuses_a_file_that_comes_nevertheless(driven: Driven) -> None:
    driven.arena.owners[3] = 1
    driven.arena.record_outcome(3, Outcome.OK)
    driven.link.send([3 + FILE])
    driven.core.step(0)
    assert list(driven.link.receive() or []) == [3 + FILE]
    assert driven.arena.record(3).outcome == Outcome.FAILED
    assert driven.arena.gauges[Gauge.FILES] == 0


def test_what_decoding_may_take_is_beside_what_is_reserved(driven: Driven) -> None:
    driven.arena.decoding[[1, 2], Decoding.MEMORY] = 30.0, 12.0
    driven.core.allow_pictures(100.0)
    assert driven.arena.gauges[Gauge.DECODE_MEMORY] == 142.0


def test_the_end_closes_links_pipes_and_the_selector() -> None:
    def is_open() -> list[str]:
        names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        links = [os.readlink(name) for name in names if os.path.islink(name)]
        return sorted(link for link in links if link.startswith(("socket:", "pipe:", "anon_inode:")))

    gc.collect()  # what others have left is closed now, and not meanwhile
    before = is_open()
    driven = Driven()
    assert is_open() != before
    driven.close()
    assert is_open() == before


def test_the_end_ends_every_thread_but_the_owner_s_and_the_decoder_of_files() -> None:
    before = set(threading.enumerate())
    runner, arena = FakeRunner(stream_count=2), Arena.create(GEOMETRY)
    ours, theirs = socket_pair()
    core = EngineCore(runner, arena, Batcher(MOST), capacity=1.0, files=FileDecoding(Link(ours)))
    core.begin()
    started = set(threading.enumerate()) - before
    assert {thread.name for thread in started} == {"device", "rest", "stream-0", "stream-1"}
    core.end()
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"device"}
    assert all(thread.daemon for thread in started)  # none keeps a process alive whose loop has failed
    decoder = Link(theirs)
    assert decoder.receive() is None
    decoder.close()
    arena.close()


def test_a_decoder_of_files_that_ended_wakes_the_loop_once(caplog: pytest.LogCaptureFixture) -> None:
    runner, arena = FakeRunner(), Arena.create(GEOMETRY)
    ours, theirs = socket_pair()
    core = EngineCore(runner, arena, Batcher(MOST), capacity=1.0, files=FileDecoding(Link(ours)))
    core.begin()
    assert arena.gauges[Gauge.FILES] == MAX_WAITING
    theirs.close()
    for _ in range(3):
        core.step(0)
    assert caplog.text.count("the decoder of files has ended") == 1
    assert arena.gauges[Gauge.FILES] == 0
    core.end()
    arena.close()


@pytest.mark.parametrize("why", ["somebody waits", "it stops"])
def test_an_idle_device_gets_no_canary_where_it_would_be_in_the_way(why: str) -> None:
    driven = Driven(delay=0.5)
    driven.clock.advance(10.0)
    if why == "it stops":
        driven.core.stop()
        driven.core.step(0)
    else:
        submit(driven, [0])  # for half a second it waits for others
    assert driven.device.given is None
    driven.close()


def test_nothing_is_kept_of_a_front_end_that_went_when_its_last_slot_is_back(driven: Driven) -> None:
    ours, theirs = socket_pair()
    link, mine = Link(theirs), Link(ours)
    kept = weakref.ref(link)
    driven.core.attach(2, link)
    del link
    driven.arena.owners[5] = 2
    driven.arena.record_submission(5, driven.clock.now + 1000, driven.clock.now, OutputKind.CLASSIFY)
    mine.send([5])
    driven.core.step(0)
    mine.close()
    driven.core.step(0)
    assert kept() is not None
    assert driven.arena.owners[5] == 2  # it runs
    driven.device.finish()
    driven.core.step(0)
    assert driven.arena.owners[5] == 0
    gc.collect()
    assert kept() is None


def test_a_canary_is_no_pass_of_anybody(driven: Driven) -> None:
    driven.clock.advance(0.5)
    driven.core.step(0)
    assert driven.device.given is not None
    driven.device.finish(during=0.25)
    driven.core.step(0)
    assert (driven.canaries, driven.passes) == (1, 0)
    assert driven.arena.gauges[Gauge.PASS] == 0
