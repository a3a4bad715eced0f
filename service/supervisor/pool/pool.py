"""All engines, by model and device: what there is, started, introduced to front-ends, told of, stopped.

Part of the supervisor's one thread. The service is ready when every model is served by one engine at least.
"""

from __future__ import annotations

from typing import Any

from service.options.several import models_of
from service.settings import Settings
from service.supervisor.child import Child
from service.supervisor.pool import room
from service.supervisor.pool.budget import Budget
from service.supervisor.pool.changes import Changes
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.events import Events
from service.supervisor.pool.host import Host
from service.supervisor.pool.leaving import Leaving
from service.supervisor.pool.shadowing import Shadow
from service.supervisor.pool.versions import Servable


class Pool(Engines):
    """Construct, `start`, `stop`; the parts of it decide what follows from events."""

    def __init__(self, settings: Settings, host: Host) -> None:
        super().__init__(host)
        self.leaving = Leaving(self)
        self._budget = Budget(self, settings.memory_budget_mib)
        self.changes = Changes(self, self.leaving, self._budget)
        self.shadow = Shadow(self, self.changes.room_for)
        self._events = Events(self, self.changes, self.leaving, self._budget)
        wanted = models_of(settings)
        room.check_budget([one.settings.model for one in wanted], settings.memory_budget_mib)
        self.servables += [
            Servable(place, self.new_version(own), name=name) for place, (name, own) in enumerate(wanted)
        ]
        if settings.shadow is not None:
            self.servables.append(self.shadow.of(wanted[0].settings, settings.shadow))
        for servable in self.servables:
            servable.current.answered = True
            self.board.show(servable.place, servable.current.number)

    def start(self) -> None:
        """Starts every model's first engine; `start_others` follows."""
        for servable in self.asked:
            self.start_version(servable.current)

    def spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        self._events.spoke(child, message, descriptors)

    def ended(self, child: Child) -> None:
        self._events.ended(child)

    def room_made(self) -> None:
        self.changes.room_made()

    def front_end_ended(self, child: Child) -> None:
        """It has no requests any more, and has joined nothing."""
        self.leaving.left(child)
        self.changes.look_who_joined()

    def tell(self) -> None:
        status = self.host.status
        status.engines = [engine for servable in self.servables for engine in servable.to_json()]
        status.shadow = self.shadow.to_json()
        status.switch, status.switches = self.changes.to_json(), dict(self.changes.counts)
        self.host.tell()

    def look(self) -> None:
        if all(servable.current.serving for servable in self.asked) and self.host.status.state != "ready":
            self.was_ready = True
            self.host.enter("ready", "")
            self.shadow.start()

    def tick(self, now: float) -> None:
        """Whatever is due."""
        if not self.draining:
            self.changes.tick(now)

    def stop(self) -> None:
        """Lets every engine end. The service does when the last one has."""
        self.changes.cancel("the service ends")
        if not self.children():
            self.host.engines_ended(False)
        for _, _, seat in self:
            seat.stop()

    def close(self) -> None:
        """Kills what is left and lets go of its memory."""
        for _, _, seat in self:
            if seat.child is not None:
                seat.child.kill()
            seat.leave()
