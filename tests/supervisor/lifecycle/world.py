"""What the supervisor's decisions act on, as a model: processes that do what they are told, late or never.

`World.perform` carries out actions and is where most promises are checked: what may be started, linked, stopped, shown
and told, and when. It keeps books of its own and looks at the decisions' state only where it says so.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from service.options.devices import EngineDevice
from service.settings import Settings
from service.supervisor.lifecycle import actions
from service.supervisor.lifecycle.actions import Action
from service.supervisor.lifecycle.lifecycle import FRONT_END_CRASH_LOOP, Lifecycle
from service.supervisor.lifecycle.parts import Part
from service.supervisor.lifecycle.seat import MAX_SHORT_RUNS, Seat
from service.supervisor.lifecycle.versions import Model, Servable

#: Seconds from an engine's being ready that make a long life.
_LONG = 120.0
SETTINGS = Settings(request_timeout_ms=10_000, drain_timeout_ms=5_000, keep_previous_ms=60_000)


@dataclass(eq=False, repr=False)
class Process:
    """One part, from its start until the supervisor has heard of its end."""

    number: int
    name: str
    began: float
    dead: bool = False
    outcome: str | None = None
    """Of a dead one: None if it ended well."""
    stuck: bool = False
    """Whether it says nothing any more."""

    def __repr__(self) -> str:
        return f"<{self.name}, part {self.number}{' dead' if self.dead else ''}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # or Hypothesis prints every field of every process


@dataclass(eq=False, repr=False)
class FrontEnd(Process):
    links: dict[int, bool] = field(default_factory=dict)
    """By engine: whether it has been attached."""
    reported: set[int] = field(default_factory=set)
    """What the supervisor has heard last of engines that it is joined to."""
    leaving: set[int] = field(default_factory=set)
    orders: set[int] = field(default_factory=set)
    """Which wait for an answer."""
    status: dict[str, Any] = field(default_factory=dict)
    draining: bool = False


@dataclass(eq=False, repr=False)
class Engine(Process):
    seat: Seat | None = None
    version: int = 0
    warming: bool = False
    ready: bool = False
    trusted: bool = True
    failed: bool = False
    stopping: bool = False
    ready_at: float | None = None
    numbers: dict[int, int] = field(default_factory=dict)
    """By front-end: the number of the link."""


class World:
    """Call ``life``'s events by `tell`; what is to be done is done at once."""

    def __init__(
        self,
        *,
        front_ends: int = 1,
        devices: int = 1,
        models: int = 1,
        shadow: bool = False,
        processes: bool = True,
        **own: Any,
    ) -> None:
        self.now = 0.0
        self.settings = SETTINGS.model_copy(update=own)
        wanted = [Model(None, self.settings, [EngineDevice("cpu", "cpu")] * devices) for _ in range(models)]
        if shadow:
            alone = self.settings.model_copy(update={"standby": False})
            wanted.append(Model(None, alone, [EngineDevice("cpu", "cpu")], shadow=True))
        self.life = Lifecycle(self.settings, wanted, processes=processes)
        self.front_ends: dict[int, FrontEnd] = {}
        self.engines: dict[int, Engine] = {}
        self.log: list[str] = []
        self.board: dict[int, int] = {}
        self.check: actions.Check | None = None
        self.passed: set[int] = set()
        """Versions whose known images were right."""
        self.shown: set[int] = set()
        """Versions that have answered."""
        self.load: actions.Load | None = None
        self.measuring: actions.MeasureShadow | None = None
        self.ending: float | None = None
        """When the port was closed."""
        self.asked_to_end = False
        """Whether a signal has come."""
        self.lost = False
        """Whether somebody may have waited for what ended during the drain."""
        self.hurried = False
        """Whether the end was not waited for."""
        self.ages: defaultdict[str, list[float]] = defaultdict(list)
        """By name: how long each of its lives was, as far as it counts."""
        self.wanted_front_ends = front_ends
        self.tell("started", "http://here", front_ends)

    @property
    def processes(self) -> list[Process]:
        return [*self.front_ends.values(), *self.engines.values()]

    @property
    def over(self) -> bool:
        return self.life.state.exit_code is not None

    def servable_of(self, engine: Engine) -> Servable:
        """By the decisions' own books."""
        return next(one for one, _, seat in self.life.state.seats if seat is engine.seat)

    def offered(self) -> set[int]:
        """Engines that take work and that every front-end is to be joined to."""
        seats = [
            seat for one in self.life.state.servables for version in one.offered for seat in version.seats
        ]
        return {engine.number for engine in self.engines.values() if engine.ready and engine.seat in seats}

    # Events

    def tell(self, event: str, *args: Any) -> None:
        """One event, and what follows from it."""
        was_over = self.over
        self.asked_to_end |= event == "signalled"
        found: list[Action] = getattr(self.life, event)(self.now, *args)
        assert not (was_over and found), "something is done after the end"
        if self.over:
            starts = [one for one in found if isinstance(one, actions.StartEngine | actions.StartFrontEnd)]
            assert not starts, "something is started at the end"
        for action in found:
            self.perform(action)

    def reap(self, process: Process) -> None:
        """The supervisor hears of an end."""
        if isinstance(process, FrontEnd):
            del self.front_ends[process.number]
            age, young = self.now - process.began, FRONT_END_CRASH_LOOP[1]
            fault = process.outcome is not None
        else:
            assert isinstance(process, Engine)
            del self.engines[process.number]
            age, young = 0.0 if process.ready_at is None else self.now - process.ready_at, _LONG
            fault = self.would_be_missed(process) and bool(self.front_ends)
        self.lost |= self.ending is not None and fault
        self.ages[process.name] = [*self.ages[process.name], age] if age < young else []
        self.tell("ended", process.number, process.outcome)

    def would_be_missed(self, engine: Engine) -> bool:
        """Whether it has a model that answers."""
        return engine.version in self.board.values() and not self.servable_of(engine).shadow

    def die(self, process: Process, outcome: str | None) -> None:
        """It ends; the supervisor has not heard of it."""
        if process.dead:
            return
        process.dead, process.outcome = True, outcome
        for front_end in self.front_ends.values():
            front_end.links.pop(process.number, None)

    def beat(self, process: Process) -> None:
        """It says that it is alive, as each does every second."""
        if isinstance(process, FrontEnd):
            process.reported = {engine for engine, joined in process.links.items() if joined}
            self.said(process, "alive", joined=sorted(process.reported), shadow=())
        elif not isinstance(process, Engine) or process.ready:  # one that loads is busy in one call
            self.said(process, "alive")

    def said(self, process: Process, kind: str, **fields: Any) -> None:
        assert not process.dead
        self.tell("message_received", process.number, {"kind": kind, **fields})

    def ready(self, engine: Engine, over_budget: str = "") -> None:
        engine.ready, engine.ready_at = True, self.now
        names = {"model": f"m{engine.name}", "weights": "w"}
        self.tell("engine_ready", engine.number, names, over_budget)

    # Actions

    def perform(self, action: Action) -> None:
        match action:
            case actions.StartFrontEnd(front_end):
                self._starts(front_end, FRONT_END_CRASH_LOOP[0], self.front_ends.values())
                assert front_end.name in {f"frontend-{index + 1}" for index in range(self.wanted_front_ends)}
                self.front_ends[front_end.number] = FrontEnd(front_end.number, front_end.name, self.now)
            case actions.StartEngine(seat):
                self._starts_engine(action, seat)
            case actions.LinkFrontEnd():
                self._link(action)
            case actions.Send():
                self._send(action)
            case actions.Kill(part):
                self.die({**self.front_ends, **self.engines}[part], "ended by SIGKILL")
            case actions.Show(place, version):
                self._show(place, version)
            case actions.ClosePort():
                assert self.ending is None, "the port is closed twice"
                self.ending = self.now
                self.lost |= not self.asked_to_end
            case actions.Load():
                self.load = action
            case actions.Check():
                self._begin_check(action)
            case actions.EndCheck():
                self.check = None
            case actions.MeasureShadow():
                self.measuring = action
            case actions.Log(_, line):
                self.log.append(line)
            case _:
                raise AssertionError(f"nobody knows {action}")

    def _starts(self, part: Part, lives: int, others: Any) -> None:
        assert self.ending is None, f"{part.name} is started though the service ends"
        assert part.number not in {**self.front_ends, **self.engines}, "a number is there twice"
        assert part.name not in [one.name for one in others], f"{part.name} is there twice"
        assert len(self.ages[part.name]) < lives, f"{part.name} is started again and again"

    def _starts_engine(self, action: actions.StartEngine, seat: Seat) -> None:
        assert seat.engine is not None
        self._starts(seat.engine, MAX_SHORT_RUNS, self.engines.values())
        version = next(version for _, version, one in self.life.state.seats if one is seat)
        engine = Engine(action.engine, seat.name, self.now, seat=seat, version=version.number)
        self.engines[action.engine] = engine

    def _link(self, action: actions.LinkFrontEnd) -> None:
        front_end, engine = self.front_ends[action.front_end], self.engines[action.engine]
        assert engine.ready, "a front-end is joined to an engine that loads"
        assert action.told["version"] == engine.version, "an engine is taken for one of another version"
        self._number(engine, front_end.number, action.number)
        if not engine.dead and not front_end.dead and engine.number not in front_end.links:
            front_end.links[engine.number] = False

    def _number(self, engine: Engine, user: int, number: int) -> None:
        assert number not in [
            one for other, one in engine.numbers.items() if other != user and other in self.front_ends
        ], "two front-ends are joined under one number"
        engine.numbers[user] = number

    def _send(self, action: actions.Send) -> None:
        assert action.part in {**self.front_ends, **self.engines}, (
            f"{action.kind} is sent to one that has ended"
        )
        front_end, engine = self.front_ends.get(action.part), self.engines.get(action.part)
        if front_end is not None:
            match action.kind:
                case "status":
                    front_end.status = dict(action.fields["status"])
                case "forget":
                    assert action.fields["version"] != self.board[action.fields["model"]], "it answers now"
                    front_end.leaving.add(action.fields["version"])
                case "done":
                    front_end.orders.remove(action.fields["number"])
                case "drain":
                    assert self.ending is not None, "front-ends drain before the port is closed"
                    front_end.draining = True
                case kind:
                    raise AssertionError(f"front-ends know no {kind}")
        if engine is not None:
            assert action.kind in ("stop", "measure")
            if action.kind == "stop":
                assert not self._is_needed(engine), "an engine stops before the front-ends that ask it"
                engine.stopping = True

    def _is_needed(self, engine: Engine) -> bool:
        """Whether somebody may wait for its answer."""
        if self.ending is not None and not self.front_ends:
            return False
        waits = any(
            engine.version in front_end.leaving and not front_end.dead
            for front_end in self.front_ends.values()
        )
        return engine.version in self.board.values() or waits

    def _show(self, place: int, version: int) -> None:
        first = place not in self.board
        assert self.board.get(place) != version, "nothing has changed"
        self.board[place] = version
        if first:
            self.passed.add(version)
            self.shown.add(version)
            return
        engines = [engine for engine in self.engines.values() if engine.version == version]
        assert engines, "a version without engines answers"
        assert all(engine.ready and engine.trusted for engine in engines), (
            "an engine answers that is not ready"
        )
        assert version in self.passed, "a version answers that was not checked"
        if version not in self.shown:
            numbers = {engine.number for engine in engines}
            for front_end in self.front_ends.values():
                assert front_end.reported >= numbers, "a version answers that a front-end has not joined"
        self.shown.add(version)

    def _begin_check(self, action: actions.Check) -> None:
        assert self.check is None, "two checks at once"
        self.check = action
        assert all(self.engines[engine].ready for engine in action.new)
        for engine, number in [*action.new.items(), *([action.old] if action.old else [])]:
            self._number(self.engines[engine], 0, number)

    # Promises that hold after every event

    def look(self) -> None:
        state = self.life.state
        if self.over:
            return
        for place, servable in enumerate(one for one in state.servables if not one.shadow):
            assert self.board[place] == servable.current.number, "the board shows another version"
        self._look_at_front_ends(state.status.to_json())
        if state.status.state == "ready":
            for servable in state.asked:
                serving = [one for one in self.engines.values() if one.seat in servable.current.seats]
                assert any(one.ready and one.trusted for one in serving), "ready without an engine"
        if self.ending is None:
            self._look_who_is_there()
        else:
            limit = self.life._settings.drain_timeout_ms / 1000 + 2.0 + self.settings.drain_delay_ms / 1000
            assert self.now <= self.ending + limit + 1.0, "the drain does not end"
            assert self.processes, "everything has ended, and the service has not"

    def _look_at_front_ends(self, status: dict[str, Any]) -> None:
        offered = self.offered()
        for front_end in self.front_ends.values():
            if front_end.dead:
                continue
            assert front_end.status == status, "a front-end has not heard of the status"
            linked = {engine for engine in offered if front_end.number in self.engines[engine].numbers}
            assert linked == offered, "a front-end was not joined to every engine"

    def _look_who_is_there(self) -> None:
        assert len(self.front_ends) == self.wanted_front_ends, "a front-end was not replaced"
        for servable in self.life.state.asked:
            converted = any(seat.was_ready for seat in servable.current.seats)
            for seat in servable.current.seats:
                there = any(engine.seat is seat for engine in self.engines.values())
                assert there or seat.closed or not converted, f"{seat} was not replaced"
            assert any(engine.seat in servable.current.seats for engine in self.engines.values()), (
                "a model without an engine"
            )

    def look_at_the_end(self) -> None:
        """Once the exit code is there."""
        code = self.life.state.exit_code
        if self.ending is not None and not self.hurried:
            late = "not everything ended within drain_timeout_ms" in self.log
            assert late or not self.processes, "the service ends before its parts"
            assert code == int(self.lost or late), (code, self.lost, late)
        else:
            assert code == 1
