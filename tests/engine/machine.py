"""Random histories of a whole service without its HTTP: clients, arena, links, core, batcher, on a virtual clock.

Everything is the production code but the clock, the device (which runs a batch when told to, with a model that
answers a function of the pixels) and the threads that decode (jobs that run when told to). So one history can
hold what no real machine would repeat: a hang-up between two instructions of a decode, a deadline at the moment of
an answer, a front-end that is killed while its batch runs. `test_machine.py` runs it; `make drill` for longer.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.batcher import Batcher
from service.engine.client import EngineClient, SlotAnswer
from service.engine.core import EngineCore
from service.errors import DeadlineExceeded, InternalError, InvalidImage, Overloaded
from service.models.watch import Watch
from service.shared.batches import DeviceFailed
from service.shared.transport import Link, socket_pair
from tests.engine.histories import Counted
from tests.engine.virtual import (
    GEOMETRY,
    GEOMETRY_IMAGE,
    MOST,
    SLOTS,
    Decodes,
    ManualDevice,
    MortalArena,
    VirtualLoop,
)
from tests.fakes import WRONG, FakeRunner, VirtualClock, fingerprint

FRONT_ENDS = 2
#: Passes between two looks at the canary: few, so that a short history has some.
CANARY_EVERY = 4
#: What ends much at once comes once in so many times that it could: or nothing would ever get far.
RARELY = 8
#: More work than any history leaves behind.
_ROUNDS = 200


@dataclass(eq=False)
class Asked:
    """One request, and what may become of it."""

    image: NDArray[np.uint8]
    front_end: FrontEnd
    deadline: float
    bulk: bool = False
    task: asyncio.Task[SlotAnswer] | None = None
    hung_up: bool = False
    abandoned: bool = False
    """Its front-end was killed: nobody waits for it."""
    deaths: int = 0
    """Engines that died while it was on its way."""


class FrontEnd(Decodes):
    def __init__(self, number: int, client: EngineClient, arena: MortalArena, link: Link) -> None:
        super().__init__()
        self.number, self.client, self.arena, self.link = number, client, arena, link


class Service(Counted):
    """The rules are what users, kernels and time may do; the invariants are what the service promises."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.loop = VirtualLoop(self.clock)
        self.front_ends: list[FrontEnd] = []
        self.asked: list[Asked] = []
        self.images = 0
        self.numbers = 0
        self.failing: Exception | None = None
        self.may_fail = False
        self.start_engine()

    # What there is

    def start_engine(self) -> None:
        self.arena = Arena.create(GEOMETRY)
        self.runner = FakeRunner(max_batch_size=MOST, watch=Watch(["fake"], CANARY_EVERY))
        self.glitches = 0
        self.batcher = batcher = Batcher(MOST, max_bulk_batch_size=1)
        self.device = ManualDevice(self.runner, self.arena, self.clock)
        self.core = EngineCore(
            self.runner, self.arena, batcher, capacity=10.0, clock=self.clock, device=self.device
        )
        self.device.waiting = lambda: [*batcher._queue.waiting.values(), *batcher._bulk.waiting.values()]
        self.core.begin()
        clients = [front_end.client for front_end in self.front_ends]
        self.front_ends = []
        for index in range(FRONT_ENDS):
            self.start_front_end(clients[index] if clients else None)

    def start_front_end(self, client: EngineClient | None = None) -> None:
        ours, theirs = socket_pair()
        self.numbers = self.numbers % 254 + 1
        arena = MortalArena(os.dup(self.arena.descriptor), GEOMETRY)
        client = client or EngineClient(self.clock, threads=1)
        self.core.attach(self.numbers, Link(theirs))
        front_end = FrontEnd(self.numbers, client, arena, Link(ours))

        async def attach() -> None:
            client.attach(arena, front_end.link, self.numbers)

        self.loop.run_until_complete(attach())
        self.front_ends.append(front_end)

    async def one(self, asked: Asked) -> SlotAnswer:
        """What `service.api.admission.Admission.infer` does."""
        front_end, arena = asked.front_end, self.arena

        def write(pixels: NDArray[np.uint8]) -> None:
            self.mid_write(asked)
            if self.arena is arena and not arena.owners[slot.number]:
                self.free_while_written = True
            if asked.image[0, 0, 0] == 255:
                raise InvalidImage("damaged")
            pixels[...] = asked.image

        with front_end.client.acquire(asked.deadline, asked.bulk) as slot:
            await slot.fill(front_end, write, asked.deadline)
            return await slot.answer(asked.deadline, 10)

    def mid_write(self, asked: Asked) -> None:
        """Something happens while a thread is in the middle of a decode."""
        if self.meanwhile == "hang-up" and asked.task is not None:
            self.cancel(asked)
        elif self.meanwhile == "time":
            self.clock.advance(1.0)
        if self.meanwhile != "nothing":
            self.loop.turn()
            self.turn_engine()

    meanwhile = "nothing"
    free_while_written = False

    def cancel(self, asked: Asked) -> None:
        assert asked.task is not None
        if not asked.task.done():
            asked.hung_up = asked.task.cancel()

    def turn_engine(self) -> None:
        try:
            self.core.step(0)
        except DeviceFailed:
            assert self.glitches > 1, "an engine was replaced whose device is well"
            self.replace_engine()
            self.core.step(0)

    @property
    def running(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.task is not None and not asked.task.done()]

    # What may happen

    @rule(
        which=st.integers(0, FRONT_ENDS - 1),
        patience=st.sampled_from([30.0, 1.0, 1.0, 0.3, 0.05, 0.0]),
        damaged=st.integers(0, 9),
        bulk=st.booleans(),
    )
    def arrive(self, which: int, patience: float, damaged: int, bulk: bool) -> None:
        self.images += 1
        image = np.random.default_rng(self.images).integers(0, 255, GEOMETRY_IMAGE, np.uint8)
        image[0, 0, 0] = 255 if not damaged else image[0, 0, 0]
        asked = Asked(image, self.front_ends[which], self.clock.now + patience, bulk)
        idle = self.arena.free == SLOTS
        asked.task = self.loop.create_task(self.one(asked))
        self.asked.append(asked)
        self.loop.turn()
        if idle:
            refused = asked.task.done() and isinstance(asked.task.exception(), Overloaded)
            assert not refused, "refused while nothing else was there"

    @rule(
        data=st.data(),
        meanwhile=st.sampled_from(["nothing", "nothing", "nothing", "hang-up", "time", "turn"]),
    )
    @precondition(lambda self: any(front_end.jobs for front_end in self.front_ends))
    def decode(self, data: st.DataObject, meanwhile: str) -> None:
        front_end = data.draw(st.sampled_from([one for one in self.front_ends if one.jobs]))
        self.meanwhile = meanwhile
        front_end.jobs.pop(0)()
        self.meanwhile = "nothing"
        self.loop.turn()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.turn()

    @rule()
    def engine_turns(self) -> None:
        quiet = self.clock.now - self.core._canary._quiet_since
        self.turn_engine()
        assert self.device.given is not None or not len(self.batcher), "someone waits for a free device"
        assert self.device.given is not None or quiet < self.device.patience, "nobody looks at an idle device"
        self.loop.turn()

    @rule(
        before=st.sampled_from([0.0, 0.0, 0.1]),
        during=st.sampled_from([0.0, 0.05, 0.3]),
        fails=st.integers(0, 9),
    )
    @precondition(lambda self: self.device.given is not None)
    def device_finishes(self, before: float, during: float, fails: int) -> None:
        self.runner.error = None if fails else RuntimeError("a defect")
        self.may_fail = self.may_fail or not fails
        self.device.finish(before, during)
        self.turn_engine()
        self.loop.turn()

    @rule(
        which=st.integers(0, FRONT_ENDS - 1),
        images=st.integers(1, 2 * CANARY_EVERY),
        rarely=st.integers(0, RARELY),
    )
    def some_come_one_by_one(self, which: int, images: int, rarely: int) -> None:
        """Each when the one before is answered, with everything that was begun already."""
        for _ in range(images if rarely == RARELY else 0):
            self.arrive(which, 30.0, 1, False)
            self.everything_goes_on()

    @rule(data=st.data(), rarely=st.integers(0, RARELY))
    @precondition(lambda self: bool(self.running))
    def hang_up(self, data: st.DataObject, rarely: int) -> None:
        if rarely < RARELY // 2:
            return
        self.cancel(data.draw(st.sampled_from(self.running)))
        self.loop.turn()

    @rule(which=st.integers(0, FRONT_ENDS - 1), rarely=st.integers(0, RARELY))
    def front_end_is_killed(self, which: int, rarely: int) -> None:
        if rarely < RARELY:
            return
        front_end = self.front_ends.pop(which)
        front_end.arena.dead = True
        front_end.jobs.clear()
        (connection,) = front_end.client.connections
        self.loop.remove_reader(front_end.link.fileno())
        front_end.link.close()
        for asked in self.running:
            if asked.front_end is front_end:
                asked.abandoned = True
                connection.failed = True  # nothing of it is sent any more
                assert asked.task is not None
                asked.task.cancel()
        self.loop.turn()
        front_end.arena.close()
        self.start_front_end()

    @rule(rarely=st.integers(0, RARELY), passes=st.sampled_from([1, 1, float("inf")]))
    def device_goes_wrong(self, rarely: int, passes: float) -> None:
        """For a pass, or from now on: which is what two passes are worth."""
        if rarely < RARELY - 1:
            return
        self.runner.wrong = max(self.runner.wrong, passes)
        self.glitches += 1 if passes == 1 else 2
        self.ever_wrong = True

    ever_wrong = False

    @rule(rarely=st.integers(0, RARELY), away=st.sampled_from([0.0, 0.0, 0.5, 2.0]))
    def engine_is_killed(self, rarely: int, away: float) -> None:
        if rarely == RARELY:
            self.replace_engine(away)

    def replace_engine(self, away: float = 0.0) -> None:
        """The next one comes after ``away`` seconds."""
        for asked in self.running:
            asked.deaths += 1
        self.end_engine()
        self.loop.turn()
        self.clock.advance(away)
        self.a_deadline_is_answered_at_its_moment()
        before = self.front_ends
        self.start_engine()
        self.loop.turn()
        for old, new in zip(before, self.front_ends, strict=True):
            new.jobs = old.jobs
            for asked in self.running:
                if asked.front_end is old:
                    asked.front_end = new

    def end_engine(self) -> None:
        self.core.end()
        self.arena.close()

    # What is promised

    @invariant()
    def every_slot_is_free_or_somebody_s(self) -> None:
        self.count()
        living = {front_end.number for front_end in self.front_ends}
        owners = self.arena.owners.tolist()
        in_batch = set(self.device.given.slots) if self.device.given else set()
        for slot, owner in enumerate(owners):
            dead = bool(owner) and owner not in living
            # Until the engine's next turn it has not seen a death; what runs comes back with its batch.
            assert not self.free_while_written, "a slot is free while a thread writes into it"
            assert not dead or slot in in_batch or self.core_has_mail(owner), f"slot {slot} is lost"

    def core_has_mail(self, number: int) -> bool:
        """Whether the engine has not buried that front-end yet."""
        return number in self.core._front_ends

    @invariant()
    def whoever_was_answered_was_answered_rightly(self) -> None:
        still = []
        for asked in self.asked:
            task = asked.task
            assert task is not None
            if not task.done():
                still.append(asked)
            else:
                self.judge(asked, task)
        self.asked = still

    def judge(self, asked: Asked, task: asyncio.Task[SlotAnswer]) -> None:
        if task.cancelled():
            assert asked.hung_up or asked.abandoned
            return
        error = task.exception()
        if asked.abandoned:
            return
        if error is None:
            away = task.result().result - fingerprint(asked.image, 10)
            assert (away == 0).all() or (self.ever_wrong and (away == WRONG).all()), "another's answer"
        elif isinstance(error, DeadlineExceeded):
            assert self.clock.now >= asked.deadline, "expired before its time"
        elif isinstance(error, InternalError):
            assert self.may_fail
        elif isinstance(error, InvalidImage):
            assert asked.image[0, 0, 0] == 255
        else:
            assert isinstance(error, Overloaded) or asked.deaths > 1, f"lost to a dead engine: {error!r}"

    @invariant()
    def a_device_that_is_wrong_is_found(self) -> None:
        assert self.runner.wrongs <= CANARY_EVERY + self.glitches, "wrong answers go on"

    @invariant()
    def a_deadline_is_answered_at_its_moment(self) -> None:
        """Whatever the device does. (The loop has turned since the clock moved.)"""
        self.loop.turn()
        for asked in self.running:
            assert self.clock.now < asked.deadline or asked.abandoned, "504 is overdue"

    def teardown(self) -> None:
        try:
            self.everything_comes_to_its_end()
        finally:
            self.clean_up()

    def everything_comes_to_its_end(self) -> None:
        """Everybody is answered and every slot is free again once all that was begun has ended."""
        self.everything_goes_on()
        assert not self.running, "requests without an answer"
        self.whoever_was_answered_was_answered_rightly()
        assert self.arena.free == SLOTS, f"{SLOTS - self.arena.free} slots were lost"
        for front_end in self.front_ends:
            assert front_end.client.pending == 0
            (connection,) = front_end.client.connections
            assert connection.decoding == 0

    def everything_goes_on(self) -> None:
        """Until nobody waits and nothing runs."""
        for _ in range(_ROUNDS):
            for front_end in self.front_ends:
                while front_end.jobs:
                    front_end.jobs.pop(0)()
            self.loop.turn()
            self.turn_engine()
            if self.device.given is not None:
                self.device.finish()
            self.loop.turn()
            if self.device.given is None and not any(front_end.jobs for front_end in self.front_ends):
                if not self.running:
                    break
                self.clock.advance(0.005)  # somebody waits for a place
        self.turn_engine()
        self.loop.turn()

    def clean_up(self) -> None:
        for asked in self.asked:
            assert asked.task is not None
            if asked.task.done() and not asked.task.cancelled():
                asked.task.exception()  # or asyncio says on standard error that nobody asked
            asked.task.cancel()
        self.loop.turn()
        for front_end in self.front_ends:
            front_end.client.detach()
        self.end_engine()
        self.loop.turn()
        self.loop.close()
