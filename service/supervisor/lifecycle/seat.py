"""Where an engine lives: one version of a model on one device, and whatever engine is there now.

start ──▶ loading ──ready──▶ serving ──ended──▶ start … until it is not worth another one
"""

from __future__ import annotations

import math

from service.options.devices import Device
from service.settings import Settings
from service.supervisor.lifecycle.crash_loop import CrashLoopGuard
from service.supervisor.lifecycle.parts import Engine

#: Short runs in a row, and the seconds that make one long, counted from when the engine is ready, so that a model
#: that hangs at its first request is found out as well.
MAX_SHORT_RUNS, _MIN_UPTIME = 5, 120.0
#: Engines whose device may fail before any is ready: each leaves out one more way to run the model.
_MAX_GIVEN_UP = 3
#: Times the first start that an engine which was ready may be silent while it loads again, if that is longer.
_TIMES_FIRST = 5.0


class Seat:
    """Construct, `begin` with each engine that is started, `ready`, `leave` when it has ended."""

    def __init__(self, name: str, device: Device, settings: Settings, standby: bool = False) -> None:
        """``settings`` are those of its engine, for the one ``device``.

        A ``standby`` is asked while no other is there.
        """
        self.name = name
        """What its processes are called."""
        self.device = device
        self.standby = standby
        self.settings = settings
        self.engine: Engine | None = None
        """The one that is there."""
        self.started = False
        """Whether there ever was one."""
        self.was_ready = False
        """Whether one ever took work."""
        self.first_start = 0.0
        """Seconds from the first engine's start until it was ready."""
        self.given_up: list[str] = []
        """Of each engine that ended before it was ready: what it said of its device. The next one tries less."""
        self.closed = ""
        """Why no other engine is started here, though other devices serve the same model; empty as a rule."""
        self._crash_loop = CrashLoopGuard(MAX_SHORT_RUNS, _MIN_UPTIME)

    def __repr__(self) -> str:
        return f"<Seat {self.name} on {self.device.name} {self.state}>"

    @property
    def serves(self) -> bool:
        """Whether its engine takes work."""
        return self.engine is not None and self.engine.serves

    @property
    def state(self) -> str:
        """In a word, for people."""
        if self.closed:
            return "given up"
        if self.engine is None:
            return "ended" if self.started else "waiting"
        if self.serves:
            return "standby" if self.standby else "serving"
        return "loading" if self.engine.trusted else "ending"

    def begin(self, engine: Engine) -> None:
        """An engine is started."""
        self.engine, self.started = engine, True

    def ready(self, names: dict[str, str], now: float) -> None:
        """The engine takes work, with a model and weights of these ``names``."""
        assert self.engine is not None
        self.engine.ready_at, self.engine.names = now, names
        if not self.was_ready:
            self.was_ready, self.first_start = True, now - self.engine.began_at

    def distrusted(self, reason: str) -> None:
        """The engine is about to end, since its device is not to be trusted."""
        assert self.engine is not None
        self.engine.trusted, self.engine.distrust = False, reason
        if self.engine.ready_at is None:
            self.given_up.append(reason)

    def leave(self) -> Engine:
        """The engine has ended. Returns it."""
        assert self.engine is not None
        engine, self.engine = self.engine, None
        return engine

    def patience(self, silence: float) -> float:
        """Seconds that the engine may be silent, ``silence`` as a rule.

        One that loads is busy in one call; how long the first takes, nobody knows.
        """
        if self.engine is not None and self.engine.ready_at is not None:
            return silence
        return max(silence, _TIMES_FIRST * self.first_start) if self.was_ready else math.inf

    @property
    def worth_a_start(self) -> bool:
        """Whether an engine that was never ready should be followed by another, which tries less."""
        return self.was_ready or 0 < len(self.given_up) <= _MAX_GIVEN_UP

    def died_too_often(self, engine: Engine, now: float) -> bool:
        """Takes note of the life of an ``engine`` that has ended. True when no other is to follow it."""
        return self._crash_loop.record(now - engine.ready_at if engine.ready_at is not None else 0.0)
