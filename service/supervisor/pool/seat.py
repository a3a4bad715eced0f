"""Where an engine lives: one version of a model on one device, and whatever engine is there now.

    start ──▶ loading ──ready──▶ serving ──ended──▶ start … until it is not worth another one

An engine is known by a number of its own, so that late news of the one before it are told apart.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.engine.arena import MAX_FRONTENDS, Geometry
from service.observability.card import ModelCard
from service.options.devices import Device
from service.settings import Settings
from service.shared import transport
from service.supervisor.child import Child
from service.supervisor.crash_loop import CrashLoopGuard

#: Short runs in a row, and the seconds that make one long, counted from when the engine is ready, so that a model
#: that hangs at its first request is found out as well.
MAX_SHORT_RUNS, _MIN_UPTIME = 5, 120.0
#: Engines whose device may fail before any is ready: each leaves out one more way to run the model.
_MAX_GIVEN_UP = 3
#: Times the first start that an engine which was ready may be silent while it loads again, if that is longer.
_TIMES_FIRST = 5.0


@dataclass(frozen=True)
class Serving:
    """What front-ends need of an engine that takes work. The descriptors are the supervisor's."""

    geometry: dict[str, Any]
    arena: int
    card: int

    def read_card(self) -> ModelCard:
        """What it serves."""
        return ModelCard.from_bytes(os.pread(self.card, os.fstat(self.card).st_size, 0))

    def read_geometry(self) -> Geometry:
        return Geometry.from_json(self.geometry)

    def close(self) -> None:
        os.close(self.arena)
        os.close(self.card)


class Seat:
    """Construct, `begin` with each engine that is started, `ready`, `introduce` it, `leave` when it has ended."""

    def __init__(self, name: str, device: Device, settings: Settings, standby: bool = False) -> None:
        """``settings`` are those of its engine, for the one ``device``.

        A ``standby`` is asked while no other is there.
        """
        self.name = name
        """What its processes are called."""
        self.device = device.name
        self.place = device
        self.standby = standby
        self.settings = settings
        self.child: Child | None = None
        self.engine = 0
        """The number of the engine that is there, or was."""
        self.serving: Serving | None = None
        self.trusted = True
        """Whether the engine that is there has not said that it is about to end."""
        self.distrust = ""
        """What it has said of its device, if it has."""
        self.given_up: list[str] = []
        """The same of each engine that ended so before it was ready: the next one tries less."""
        self.ready_at: float | None = None
        """Of the engine that is there; None until it is ready."""
        self.was_ready = False
        self.first_start = 0.0
        """Seconds from the first engine's start until it was ready."""
        self.closed = ""
        """Why no other engine is started here, though other devices serve the same model; empty as a rule."""
        self.crash_loop = CrashLoopGuard(MAX_SHORT_RUNS, _MIN_UPTIME)
        self._numbers: dict[str, int] = {}
        """By name: what the engine knows each front-end by."""
        self._last_number = 0

    def __repr__(self) -> str:
        return f"<Seat {self.name} on {self.device} {'serving' if self.serves else 'not serving'}>"

    @property
    def serves(self) -> bool:
        """Whether its engine takes work and is trusted."""
        return self.serving is not None and self.trusted

    @property
    def state(self) -> str:
        """In a word, for people."""
        if self.closed:
            return "given up"
        if self.child is None:
            return "ended" if self.engine else "waiting"
        if self.serves:
            return "standby" if self.standby else "serving"
        return "loading" if self.trusted else "ending"

    def begin(self, engine: int, child: Child) -> None:
        """An engine has been started."""
        self.engine, self.child = engine, child
        self.trusted = True
        self.ready_at = None
        self._numbers.clear()

    def ready(self, serving: Serving) -> None:
        """The engine takes work."""
        assert self.child is not None
        self.serving = serving
        self.ready_at = time.monotonic()
        if not self.was_ready:
            self.was_ready, self.first_start = True, self.ready_at - self.child.began_at

    def distrusted(self, reason: str) -> None:
        """The engine is about to end, since its device is not to be trusted."""
        self.trusted, self.distrust = False, reason
        if self.ready_at is None:
            self.given_up.append(reason)

    def hung(self) -> None:
        """The engine is about to be killed."""
        self.trusted = False

    def leave(self) -> str:
        """The engine has ended. Why its device was not to be trusted, if that was the reason."""
        reason, self.distrust = self.distrust, ""
        self.child = None
        if self.serving is not None:
            self.serving.close()
            self.serving = None
        return reason

    def patience(self, silence: float) -> float:
        """Seconds that the engine may be silent, ``silence`` as a rule.

        One that loads is busy in one call; how long the first takes, nobody knows.
        """
        if self.serving is not None:
            return silence
        return max(silence, _TIMES_FIRST * self.first_start) if self.was_ready else math.inf

    @property
    def worth_a_start(self) -> bool:
        """Whether an engine that was never ready should be followed by another, which tries less."""
        return self.was_ready or (0 < len(self.given_up) <= _MAX_GIVEN_UP and self.ready_at is None)

    def died_too_often(self) -> bool:
        """Takes note of the life that has ended. True when it is not to be followed by another."""
        return self.crash_loop.record(time.monotonic() - self.ready_at if self.ready_at is not None else 0.0)

    def stop(self) -> None:
        """Lets the engine end after what it has; at once while it loads, since nothing depends on it then."""
        if self.child is None:
            return
        if self.serving is not None:
            self.child.channel.send("stop")
        else:
            self.child.kill()

    # Front-ends

    def introduce(self, front_end: Child, version: Mapping[str, Any]) -> None:
        """Joins the engine and ``front_end`` by a new link. What is told of the ``version`` goes along."""
        assert self.child is not None
        assert self.serving is not None
        number = self._numbers[front_end.name] = self.free_number(front_end.name)
        front_end.introduced_at, front_end.unjoined = time.monotonic(), 0
        ours, theirs = transport.socket_pair()
        self.child.channel.send("front-end", number=number, descriptors=[ours.fileno()])
        front_end.channel.send(
            "engine",
            engine=self.engine,
            number=number,
            geometry=self.serving.geometry,
            standby=self.standby,
            **version,
            descriptors=[self.serving.arena, theirs.fileno(), self.serving.card],
        )
        ours.close()
        theirs.close()

    def free_number(self, name: str) -> int:
        """The next one, so that the engine is done with whoever had it; but none that another front-end lives under."""
        taken = {number for other, number in self._numbers.items() if other != name}
        while True:
            self._last_number = self._last_number % MAX_FRONTENDS + 1
            if self._last_number not in taken:
                return self._last_number
