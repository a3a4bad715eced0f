"""Random histories of starts, deaths, hangs, switches and signals, in any order, on a virtual clock."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.engine.histories import Counted
from tests.supervisor.lifecycle.world import Engine, FrontEnd, Process, World

#: What ends much at once comes once in so many times that it could: or nothing would ever get far.
RARELY = 10
#: Rounds, and the seconds of each, in which everything comes right where nothing more goes wrong.
_ROUNDS, _STRIDE = 15, 10.0


class Histories(Counted):
    """The rules are what parts, operators, clients and time may do; `World` knows what is promised."""

    world: World

    @initialize(
        front_ends=st.integers(1, 2),
        devices=st.integers(1, 2),
        models=st.integers(1, 2),
        standby=st.booleans(),
        shadow=st.booleans(),
        keep=st.sampled_from([0.0, 60_000.0]),
        delay=st.sampled_from([0.0, 3_000.0]),
        rounds=st.sampled_from([0, 3, 3]),
        misfortune=st.sampled_from([0, 0, 0, 5]),
    )
    def start(
        self,
        front_ends: int,
        devices: int,
        models: int,
        standby: bool,
        shadow: bool,
        keep: float,
        delay: float,
        rounds: int,
        misfortune: int,
    ) -> None:
        self.world = World(
            front_ends=front_ends,
            devices=devices,
            models=models,
            shadow=shadow,
            standby=standby,
            keep_previous_ms=keep,
            drain_delay_ms=delay,
        )
        self.misfortune = misfortune
        self.orders = 0
        for _ in range(rounds):
            self.everybody_gets_on()

    # Who there is

    @property
    def running(self) -> list[Process]:
        return [one for one in self.world.processes if not one.dead and not one.stuck]

    @property
    def front_ends(self) -> list[FrontEnd]:
        return [one for one in self.running if isinstance(one, FrontEnd)]

    @property
    def engines(self) -> list[Engine]:
        return [one for one in self.running if isinstance(one, Engine)]

    @property
    def loading(self) -> list[Engine]:
        return [one for one in self.engines if not one.ready and not one.failed and one.trusted]

    @property
    def serving(self) -> list[Engine]:
        return [one for one in self.engines if one.ready and one.trusted]

    @property
    def open(self) -> bool:
        return not self.world.over

    # What parts do

    @rule(data=st.data())
    @precondition(lambda self: self.open and self.loading)
    def engine_gets_on(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from(self.loading))
        if engine.warming:
            self.world.ready(engine)
        else:
            engine.warming = data.draw(st.booleans())
            self.world.said(
                engine, "phase", state="warming" if engine.warming else "loading", detail="weights"
            )

    @rule(data=st.data())
    @precondition(lambda self: self.open and any(not all(one.links.values()) for one in self.front_ends))
    def front_end_joins(self, data: st.DataObject) -> None:
        front_end = data.draw(
            st.sampled_from([one for one in self.front_ends if not all(one.links.values())])
        )
        for engine in front_end.links:
            front_end.links[engine] = True
        self.world.beat(front_end)

    @rule(data=st.data(), rarely=st.integers(0, RARELY))
    @precondition(lambda self: self.open and self.front_ends)
    def front_end_loses_a_link(self, data: st.DataObject, rarely: int) -> None:
        """It has no descriptors left for what the supervisor sent, and says so or does not know it."""
        front_end = data.draw(st.sampled_from(self.front_ends))
        unjoined = [engine for engine, joined in front_end.links.items() if not joined]
        if not rarely and unjoined:
            del front_end.links[unjoined[0]]
            if data.draw(st.booleans()):
                self.world.said(front_end, "again")

    @rule(data=st.data())
    @precondition(lambda self: self.open and any(one.leaving for one in self.front_ends))
    def front_end_leaves_a_version(self, data: st.DataObject) -> None:
        front_end = data.draw(st.sampled_from([one for one in self.front_ends if one.leaving]))
        version = front_end.leaving.pop()
        self.world.said(front_end, "left", model=0, version=version)

    @rule(data=st.data(), rarely=st.integers(0, RARELY), code=st.sampled_from([None, "SIGKILL", "1"]))
    @precondition(lambda self: self.open and self.running)
    def somebody_dies(self, data: st.DataObject, rarely: int, code: str | None) -> None:
        if rarely <= self.misfortune:
            outcome = code and f"ended by {code}"
            self.world.die(data.draw(st.sampled_from(self.running)), outcome)

    @rule(name=st.sampled_from(["frontend-1", "engine"]), ready=st.booleans())
    @precondition(lambda self: self.open and self.misfortune)
    def one_dies_again(self, name: str, ready: bool) -> None:
        """The same as the last time, as in a crash loop."""
        for process in self.running:
            if process.name == name:
                if ready and process in self.loading:
                    self.world.ready(self.world.engines[process.number])
                self.world.die(process, "ended by SIGSEGV")
                if self.open:
                    self.world.reap(process)

    @rule(data=st.data(), rarely=st.integers(0, RARELY))
    @precondition(lambda self: self.open and self.running)
    def somebody_hangs(self, data: st.DataObject, rarely: int) -> None:
        if not rarely:
            data.draw(st.sampled_from(self.running)).stuck = True

    @rule(data=st.data(), rarely=st.integers(0, RARELY))
    @precondition(lambda self: self.open and self.loading)
    def engine_cannot_start(self, data: st.DataObject, rarely: int) -> None:
        if not rarely:
            engine = data.draw(st.sampled_from(self.loading))
            engine.failed = True
            self.world.lost |= self.world.ending is not None and self.world.would_be_missed(engine)
            self.world.said(engine, "failed", message="there are no such weights")
            self.world.die(engine, "ended with exit code 70")

    @rule(data=st.data(), rarely=st.integers(0, RARELY // 2))
    @precondition(lambda self: self.open and (self.loading or self.serving))
    def device_is_distrusted(self, data: st.DataObject, rarely: int) -> None:
        if rarely <= self.misfortune:
            engine = data.draw(st.sampled_from([*self.loading, *self.serving]))
            engine.trusted = False
            self.world.said(engine, "distrusted", message="wrong numbers")
            if data.draw(st.booleans()):
                self.world.die(engine, "ended with exit code 71")

    @rule(data=st.data(), rarely=st.integers(0, RARELY))
    @precondition(lambda self: self.open and self.serving)
    def batch_hangs(self, data: st.DataObject, rarely: int) -> None:
        if not rarely:
            engine = data.draw(st.sampled_from(self.serving))
            engine.trusted = False
            self.world.said(engine, "hung", seconds=12.0)
            assert engine.dead, "what hangs is not killed"

    @rule(data=st.data())
    @precondition(lambda self: self.open and any(one.dead for one in self.world.processes))
    def supervisor_hears_of_an_end(self, data: st.DataObject) -> None:
        self.world.reap(data.draw(st.sampled_from([one for one in self.world.processes if one.dead])))

    # What the world does

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.0, 4.0, 40.0]))
    @precondition(lambda self: self.open)
    def time_passes(self, seconds: float) -> None:
        for _ in range(math.ceil(seconds)):
            self.wait(min(seconds, 1.0))

    def wait(self, seconds: float) -> None:
        """Whoever can says now that it is alive."""
        if self.open:
            self.world.now += seconds
        for process in self.running:
            if self.open and not process.dead:
                self.world.beat(process)
        self.world.tell("tick")
        self.world.look()

    @rule(data=st.data(), action=st.sampled_from(["load", "load", "load", "rollback"]))
    @precondition(lambda self: self.open and self.front_ends)
    def client_orders(self, data: st.DataObject, action: str) -> None:
        front_end = data.draw(st.sampled_from(self.front_ends))
        self.orders += 1
        front_end.orders.add(self.orders)
        place = data.draw(st.integers(0, len(self.world.life.state.asked)))
        names = [None, *(one.called for one in self.world.life.state.asked)]
        wish = {"settings": {}, "other_classes": False, "least_agreement": 0.0}
        self.world.said(front_end, "order", number=self.orders, action=action, name=names[place], **wish)
        self.answer_at_once(data)

    @rule(data=st.data())
    @precondition(lambda self: self.open)
    def weights_change(self, data: st.DataObject) -> None:
        self.world.tell("weights_changed", 0)
        self.answer_at_once(data)

    def answer_at_once(self, data: st.DataObject) -> None:
        world, load = self.world, self.world.load
        world.load = None
        if load is None:
            return
        servable = load.servable
        if not data.draw(st.integers(0, 5)):
            world.tell("load_refused", load, servable.current.settings, "not_enough_memory", "too large")
        else:
            make_room = servable.kept is not None and data.draw(st.booleans())
            devices = [servable.current.seats[0].device] * data.draw(st.integers(1, 2))
            world.tell("load_possible", load, servable.current.settings, devices, make_room)

    @rule(problem=st.sampled_from(["", "", "", "NaN"]))
    @precondition(lambda self: self.open and self.world.check)
    def known_images_are_answered(self, problem: str) -> None:
        check = self.world.check
        assert check is not None
        self.world.check = None
        if not problem:
            self.world.passed.add(check.version)
        self.world.tell("checked", check.version, problem, {"agreement": 1.0})

    @rule(refusal=st.sampled_from(["", "", "no room"]))
    @precondition(lambda self: self.open and self.world.measuring)
    def shadow_is_measured(self, refusal: str) -> None:
        self.world.measuring = None
        self.world.tell("shadow_measured", refusal)

    @rule(rarely=st.integers(0, 2 * RARELY))
    @precondition(lambda self: self.open)
    def signal(self, rarely: int) -> None:
        if not rarely:
            self.world.hurried |= self.world.ending is not None
            self.world.tell("signalled", "SIGTERM")

    @rule(data=st.data())
    @precondition(lambda self: self.open and any(one.draining for one in self.front_ends))
    def front_end_is_drained(self, data: st.DataObject) -> None:
        drained = [one for one in self.front_ends if one.draining]
        self.world.die(data.draw(st.sampled_from(drained)), None)

    @rule(data=st.data())
    @precondition(lambda self: self.open and any(one.stopping for one in self.engines))
    def engine_stops(self, data: st.DataObject) -> None:
        self.world.die(data.draw(st.sampled_from([one for one in self.engines if one.stopping])), None)

    @rule()
    @precondition(lambda self: self.world.over)
    def nothing_follows_the_end(self) -> None:
        self.world.tell("tick")

    # What is promised

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "world"):
            return
        self.count()
        self.world.look()
        if self.world.over:
            self.world.look_at_the_end()

    def teardown(self) -> None:
        if not hasattr(self, "world") or self.world.over:
            return
        if self.world.ending is None:
            self.all_is_well_in_the_end()
        if self.world.ending is None and not self.world.over:
            self.world.tell("signalled", "SIGTERM")
        self.ends_in_time()

    def all_is_well_in_the_end(self) -> None:
        """Where parts do what they should again, everything is started, joined, answered; nothing else is left."""
        world = self.world
        for _ in range(_ROUNDS):
            self.wake_up()
            self.everybody_gets_on()
            self.wait(_STRIDE)
            if world.over or world.ending is not None:
                return
        state = world.life.state
        assert state.status.state == "ready", state.status
        assert state.change is None
        assert not any(servable.leaving or servable.coming for servable in state.servables)
        for front_end in world.front_ends.values():
            assert not front_end.orders, "an order without an answer"
            assert front_end.reported >= world.offered()
        there = {seat for _, _, seat in state.seats if not seat.closed}
        assert {engine.seat for engine in world.engines.values()} == there

    def wake_up(self) -> None:
        for process in self.world.processes:
            process.stuck = False

    @rule()
    @precondition(lambda self: self.open)
    def everybody_gets_on(self) -> None:
        """Everybody does at once what is to be done."""
        world = self.world
        for engine in self.engines:
            if engine.stopping or not engine.trusted:
                world.die(engine, None if engine.trusted else "ended with exit code 71")
            elif not engine.ready and not engine.failed and self.open:
                world.said(engine, "phase", state="warming", detail="first batches")
                world.ready(engine)
        for front_end in self.front_ends:
            front_end.links = dict.fromkeys(front_end.links, True)
            for version in sorted(front_end.leaving):
                front_end.leaving.discard(version)
                world.said(front_end, "left", model=0, version=version)
            if front_end.draining:
                world.die(front_end, None)
            elif self.open:
                world.beat(front_end)
        for process in world.processes:
            if process.dead and self.open:
                world.reap(process)
        if world.check is not None and self.open:
            self.known_images_are_answered("")
        if world.measuring is not None and self.open:
            self.shadow_is_measured("")

    def ends_in_time(self) -> None:
        """A drain comes to its end, whoever does what."""
        world = self.world
        assert world.ending is not None or world.over
        while not world.over:
            self.wake_up()
            self.everybody_gets_on()
            self.wait(1.0)
        world.look_at_the_end()
