"""Random histories of several engines, switches and deaths in any order, on a virtual clock: `machine.py` with more
than one engine.

A version of the model has one engine or two. Another version is started beside it, shown on the board, kept, shown
again, let go; engines are killed at any moment and started again. Clients, arenas, links, cores, the choice of an
engine, the board and the front-ends' models are the production code.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from numpy.typing import NDArray

from service.api.served import Models, Served
from service.engine.arena import Arena
from service.engine.batcher import Batcher
from service.engine.client import EngineClient, SlotAnswer
from service.engine.core import EngineCore
from service.errors import DeadlineExceeded, EngineFailed, InvalidImage, Overloaded
from service.shared.board import Board
from service.shared.transport import Link, socket_pair
from tests.engine.histories import Counted
from tests.engine.machine import RARELY
from tests.engine.virtual import (
    GEOMETRY,
    GEOMETRY_IMAGE,
    MOST,
    SLOTS,
    Decodes,
    ManualDevice,
    VirtualLoop,
)
from tests.fakes import FakeRunner, VirtualClock, fingerprint

FRONT_ENDS = 2
_ROUNDS = 300
#: How far the answers of two versions are apart.
_APART = 1000.0


@dataclass(eq=False)
class Engine:
    version: int
    arena: Arena
    core: EngineCore
    device: ManualDevice


class FrontEnd(Decodes):
    """As much of a front-end as asks engines."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        self.models = models
        self.leaving: list[Served] = []


@dataclass(eq=False)
class Asked:
    """One request, and what may become of it."""

    image: NDArray[np.uint8]
    deadline: float
    version: int = 0
    """Which answered when it came."""
    task: asyncio.Task[SlotAnswer] | None = None
    hung_up: bool = False
    deaths: int = 0
    """Engines of its version that died while it was on its way."""


class Fleet(Counted):
    """The rules are what users, operators, kernels and time may do; the invariants are what the service promises."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.loop = VirtualLoop(self.clock)
        self.board = Board()
        self.front_ends = [FrontEnd(Models(self.board)) for _ in range(FRONT_ENDS)]
        self.engines: list[Engine] = []
        self.asked: list[Asked] = []
        self.images = self.numbers = self.versions = 0
        self.current = self.kept = 0
        self.missing: list[int] = []
        """Versions of engines that have died and are to be started again."""
        self.size: dict[int, int] = {}
        """How many engines each version has, dead ones too."""
        self.current = self.begin_version(1)
        self.board.show(0, self.current)

    # What there is

    def begin_version(self, engines: int) -> int:
        self.versions += 1
        self.size[self.versions] = engines
        for _ in range(engines):
            self.start_engine(self.versions)
        return self.versions

    def start_engine(self, version: int, front_ends: list[FrontEnd] | None = None) -> None:
        arena = Arena.create(GEOMETRY)
        runner = FakeRunner(max_batch_size=MOST, offset=version * _APART)
        device = ManualDevice(runner, arena, self.clock)
        batcher = Batcher(MOST, max_bulk_batch_size=1)
        core = EngineCore(runner, arena, batcher, capacity=10.0, clock=self.clock, device=device)
        core.begin()
        self.engines.append(Engine(version, arena, core, device))
        for front_end in self.front_ends if front_ends is None else front_ends:
            self.join(front_end, self.engines[-1])

    def join(self, front_end: FrontEnd, engine: Engine) -> None:
        served = front_end.models.get(0, engine.version)
        if served is None:
            card: Any = SimpleNamespace(name=f"version {engine.version}")
            client = EngineClient(self.clock, threads=1)
            served = front_end.models.add(Served(0, engine.version, card, client, card))
        ours, theirs = socket_pair()
        self.numbers = self.numbers % 254 + 1
        number, client = self.numbers, served.client
        engine.core.attach(number, Link(theirs))

        async def attach() -> None:
            client.attach(Arena(os.dup(engine.arena.descriptor), GEOMETRY), Link(ours), number)

        self.loop.run_until_complete(attach())

    async def one(self, asked: Asked, front_end: FrontEnd) -> SlotAnswer:
        """What a route does: the version of the moment, to the request's end."""
        served = front_end.models.current()
        assert served is not None, "no version answers"
        assert served.version == asked.version, "a request came to another version than the board shows"
        served.uses += 1
        try:

            def write(pixels: NDArray[np.uint8]) -> None:
                if asked.image[0, 0, 0] == 255:
                    raise InvalidImage("damaged")
                pixels[...] = asked.image

            with served.client.acquire(asked.deadline) as slot:
                await slot.fill(front_end, write, asked.deadline)
                return await slot.answer(asked.deadline, 10)
        finally:
            served.uses -= 1

    @property
    def running(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.task is not None and not asked.task.done()]

    def turn(self) -> None:
        for engine in self.engines:
            engine.core.step(0)
        self.loop.turn()
        self.let_go()

    def let_go(self) -> None:
        """What `service.frontend.engines.JoinedEngines.leave` and the pool do."""
        for front_end in self.front_ends:
            for served in list(front_end.leaving):
                if served.idle:
                    front_end.models.remove(served)
                    front_end.leaving.remove(served)
        asked_for = {served.version for front_end in self.front_ends for served in front_end.models.all}
        for engine in [one for one in self.engines if one.version not in asked_for]:
            self.loop.turn()
            engine.core.step(0)
            engine.core.step(0)
            if engine.device.given is None:
                assert engine.arena.free == SLOTS, "a version was let go with somebody's image"
                self.end(engine)

    def end(self, engine: Engine) -> None:
        self.engines.remove(engine)
        engine.core.end()
        engine.arena.close()

    # What may happen

    @rule(
        which=st.integers(0, FRONT_ENDS - 1),
        patience=st.sampled_from([30.0, 1.0, 0.3, 0.05]),
        damaged=st.integers(0, 9),
    )
    def arrive(self, which: int, patience: float, damaged: int) -> None:
        self.images += 1
        image = np.random.default_rng(self.images).integers(0, 255, GEOMETRY_IMAGE, np.uint8)
        image[0, 0, 0] = 255 if not damaged else image[0, 0, 0]
        asked = Asked(image, self.clock.now + patience, self.current)
        served = any(engine.version == self.current for engine in self.engines)
        asked.deaths = 0 if served else 2  # without any engine it is refused at once
        asked.task = self.loop.create_task(self.one(asked, self.front_ends[which]))
        self.asked.append(asked)
        self.loop.turn()
        if served and asked.task.done() and not asked.task.cancelled():
            error = asked.task.exception()
            assert error is None or isinstance(error, Overloaded), f"refused for a switch: {error!r}"

    @rule(data=st.data())
    @precondition(lambda self: any(front_end.jobs for front_end in self.front_ends))
    def decode(self, data: st.DataObject) -> None:
        front_end = data.draw(st.sampled_from([one for one in self.front_ends if one.jobs]))
        front_end.jobs.pop(0)()
        self.loop.turn()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.turn()

    @rule()
    def engines_turn(self) -> None:
        self.turn()

    @rule(data=st.data(), during=st.sampled_from([0.0, 0.05, 0.3]))
    @precondition(lambda self: any(engine.device.given is not None for engine in self.engines))
    def device_finishes(self, data: st.DataObject, during: float) -> None:
        busy = [engine for engine in self.engines if engine.device.given is not None]
        data.draw(st.sampled_from(busy)).device.finish(0.0, during)
        self.turn()

    @rule(data=st.data(), rarely=st.integers(0, 3))
    @precondition(lambda self: bool(self.running))
    def hang_up(self, data: st.DataObject, rarely: int) -> None:
        if rarely:
            return
        asked = data.draw(st.sampled_from(self.running))
        assert asked.task is not None
        asked.hung_up = asked.task.cancel()
        self.loop.turn()

    @rule(engines=st.integers(1, 2), rarely=st.integers(0, RARELY // 2))
    def switch(self, engines: int, rarely: int) -> None:
        """Another version is ready, and answers from now on; the one before it is kept."""
        if rarely:
            return
        version = self.begin_version(engines)
        if self.kept:
            self.retire(self.kept)
        self.show(version)

    def show(self, version: int) -> None:
        self.kept, self.current = self.current, version
        self.board.show(0, version)
        if sum(engine.version == self.kept for engine in self.engines) < self.size[self.kept]:
            self.retire(self.kept)  # an engine has died: there is nothing to go back to at once
            self.kept = 0

    @rule()
    @precondition(lambda self: bool(self.kept))
    def roll_back(self) -> None:
        self.show(self.kept)

    @rule(rarely=st.integers(0, 3))
    @precondition(lambda self: bool(self.kept))
    def keep_no_longer(self, rarely: int) -> None:
        if not rarely:
            self.retire(self.kept)
            self.kept = 0
            self.turn()

    def retire(self, version: int) -> None:
        for front_end in self.front_ends:
            served = front_end.models.get(0, version)
            if served is not None:
                front_end.leaving.append(served)
        self.let_go()

    @rule(data=st.data(), rarely=st.integers(0, RARELY // 2))
    @precondition(lambda self: bool(self.engines))
    def engine_is_killed(self, data: st.DataObject, rarely: int) -> None:
        if rarely:
            return
        engine = data.draw(st.sampled_from(self.engines))
        self.end(engine)
        for asked in self.running:
            asked.deaths += asked.version == engine.version
        self.missing.append(engine.version)
        if engine.version == self.kept:
            self.retire(self.kept)
            self.kept = 0
        self.loop.turn()
        self.let_go()

    @rule()
    @precondition(lambda self: bool(self.missing))
    def engine_comes_back(self) -> None:
        """One that has left comes back for those who wait for it."""
        self.turn()
        version = self.missing.pop()
        holders = [one for one in self.front_ends if one.models.get(0, version) is not None]
        if holders:
            self.start_engine(version, holders)
        self.turn()

    # What is promised

    @invariant()
    def whoever_was_answered_was_answered_rightly(self) -> None:
        self.count()
        self.loop.turn()
        for asked in list(self.asked):
            task = asked.task
            assert task is not None
            if not task.done():
                assert self.clock.now < asked.deadline, "504 is overdue"
                continue
            self.asked.remove(asked)
            self.judge(asked, task)

    def judge(self, asked: Asked, task: asyncio.Task[SlotAnswer]) -> None:
        if task.cancelled():
            assert asked.hung_up
            return
        error = task.exception()
        if error is None:
            expected = fingerprint(asked.image, 10) + np.float32(asked.version * _APART)
            assert (task.result().result == expected).all(), "another's answer, or another version's"
        elif isinstance(error, DeadlineExceeded):
            assert self.clock.now >= asked.deadline, "expired before its time"
        elif isinstance(error, InvalidImage):
            assert asked.image[0, 0, 0] == 255
        elif isinstance(error, EngineFailed):
            assert asked.deaths > 1, "lost to the death of one engine"
        else:
            assert isinstance(error, Overloaded), error

    @invariant()
    def the_board_s_version_can_be_asked_in_every_front_end(self) -> None:
        for front_end in self.front_ends:
            served = front_end.models.current()
            assert served is not None
            assert served not in front_end.leaving
            living = sum(engine.version == self.current for engine in self.engines)
            assert len(served.client.connections) == living

    def teardown(self) -> None:
        try:
            self.everything_comes_to_its_end()
        finally:
            self.clean_up()

    def everything_comes_to_its_end(self) -> None:
        """Everybody is answered, every slot is free again, and only what was not let go is there."""
        while self.missing:
            self.engine_comes_back()
        for _ in range(_ROUNDS):
            for front_end in self.front_ends:
                while front_end.jobs:
                    front_end.jobs.pop(0)()
            self.turn()
            for engine in self.engines:
                if engine.device.given is not None:
                    engine.device.finish()
            self.turn()
            busy = any(engine.device.given is not None for engine in self.engines)
            if not self.running and not busy and not any(one.jobs for one in self.front_ends):
                break
            self.clock.advance(0.005)
        for _ in range(3):
            self.turn()
        assert not self.running, "requests without an answer"
        self.whoever_was_answered_was_answered_rightly()
        assert {engine.version for engine in self.engines} <= {self.current, self.kept}, (
            "a version was not let go"
        )
        for engine in self.engines:
            assert engine.arena.free == SLOTS, f"{SLOTS - engine.arena.free} slots were lost"
        for front_end in self.front_ends:
            assert not front_end.leaving
            assert all(served.idle for served in front_end.models.all)

    def clean_up(self) -> None:
        for asked in self.asked:
            assert asked.task is not None
            if asked.task.done() and not asked.task.cancelled():
                asked.task.exception()
            asked.task.cancel()
        self.loop.turn()
        for front_end in self.front_ends:
            for served in front_end.models.all:
                served.client.detach()
        for engine in list(self.engines):
            self.end(engine)
        self.loop.turn()
        self.loop.close()
