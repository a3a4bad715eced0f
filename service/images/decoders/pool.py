"""A front-end's decoders: assigns pictures, kills decoders that take too long, and replaces those that end.

Small pictures go to the next idle one of the ``quick`` decoders. A picture that needs more memory than `SMALL` comes
back undecoded, with the need. It then gets that memory from the budget that all front-ends share, or waits for it. A
picture that needs more than `_MUCH` gets a process of its own.

A decoder that is busy with one picture for long gets a lower priority, and another decoder takes its place among the
quick ones. The priority cannot be raised again, so the decoder ends after that picture. While every decoder works on
a picture that takes long, there is one decoder more.

A decoder is killed at the deadline of its picture, after more CPU seconds than any legitimate picture of that size
takes, and a moment after its client has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service import errors
from service.images.decoders import replies, wire
from service.images.decoders.cost import SMALL, Cost, largest
from service.images.decoders.decoder import DecoderHandle
from service.images.decoders.job import Job
from service.images.decoders.keeper import Keeper
from service.images.decoders.large import LargePictures, MemoryBudget
from service.images.decoders.picture import Picture, Recipe
from service.images.decoders.threads import Threads
from service.images.decoders.timers import Timers
from service.images.decoders.wire import Layout
from service.shared.writing import Ended, Work, Writing

log = logging.getLogger(__name__)

#: CPU seconds on one picture after which a decoder's priority is lowered. A photo of 24 megapixels takes 0.25.
_LONG = 0.4
#: CPU seconds that every decoder must have spent on its picture before another is started for the next one. It is CPU
#: time because more decoders would only share a processor that is short. A photo of 8 megapixels takes as much.
_HELD_UP = 0.05
#: Least number of decoders beyond the quick ones, for pictures that take long or much memory.
_MIN_SLOW = 4
#: Bytes above which a picture gets a process of its own, whose end certainly returns the memory.
_MUCH = 160 << 20
#: Seconds between two checks of busy decoders, and between two checks for memory that another front-end returned.
_TICK, _LOOK_AGAIN = 0.05, 0.01
#: Seconds that a decoder may go on after its client has gone: most pictures are done by then.
_GRACE = 0.25
#: Seconds without a start while pictures wait, after which the pool counts as stuck.
_STUCK = 5.0
#: Seconds until a decoder that failed to start or ended while idle is replaced: first pause, and the longest after
#: doubling.
_PAUSE, _MAX_PAUSE = 0.05, 5.0


class DecoderPool:
    """A `service.shared.writing.Decoders` of processes. Lives on one event loop, from `configure` on."""

    def __init__(
        self,
        keeper: Keeper,
        quick: int,
        memory: MemoryBudget,
        *,
        killed: Callable[[str, str], None] = lambda kind, reason: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes ``quick``, the number of decoders for small pictures.

        ``killed`` is called for each kill with the picture's format and the reason. ``lost`` is called when the
        keeper has ended: no further decoder can be started then.
        """
        self._keeper = keeper
        self._quick = quick
        self._memory = memory
        self._killed = killed
        self._lost = lost
        self._threads = Threads(1)
        self._recipe: Recipe | None = None
        self._layout = Layout(0, 0)
        self._largest = SMALL
        self._waiting: deque[Job] = deque()
        self._idle: list[DecoderHandle] = []
        self._all: set[DecoderHandle] = set()
        self._starting: deque[DecoderHandle] = deque()
        self._last_start = time.monotonic()
        """Monotonic time of the last moment at which a picture was begun or none waited."""
        self._finished_seconds = 0.0
        self._failures = 0
        self._timers = Timers()
        self._large = LargePictures(memory, lambda: self._timers.call_later(0.0, self._admit_large))
        self._ticking = self._retrying = False

    def __repr__(self) -> str:
        return (
            f"<DecoderPool {len(self._all)} decoders, {len(self._idle)} idle, {len(self._waiting)} waiting>"
        )

    # For the front-end

    def configure(self, recipe: Recipe, room: int) -> None:
        """Starts decoders for pictures of up to ``room`` bytes, prepared by ``recipe``.

        Called again for a new model, it keeps the decoders if their memory holds the new pixels: each picture brings
        its own recipe. Otherwise it replaces them.
        """
        if self._recipe is not None and self._layout.pixel_bytes >= wire.pixel_bytes(recipe):
            self._recipe = recipe
            return
        if self._recipe is None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._keeper.channel.fileno(), self._on_keeper_message)
        self._recipe = recipe
        self._layout = Layout(room, wire.pixel_bytes(recipe))
        self._largest = largest(recipe.max_pixels, room)
        for decoder in list(self._idle):
            self._drop(decoder)
        for decoder in self._all:
            decoder.single_use = True
        for _ in range(self._quick):
            self._start()

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> Writing:
        """Gives a `Picture` to a decoder, and any other work to a thread."""
        if not isinstance(work, Picture):
            return self._threads.begin(work, pixels, ended)
        job = Job(work, pixels, ended, self._on_abandoned)
        if len(work.data) > self._layout.room:
            job.end(errors.PayloadTooLarge(f"the image has more than {self._layout.room:,} bytes"))
            return job
        if not self._waiting:
            self._last_start = time.monotonic()
        self._waiting.append(job)
        self._dispatch()
        return job

    def submit(self, job: Callable[[], object], /) -> None:
        """Runs ``job`` in a thread."""
        self._threads.submit(job)

    @property
    def stuck(self) -> bool:
        """True if pictures wait and none was begun for `_STUCK` seconds."""
        return bool(self._waiting) and time.monotonic() - self._last_start > _STUCK

    @property
    def busy_seconds(self) -> float:
        """Seconds that decoders have spent on pictures so far, current ones included."""
        return self._finished_seconds + sum(decoder.seconds for decoder in self._all)

    def give_up(self, error: Callable[[], Exception]) -> None:
        """Ends all waiting jobs with ``error()`` and kills the decoders that are busy."""
        for job in [*self._waiting, *self._large.waiting]:
            job.end(error())
        self._waiting.clear()
        self._large.waiting.clear()
        for decoder in list(self._all):
            if decoder.job is not None:
                decoder.job.end(error())
                decoder.kill("drain")

    async def close(self) -> None:
        """Ends all decoders, busy or not, and the keeper."""
        self._timers.close()
        if self._recipe is not None:
            asyncio.get_running_loop().remove_reader(self._keeper.channel.fileno())
        for decoder in list(self._all):
            if decoder.job is not None:
                decoder.job.end(errors.InternalError("the front-end has ended"))
                decoder.kill("end")
            decoder.close()
        self._all.clear()
        self._idle.clear()
        self._keeper.close()
        await self._threads.close()

    # Who gets what

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if job.wanted:
                self._hand_over(self._idle.pop(), job)
            else:
                self._large.release(job)
        if not self._waiting:
            self._last_start = time.monotonic()

    def _hand_over(self, decoder: DecoderHandle, job: Job) -> None:
        if not decoder.take(job):
            self._waiting.appendleft(job)
            self._on_gone(decoder)
            return
        self._last_start = time.monotonic()
        self._schedule_tick()

    def _admit_large(self) -> None:
        """Lets large pictures go on while memory is found, in order of arrival."""
        while self._large:
            job = self._large.waiting[0]
            if job.wanted:
                single_use = job.memory > _MUCH
                if (single_use and not self._may_start_extra) or not self._large.acquire(job):
                    if self._drop_spare():
                        continue
                    self._schedule_retry()
                    break
            self._large.waiting.popleft()
            if not job.wanted:
                continue
            if single_use:
                self._hand_over(self._start(single_use=True), job)
            else:
                self._waiting.appendleft(job)
        self._dispatch()

    @property
    def _may_start_extra(self) -> bool:
        return len(self._all) < self._quick + max(_MIN_SLOW, self._quick)

    def _continues(self, decoder: DecoderHandle, needed: Cost) -> bool:
        """Returns True if the decoder went on at once with a picture that ``needed`` more than it was allowed."""
        job = decoder.job
        assert job is not None
        self._large.release(job)
        # A decoder is not trusted to claim more than the largest picture can need.
        job.cost = Cost(min(needed.memory, self._largest.memory), min(needed.seconds, self._largest.seconds))
        if not job.wanted or self._large or job.memory > _MUCH or not self._large.acquire(job):
            return False
        return decoder.retry()

    def _on_abandoned(self, job: Job) -> None:
        """Handles a ``job`` that nobody waits for any more: unqueues it, or kills its decoder."""
        decoder = next((one for one in self._all if one.job is job), None)
        if decoder is None:
            self._large.remove(job)
            return
        job.seconds = decoder.seconds
        if job.expired:
            decoder.kill("deadline")
        else:
            self._timers.call_later(_GRACE, lambda: decoder.kill("abandoned") if decoder.job is job else None)

    # What decoders do

    @property
    def _quick_count(self) -> int:
        return sum(not decoder.single_use for decoder in self._all)

    def _start_extra(self) -> bool:
        """Starts one decoder more than there are at rest. Returns False if there are too many or memory is short."""
        if not self._may_start_extra or not self._memory.acquire(SMALL.memory):
            return False
        self._start().reserved = SMALL.memory
        return True

    def _drop_spare(self) -> bool:
        """Ends an idle decoder that is not needed, to free its memory and place. Returns False if there is none."""
        if not self._idle or self._quick_count <= self._quick:
            return False
        spare = self._idle[0]
        other = next((one for one in self._all if one.reserved), spare)
        # each small decoder reserves as much as any other
        spare.reserved, other.reserved = other.reserved, spare.reserved
        self._drop(spare)
        return True

    def _drop(self, decoder: DecoderHandle) -> None:
        """Closes a decoder that is idle or has ended."""
        self._all.discard(decoder)
        if decoder in self._idle:
            self._idle.remove(decoder)
        decoder.close()
        if decoder.reserved:
            self._memory.release(decoder.reserved)
            decoder.reserved = 0

    def _start(self, *, single_use: bool = False) -> DecoderHandle:
        assert self._recipe is not None
        decoder = DecoderHandle(self._keeper, self._layout, self._recipe, self._on_reply, self._on_gone)
        decoder.single_use = single_use
        self._all.add(decoder)
        self._starting.append(decoder)
        if not single_use:
            self._idle.append(decoder)
            self._dispatch()
        return decoder

    def _on_reply(self, decoder: DecoderHandle, frame: bytes) -> None:
        try:
            result = replies.read(decoder, frame)
        except ValueError:
            decoder.kill("nonsense")
            return
        self._failures = 0
        if isinstance(result, Cost) and self._continues(decoder, result):
            return
        elapsed = decoder.seconds
        self._finished_seconds += elapsed
        job = decoder.release_job()
        assert job is not None
        job.seconds = (job.seconds or 0.0) + elapsed
        self._return_to_idle(decoder)
        if isinstance(result, Cost):
            if job.wanted:
                self._large.add(job)
                self._admit_large()
            else:
                self._large.release(job)
        else:
            self._large.release(job)
            job.end(result)
        self._dispatch()

    def _return_to_idle(self, decoder: DecoderHandle) -> None:
        spare = self._quick_count > self._quick and self._idle and not self._waiting
        if decoder.single_use or spare:  # the last idle decoder stays: the others may be busy for long
            self._drop(decoder)
        else:
            self._idle.append(decoder)

    def _on_gone(self, decoder: DecoderHandle) -> None:
        """Handles the end of a decoder's process, or its expulsion."""
        if decoder not in self._all:
            return
        busy = decoder.job is not None
        self._finished_seconds += decoder.seconds
        job = decoder.release_job()
        if job is not None:
            self._large.release(job)
            self._on_crash(decoder, job)
        self._drop(decoder)
        if not decoder.single_use:
            if busy:
                self._start_if_too_few()
            else:
                self._failures += 1
                pause = min(_PAUSE * 2 ** min(self._failures, 10), _MAX_PAUSE)
                self._timers.call_later(pause, self._start_if_too_few)
        self._admit_large()

    def _on_crash(self, decoder: DecoderHandle, job: Job) -> None:
        """Handles a ``job`` whose decoder has ended: once more after a first crash, else refused."""
        if decoder.killed is None:
            job.crashes += 1
            if job.crashes < 2 and job.wanted:  # the crash may have been another picture's fault
                queue = self._large.waiting if job.memory > SMALL.memory else self._waiting
                queue.appendleft(job)
                return
        reason = decoder.killed or "crash"
        self._killed(job.picture.format, reason)
        if reason == "effort":
            words = (
                f"the image takes more than {job.cost.seconds:.0f} s of CPU, which none of its size should"
            )
        else:
            words = "decoding the image ended the decoder: it is damaged in a way that its reader does not survive"
        job.end(errors.InvalidImage(words))

    def _start_if_too_few(self) -> None:
        if self._quick_count < self._quick:
            self._start()

    def _on_keeper_message(self) -> None:
        while True:
            try:
                received = self._keeper.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                asyncio.get_running_loop().remove_reader(self._keeper.channel.fileno())
                log.critical("the keeper of the decoders has gone")
                self._lost()
                return
            decoder = self._starting.popleft()
            decoder.started(received[0]["pid"])

    # Time

    def _schedule_tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._timers.call_later(_TICK, self._tick)

    def _tick(self) -> None:
        """Checks busy decoders for effort and length. Deadlines have timers of their own."""
        self._ticking = False
        if all(one.single_use or one.cpu_seconds > _HELD_UP for one in self._all):
            self._start_extra()
        for decoder in list(self._all):
            job = decoder.job
            if job is None or decoder.seconds < _TICK:
                continue
            spent = decoder.cpu_seconds
            if spent > job.cost.seconds:
                decoder.kill("effort")
            elif spent > _LONG and not decoder.single_use and self._start_extra():
                decoder.single_use = True
                decoder.yield_to_others()
        if any(decoder.job is not None for decoder in self._all):
            self._schedule_tick()

    def _schedule_retry(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._timers.call_later(_LOOK_AGAIN, self._retry_large)

    def _retry_large(self) -> None:
        self._retrying = False
        self._admit_large()
