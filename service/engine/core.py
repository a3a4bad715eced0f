"""The engine's loop: receives slot numbers from front-ends, runs batches on the device, and returns the numbers.

It runs in a process (production) or in a thread (tests, macOS). The loop's thread never computes, and `DeviceThread`
does nothing but compute, so that deadlines and cancellations are seen while a batch runs.

The next batch grows while the current one runs, and is closed when the device becomes free: then it holds all requests
that came meanwhile, and forming it takes microseconds. A device that copies and computes at the same time counts as
free while fewer than ``Runner.in_flight`` batches are on it.

A device with streams (a CPU whose cores each compute an image of their own) takes single images while it is busy: each
stream gets the next image as soon as it is free, so that no image waits for the end of a batch.
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
from service.engine.files import MAX_WAITING, FileDecoding
from service.engine.load import LoadMeter
from service.shared.batches import DeviceFailed
from service.shared.transport import Link

log = logging.getLogger(__name__)

#: Seconds between two updates of the gauges, and the longest sleep of the loop.
_GAUGES_EVERY = 0.25


class Source(Protocol):
    """An object with a descriptor that the loop can wait for."""

    def fileno(self) -> int: ...


@dataclass(eq=False)
class AttachedFrontEnd:
    """A front-end as the engine sees it: its number in the arena, its link, and its slots that the engine holds."""

    number: int
    link: Link
    submitted: set[int] = field(default_factory=set)
    files: set[int] = field(default_factory=set)
    """The slots whose files the engine decodes."""
    gone: bool = False

    @property
    def owed(self) -> bool:
        """True if the engine holds slots of it."""
        return bool(self.submitted or self.files)


class EngineCore:
    """The loop that owns the queue and the device. `attach` adds front-ends, `serve` runs it."""

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        batcher: Batcher,
        *,
        capacity: float,
        batch_ran: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
        device: DeviceThread | None = None,
        files: FileDecoding | None = None,
    ) -> None:
        """``device`` runs the batches of ``runner``; without one it is a thread of its own."""
        self._arena = arena
        self._batcher = batcher
        self._batch_ran = batch_ran
        self._clock = clock
        self._device = device or DeviceThread(runner, arena, clock)
        self._files = files
        self._streams = runner.streams
        self._threads = (
            StreamThreads(runner.streams, arena, clock, self._device.tell) if runner.streams else None
        )
        self._canary = Canary(clock())
        self._hurry = runner.hurry
        self._load = LoadMeter(clock(), capacity, batcher.max_batch_size)
        self._selector = selectors.DefaultSelector()
        self._front_ends: dict[int, AttachedFrontEnd] = {}
        self._running: dict[int, Batch] = {}
        """The batches on the device, by number, the oldest first."""
        self._busy_until = 0.0
        self._batches = 0
        self._gauges_due = 0.0
        self._heartbeats: list[Callable[[], object]] = []
        self._longest = math.inf
        self._overdue: Callable[[float], object] = lambda seconds: None
        self._beat_due = 0.0
        self._stopping = False
        arena.gauges[Gauge.MAX_BATCH_SIZE] = batcher.max_batch_size
        # The first request already finds a capacity.
        self._update_gauges(clock())

    def attach(self, number: int, link: Link) -> None:
        """Adds the front-end ``number`` (1…254, unused) at the other end of ``link``."""
        front_end = AttachedFrontEnd(number, link)
        self._front_ends[number] = front_end
        self._selector.register(link, selectors.EVENT_READ, lambda: self._receive_messages(front_end))

    def watch(self, source: Source, callback: Callable[[], None]) -> None:
        """Calls ``callback`` in the loop whenever ``source``, such as the supervisor's channel, is readable."""
        self._selector.register(source, selectors.EVENT_READ, callback)

    def every_second(self, heartbeat: Callable[[], object]) -> None:
        """Adds a function that the loop calls about once a second, as a sign that it turns."""
        self._heartbeats.append(heartbeat)

    def when_overdue(self, longest: float, callback: Callable[[float], object]) -> None:
        """Calls ``callback`` once in the loop when a batch has run for ``longest`` seconds, which means that it hangs.

        The device's thread cannot be interrupted; only the end of the process ends it.
        """
        self._longest, self._overdue = longest, callback

    def allow_pictures(self, free: float) -> None:
        """Publishes that decoding may take ``free`` bytes beside those that are reserved already."""
        reserved = float(self._arena.decoding[:, Decoding.MEMORY].sum())
        self._arena.gauges[Gauge.DECODE_MEMORY] = free + reserved

    def stop(self) -> None:
        """Ends `serve` after the running batches. Call it in the loop, from a callback."""
        self._stopping = True

    def serve(self) -> None:
        """Runs until `stop`. Every submission gets exactly one reply, unless its front-end is gone.

        Raises `DeviceFailed` with work unanswered; the front-ends see it by the end of their links.
        """
        self.begin()
        try:
            while not self._stopping:
                self.step(self._poll_timeout())
        finally:
            self.end()

    def begin(self) -> None:
        """Starts the device's threads and registers them with the loop."""
        self._device.start()
        if self._threads:
            self._threads.start()
        self._selector.register(self._device, selectors.EVENT_READ, self._finish)
        if self._files:
            self._selector.register(self._files, selectors.EVENT_READ, self._collect_decoded_files)

    def end(self) -> None:
        """Waits for running batches, stops the threads and closes all links."""
        if self._files:
            self._files.close()
        if self._threads:
            self._threads.stop()  # before the device, whose pipe their last batches write to
        self._device.stop()
        for front_end in self._front_ends.values():
            front_end.link.close()
        self._selector.close()

    def step(self, patience: float) -> None:
        """Runs one turn of the loop: waits for events for at most ``patience`` seconds and handles them."""
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
        """Seconds until the next step if nothing arrives."""
        now = self._clock()
        due = self._gauges_due
        deadline = self._batcher.next_deadline()
        if deadline is not None:
            due = min(due, deadline)
        return max(0.0, due - now)

    # What arrives

    def _receive_messages(self, front_end: AttachedFrontEnd) -> None:
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

    def _receive_file(self, front_end: AttachedFrontEnd, slot: int) -> None:
        if self._files is None or not self._files.open:
            self._arena.record_outcome(slot, Outcome.FAILED)
            front_end.link.send((slot + FILE,))
            return
        front_end.files.add(slot)
        self._files.submit(slot)

    def _collect_decoded_files(self) -> None:
        """Replies to front-ends whose files are decoded, or refused and thus theirs to decode."""
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
        if not self._files.open:
            self._selector.unregister(self._files)
        self._update_files_gauge()

    def _update_files_gauge(self) -> None:
        waiting = sum(len(front_end.files) for front_end in self._front_ends.values())
        room = MAX_WAITING - waiting if self._files and self._files.open else 0
        self._arena.gauges[Gauge.FILES] = max(0, room)

    def _detach_if_settled(self, front_end: AttachedFrontEnd) -> None:
        if front_end.gone and not front_end.owed:
            del self._front_ends[front_end.number]

    def _admit(self, front_end: AttachedFrontEnd, slot: int, now: float) -> None:
        front_end.submitted.add(slot)
        self._batcher.add(Request(slot, self._arena.deadline(slot), now, self._arena.is_bulk(slot)))
        if self._canary.yields:
            self._canary.yields = False
            self._hurry()

    def _cancel(self, front_end: AttachedFrontEnd, slot: int) -> None:
        """Removes the slot of a disconnected client from the queue. If its batch runs, it returns with its batch."""
        if self._batcher.cancel(slot):
            self._reply([slot], Outcome.CANCELLED)

    def _remove_frontend(self, front_end: AttachedFrontEnd) -> None:
        """Releases all slots of a front-end that ended; those whose batch runs are released after it (`_finish`)."""
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
        """Starts waiting requests while the device is free. There are four cases:

        1. Neither a stream nor the device is free: the end of a batch leads here again.
        2. The canary is due: it runs before any request.
        3. Requests may run: one image in a stream, or a batch on the whole device.
        4. The batcher lets a partial batch wait (``max_queue_delay``): `_poll_timeout` leads here again.
        """
        while len(self._batcher):
            threads = self._streams_for_next()
            free = bool(threads.free) if threads else len(self._running) < self._device.in_flight
            if not free:
                return
            if self._canary.is_due(threads is not None):
                self._run([], threads, now)
                continue
            requests = self._batcher.next_batch(now, 1 if threads else None)
            if not requests:
                return
            self._run(requests, threads, now)

    def _run_canary(self, now: float) -> None:
        """Runs the canary on an idle device, if it is due or the device has been idle for long enough."""
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
        """Hands a batch to a stream or to the whole device. A batch without requests is the canary."""
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
        """The stream threads if the next image should run alone; None if it should run in a batch.

        1. Images run in streams: alone as well, since a batch would have to wait for all of them.
        2. A batch runs: in the next batch.
        3. The device is idle: alone, if streams would finish the whole queue sooner than a batch.
        """
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
            self._dispatch(now)  # before the answers leave, so that the device is not idle meanwhile
        if isinstance(batch.error, DeviceFailed):
            self._batch_ran(batch)
            return  # the engine ends; the front-ends submit these images to another one
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
            self._batch_ran(batch)  # before the answers leave, so that an answered image is always counted
        self._return_slots(batch.slots)

    def _record_batch(self, batch: Batch, size: int, full: bool) -> None:
        """Records the load of a batch of ``size`` images. ``full``: it ended while all streams were busy."""
        if self._streams is not None and batch.stream is not None:
            self._load.record_stream(batch.finished - batch.started, self._streams.count, full)
        elif batch.finished > self._busy_until:
            # Batches may overlap: each counts for the time since the end of the one before it, and not at all if its
            # answers took longer than those of a later one.
            self._load.record_batch(size, batch.finished - max(batch.started, self._busy_until))

    def _reply(self, slots: list[int], outcome: Outcome) -> None:
        """Returns slots that never ran, with their outcome."""
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
        self._update_files_gauge()
        gauges[Gauge.MEMORY_USED], gauges[Gauge.MEMORY_TOTAL] = self._device.memory
