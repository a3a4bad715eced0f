"""The place of an engine and its successors: one version of a model on one device.

start ──▶ loading ──ready──▶ serving ──ended──▶ start … until the place is given up
"""

from __future__ import annotations

import math

from service.options.devices import EngineDevice
from service.settings import Settings
from service.supervisor.lifecycle.crash_loop import CrashLoopGuard
from service.supervisor.lifecycle.parts import Engine

#: The short runs in a row after which a seat is given up, and the seconds below which a run is short. A run counts from
#: the moment when the engine is ready, so that a model which hangs at its first request is noticed as well.
MAX_SHORT_RUNS, _MIN_UPTIME = 5, 120.0
#: The number of engines whose device may fail before any is ready; each one skips one more way to run the model.
_MAX_GIVEN_UP = 3
#: A successor that loads may be silent for so many times the first engine's start, if that is longer than usual.
_TIMES_FIRST = 5.0


class Seat:
    """A seat: `begin` puts an engine into it, `ready` notes that it takes work, `leave` removes it after its end."""

    def __init__(self, name: str, device: EngineDevice, settings: Settings, standby: bool = False) -> None:
        """``settings`` are those of its engines, for the one ``device``.

        A ``standby`` gets images only while there is no other engine.
        """
        self.name = name
        """The name of its processes."""
        self.device = device
        self.standby = standby
        self.settings = settings
        self.engine: Engine | None = None
        """The present engine."""
        self.started = False
        """True once an engine has been started."""
        self.was_ready = False
        """True once an engine has been ready."""
        self.first_start = 0.0
        """Seconds from the start of the first ready engine until it was ready."""
        self.given_up: list[str] = []
        """The reports of engines whose device failed before they were ready. Each skips one way to run the model."""
        self.closed = ""
        """The reason why no more engines are started here; usually empty."""
        self._crash_loop = CrashLoopGuard(MAX_SHORT_RUNS, _MIN_UPTIME)

    def __repr__(self) -> str:
        return f"<Seat {self.name} on {self.device.name} {self.state}>"

    @property
    def serves(self) -> bool:
        """True if its engine takes work."""
        return self.engine is not None and self.engine.serves

    @property
    def state(self) -> str:
        """The state in a word, as ``/healthz`` shows it."""
        if self.closed:
            return "given up"
        if self.engine is None:
            return "ended" if self.started else "waiting"
        if self.serves:
            return "standby" if self.standby else "serving"
        return "loading" if self.engine.trusted else "ending"

    def begin(self, engine: Engine) -> None:
        """Takes an engine that is being started."""
        self.engine, self.started = engine, True

    def ready(self, names: dict[str, str], now: float) -> None:
        """Notes that the engine is ready, with the ``names`` of its model and weights."""
        assert self.engine is not None
        self.engine.ready_at, self.engine.names = now, names
        if not self.was_ready:
            self.was_ready, self.first_start = True, now - self.engine.began_at

    def distrusted(self, reason: str) -> None:
        """Notes that the engine is about to end, since its device cannot be trusted."""
        assert self.engine is not None
        self.engine.trusted, self.engine.distrust = False, reason
        if self.engine.ready_at is None:
            self.given_up.append(reason)

    def leave(self) -> Engine:
        """Removes the engine, which has ended, and returns it."""
        assert self.engine is not None
        engine, self.engine = self.engine, None
        return engine

    def patience(self, silence: float) -> float:
        """Seconds for which the engine may be silent: ``silence``, but more while it loads.

        A load is one long call without messages. The length of the first load is unknown, so it has no limit.
        """
        if self.engine is not None and self.engine.ready_at is not None:
            return silence
        return max(silence, _TIMES_FIRST * self.first_start) if self.was_ready else math.inf

    @property
    def worth_a_start(self) -> bool:
        """True if another engine should be started, which skips ways to run the model that failed."""
        return self.was_ready or 0 < len(self.given_up) <= _MAX_GIVEN_UP

    def died_too_often(self, engine: Engine, now: float) -> bool:
        """Counts the life of an ended ``engine``. True if no other engine should follow it."""
        return self._crash_loop.record(now - engine.ready_at if engine.ready_at is not None else 0.0)
