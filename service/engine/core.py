"""The engine's loop: slot numbers in from the front-ends, batches to the device, slot numbers back.

Runs the same in a process of its own (production) and in a thread (tests, macOS). One thread runs
this loop and never computes; `DeviceThread` computes and does nothing else, so that a deadline or a
hang-up is seen while a batch runs.

The next batch grows while the current one runs and is closed at the moment the device is free: late
enough to hold everyone who came in the meantime, and forming it takes microseconds. A device that copies
and computes at the same time is free while fewer than ``Runner.in_flight`` batches are on it.

A device with streams (a processor whose cores each compute an image of their own) takes single images while it
is at work: each stream gets the next one as soon as it is free, so that none waits for the end of a batch.
"""

from __future__ import annotations

import logging
import math
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from service.engine.arena import FILE, Arena, Decoding, Gauge, Outcome
from service.engine.batcher import Batcher, Request
from service.engine.canary import Canary
from service.engine.device import Batch, DeviceThread, Runner, StreamThreads
from service.engine.files import MOST_WAITING, FileDecodeThread
from service.engine.load import LoadMeter
from service.engine.owner import Owner
from service.shared.batches import DeviceFailed
from service.shared.transport import Link

log = logging.getLogger(__name__)

#: Seconds between two updates of the gauges, and so the longest that the loop sleeps.
_GAUGES_EVERY = 0.25


class Source(Protocol):
    """Whatever the loop can wait for."""

    def fileno(self) -> int: ...


@dataclass(eq=False)
class FrontEnd:
    """A front-end as the engine sees it: its number in the arena, its link, and the slots it has with us."""

    number: int
    link: Link
    submitted: set[int] = field(default_factory=set)
    files: set[int] = field(default_factory=set)
    """Slots whose files are being decoded here."""
    gone: bool = False

    @property
    def owed(self) -> bool:
        """Whether it has slots with us."""
        return bool(self.submitted or self.files)


class EngineCore:
    """Owns the queue and the device. Construct, `attach` front-ends, `serve`."""

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        batcher: Batcher,
        *,
        capacity: float,
        batch_ran: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
        owner: Owner | None = None,
        files: FileDecodeThread | None = None,
    ) -> None:
        self._arena = arena
        self._batcher = batcher
        self._batch_ran = batch_ran
        self._clock = clock
        self._device = DeviceThread(runner, arena, clock, owner)
        self._files = files
        self._streams = runner.streams
        self._threads = (
            StreamThreads(runner.streams, arena, clock, self._device.tell) if runner.streams else None
        )
        self._canary = Canary(clock())
        self._hurry = runner.hurry
        self._load = LoadMeter(clock(), capacity, batcher.max_batch_size)
        self._selector = selectors.DefaultSelector()
        self._front_ends: dict[int, FrontEnd] = {}
        self._running: dict[int, Batch] = {}
        """What is on the device, by number."""
        self._busy_until = 0.0
        self._batches = 0
        self._gauges_due = 0.0
        self._heartbeats: list[Callable[[], object]] = []
        self._longest = math.inf
        self._overdue: Callable[[float], object] = lambda seconds: None
        self._beat_due = 0.0
        self._stopping = False
        arena.gauges[Gauge.MAX_BATCH_SIZE] = batcher.max_batch_size
        # Readers have a capacity from the first request on.
        self._update_gauges(clock())

    def attach(self, number: int, link: Link) -> None:
        """Serves the front-end ``number`` (1…254, unused) at the other end of ``link``."""
        front_end = FrontEnd(number, link)
        self._front_ends[number] = front_end
        self._selector.register(link, selectors.EVENT_READ, lambda: self._receive_messages(front_end))

    def watch(self, source: Source, callback: Callable[[], None]) -> None:
        """Calls ``callback`` in the loop whenever ``source`` is readable: the supervisor's channel."""
        self._selector.register(source, selectors.EVENT_READ, callback)

    def every_second(self, heartbeat: Callable[[], object]) -> None:
        """Calls ``heartbeat`` in the loop about once a second, as well as every other: the sign that the loop turns."""
        self._heartbeats.append(heartbeat)

    def when_overdue(self, longest: float, callback: Callable[[float], object]) -> None:
        """Calls ``callback`` in the loop, once, when a batch has run for ``longest`` seconds: the model hangs.

        The device's thread cannot be interrupted; only the end of its process ends it.
        """
        self._longest, self._overdue = longest, callback

    def allow_pictures(self, free: float) -> None:
        """Pictures may take ``free`` bytes while they are decoded, beside what they have already."""
        reserved = float(self._arena.decoding[:, Decoding.MEMORY].sum())
        self._arena.gauges[Gauge.DECODE_MEMORY] = free + reserved

    def stop(self) -> None:
        """Ends `serve` after the batch that runs. To be called in the loop, from a watched callback."""
        self._stopping = True

    def serve(self) -> None:
        """Runs until `stop`. Every submission gets exactly one reply unless its front-end has gone.

        Raises `DeviceFailed`, with work unanswered: the front-ends learn it from their links' end.
        """
        self.begin()
        try:
            while not self._stopping:
                self.step(self._poll_timeout())
        finally:
            self.end()

    def begin(self) -> None:
        """`serve` is this, `step` again and again, and `end`."""
        self._device.start()
        if self._threads:
            self._threads.start()
        self._selector.register(self._device, selectors.EVENT_READ, self._finish)
        if self._files:
            self._files.start()
            self._selector.register(self._files, selectors.EVENT_READ, self._collect_decoded_files)

    def end(self) -> None:
        """After what runs."""
        if self._files:
            self._files.stop()
        if self._threads:
            self._threads.stop()  # first: they tell the device of their ends
        self._device.stop()
        for front_end in self._front_ends.values():
            front_end.link.close()
        self._selector.close()

    def step(self, patience: float) -> None:
        """Waits for at most ``patience`` seconds for something to happen, and does what follows from it."""
        for key, _ in self._selector.select(patience):
            key.data()
        now = self._clock()
        self._answer_expired(now)
        self._dispatch(now)
        self._run_canary(now)
        self._arena.gauges[Gauge.QUEUE_DEPTH] = len(self._batcher)
        self._check_device(now)
        if now >= self._gauges_due:
            self._gauges_due = now + _GAUGES_EVERY
            self._flush_links()
            self._update_gauges(now)
        if now >= self._beat_due:
            self._beat_due = now + 1.0
            for heartbeat in self._heartbeats:
                heartbeat()

    def _check_device(self, now: float) -> None:
        since = float(self._arena.gauges[Gauge.BUSY_SINCE])
        if since and now - since > self._longest:
            self._longest = math.inf
            self._overdue(now - since)

    def _poll_timeout(self) -> float:
        """Seconds until something is due though nothing arrives."""
        now = self._clock()
        due = self._gauges_due
        deadline = self._batcher.next_deadline()
        if deadline is not None:
            due = min(due, deadline)
        return max(0.0, due - now)

    # What arrives

    def _receive_messages(self, front_end: FrontEnd) -> None:
        numbers = front_end.link.receive()
        if numbers is None:
            self._remove_frontend(front_end)
            return
        now = self._clock()
        for number in numbers:
            if number >= FILE:
                self._receive_file(front_end, number - FILE)
            elif number >= 0:
                self._admit(front_end, number, now)
            else:
                self._cancel(front_end, ~number)

    def _receive_file(self, front_end: FrontEnd, slot: int) -> None:
        if self._files is None:
            self._arena.record_outcome(slot, Outcome.FAILED)
            front_end.link.send((slot + FILE,))
            return
        front_end.files.add(slot)
        self._files.submit(slot)

    def _collect_decoded_files(self) -> None:
        """Files are pixels now, or are to be decoded by whoever sent them."""
        assert self._files is not None
        for slot, decoded in self._files.collect():
            front_end = next(one for one in self._front_ends.values() if slot in one.files)
            front_end.files.remove(slot)
            if not front_end.gone:
                self._arena.record_outcome(slot, Outcome.OK if decoded else Outcome.FAILED)
                front_end.link.send((slot + FILE,))
                continue
            self._arena.release(slot)
            self._detach_if_settled(front_end)
        self._reply_decoded_files()

    def _reply_decoded_files(self) -> None:
        waiting = sum(len(front_end.files) for front_end in self._front_ends.values())
        room = MOST_WAITING - waiting if self._files and self._files.open else 0
        self._arena.gauges[Gauge.FILES] = max(0, room)

    def _detach_if_settled(self, front_end: FrontEnd) -> None:
        if front_end.gone and not front_end.owed:
            del self._front_ends[front_end.number]

    def _admit(self, front_end: FrontEnd, slot: int, now: float) -> None:
        front_end.submitted.add(slot)
        self._batcher.add(Request(slot, self._arena.deadline(slot), now, self._arena.is_bulk(slot)))
        if self._canary.yields:
            self._canary.yields = False
            self._hurry()

    def _cancel(self, front_end: FrontEnd, slot: int) -> None:
        """The client has gone. A slot whose batch runs is answered with its batch."""
        if self._batcher.cancel(slot):
            self._reply([slot], Outcome.CANCELLED)

    def _remove_frontend(self, front_end: FrontEnd) -> None:
        """Takes back every slot of a front-end that died, but for those whose batch runs: `_finish` does."""
        log.info("front-end %d has gone", front_end.number)
        self._selector.unregister(front_end.link)
        front_end.link.close()
        front_end.gone = True
        self._arena.decoding[front_end.number, [Decoding.THREADS, Decoding.MEMORY]] = 0
        for slot in front_end.submitted:
            self._batcher.cancel(slot)
        front_end.submitted &= {slot for batch in self._running.values() for slot in batch.slots}
        for slot in self._arena.held_by(front_end.number):
            if slot not in front_end.submitted and slot not in front_end.files:
                self._arena.release(slot)
        self._detach_if_settled(front_end)

    # What leaves

    def _answer_expired(self, now: float) -> None:
        expired = [request.slot for request in self._batcher.expire(now)]
        if expired:
            self._reply(expired, Outcome.EXPIRED)

    def _dispatch(self, now: float) -> None:
        while len(self._batcher):
            threads = self._streams_for_next()
            # With images in streams, a batch would have to wait for all of them: the next one takes a stream as well.
            free = threads.free if threads else len(self._running) < self._device.in_flight
            if free and self._canary.is_due(threads is not None):
                self._run([], threads, now)
                continue
            requests = self._batcher.next_batch(now, 1 if threads else None) if free else []
            if not requests:
                return
            self._run(requests, threads, now)

    def _run_canary(self, now: float) -> None:
        """Nobody waits for it where nothing else is to be run."""
        if self._running or len(self._batcher) or self._stopping:
            return
        if self._threads and self._canary.is_due(True):
            self._run([], self._threads, now)
        elif self._canary.is_due(False):
            self._run([], None, now)
        elif self._canary.is_welcome(now):
            self._run([], None, now)
            self._canary.yields = True

    def _run(self, requests: list[Request], threads: StreamThreads | None, now: float) -> None:
        """Hands a batch to a stream or to the whole device; one without requests is the canary."""
        self._batches += 1
        wanted = [self._arena.wanted(request.slot) for request in requests]
        stream = threads.free.pop() if threads else None
        if not requests:
            self._canary.started(stream is not None)
        batch = self._running[self._batches] = Batch(self._batches, requests, wanted, stream, handed_over=now)
        self._publish_running()
        (threads or self._device).submit(batch)

    def _publish_running(self) -> None:
        oldest = next(iter(self._running.values()), None)
        self._arena.gauges[Gauge.BUSY_SINCE] = oldest.handed_over if oldest else 0.0
        self._arena.gauges[Gauge.RUNNING] = sum(len(batch.slots) for batch in self._running.values())

    def _streams_for_next(self) -> StreamThreads | None:
        """Where the next image runs if not in a batch: in a stream where others do, else where that is sooner."""
        if self._threads is None or self._streams is None:
            return None
        if self._running:
            in_streams = next(iter(self._running.values())).stream is not None
        else:
            in_streams = self._streams.sooner(len(self._batcher))
        return self._threads if in_streams else None

    def _finish(self) -> None:
        batch = self._device.collect()
        if batch is not None:
            self._answer(batch)
        if self._device.failed:
            raise DeviceFailed(self._device.failed)

    def _answer(self, batch: Batch) -> None:
        del self._running[batch.number]
        full = self._threads is not None and not self._threads.free
        if self._threads is not None and batch.stream is not None:
            self._threads.free.append(batch.stream)
        self._publish_running()
        in_stream, now = batch.stream is not None, self._clock()
        if batch.is_canary:
            self._canary.ended(batch.ran, in_stream, batch.finished - batch.started, now)
        else:
            self._canary.ran(batch.ran, in_stream, now)
        if not self._device.failed:
            self._dispatch(now)  # the device first: what is finished can wait for microseconds
        if isinstance(batch.error, DeviceFailed):
            self._batch_ran(batch)
            return  # the engine ends, and another one runs the same images
        outcome = Outcome.OK if batch.error is None else Outcome.FAILED
        size = len(batch.slots) - len(batch.late)
        for slot in batch.slots:
            done = Outcome.EXPIRED if slot in batch.late else outcome
            self._arena.record_finish(slot, batch.started, batch.finished, batch.number, size, done)
        if size:
            self._record_batch(batch, size, full)
            self._arena.gauges[Gauge.PASS] = self._load.seconds
        if size or batch.is_canary:
            self._busy_until = max(self._busy_until, batch.finished)
            self._batch_ran(batch)  # before the answers leave: whoever has one finds it counted
        self._return_slots(batch.slots)

    def _record_batch(self, batch: Batch, size: int, full: bool) -> None:
        """``full``: it ended with every stream at work."""
        if self._streams is not None and batch.stream is not None:
            self._load.record_stream(batch.finished - batch.started, self._streams.count, full)
        elif batch.finished > self._busy_until:  # not one whose answers took longer than a later one's
            # Of batches that overlap, each counts for as long as it had the device to itself.
            self._load.record_batch(size, batch.finished - max(batch.started, self._busy_until))

    def _reply(self, slots: list[int], outcome: Outcome) -> None:
        """Hands back what never ran."""
        for slot in slots:
            self._arena.record_outcome(slot, outcome)
        self._return_slots(slots)

    def _return_slots(self, slots: list[int]) -> None:
        returned = set(slots)
        for front_end in list(self._front_ends.values()):
            mine = front_end.submitted & returned
            if not mine:
                continue
            front_end.submitted -= mine
            if front_end.gone:
                for slot in mine:
                    self._arena.release(slot)
                self._detach_if_settled(front_end)
            else:
                front_end.link.send(mine)

    # What everyone may read

    def _flush_links(self) -> None:
        for front_end in self._front_ends.values():
            if front_end.link.backlog and not front_end.gone:
                front_end.link.flush()

    def _update_gauges(self, now: float) -> None:
        self._load.update(
            now,
            int(self._arena.arrivals.sum()),
            *self._arena.decoding.sum(axis=0)[: Decoding.MEMORY].tolist(),
        )
        gauges = self._arena.gauges
        gauges[Gauge.BUSY_RATIO] = self._load.busy_ratio
        gauges[Gauge.CAPACITY] = self._load.capacity
        gauges[Gauge.SATURATION] = self._load.saturation
        gauges[Gauge.ARRIVALS] = self._load.arrival_rate
        gauges[Gauge.DECODE_CAPACITY] = self._load.decode_capacity
        gauges[Gauge.DECODE_BUSY] = self._load.decode_busy
        self._reply_decoded_files()
        gauges[Gauge.MEMORY_USED], gauges[Gauge.MEMORY_TOTAL] = self._device.memory
