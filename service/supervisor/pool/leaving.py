"""How a version ends that does not answer any more: when every front-end has answered what it has with it."""

from __future__ import annotations

import time

from service.supervisor.child import Child
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.versions import Servable, Version

#: Seconds beyond request_timeout_ms that front-ends may need to let go of a version, and its engines to end.
_GRACE = 5.0


class Leaving:
    """Part of the `Pool`."""

    def __init__(self, pool: Engines) -> None:
        self._pool = pool

    def begin(self, servable: Servable, version: Version) -> None:
        """``version`` is forgotten by every front-end as soon as nobody there waits for it; then its engines stop."""
        if version is servable.kept:
            servable.kept = None
        servable.leaving.append(version)
        version.until = time.monotonic() + version.settings.request_timeout_ms / 1000 + _GRACE
        version.awaited = set()
        for child in self._pool.host.front_ends:
            if child.channel.send("forget", model=servable.place, version=version.number):
                version.awaited.add(child.name)
        self._stop_if_left(version)
        self.engine_ended(servable, version)

    def left(self, front_end: Child, version: int | None = None) -> None:
        """``front_end`` is done with a version, or has ended."""
        for servable in self._pool.servables:
            for leaving in list(servable.leaving):
                if version in (None, leaving.number) and front_end.name in leaving.awaited:
                    leaving.awaited.discard(front_end.name)
                    self._stop_if_left(leaving)

    def engine_ended(self, servable: Servable, version: Version) -> None:
        """One of its engines has: the last one takes the version with it."""
        if version not in servable.leaving or not version.gone:
            return
        servable.leaving.remove(version)
        self._pool.measure_again()
        if not servable.leaving:
            self._pool.room_made()
        self._pool.tell()

    def tick(self, now: float) -> None:
        """Kills what has not ended in time."""
        for servable in self._pool.servables:
            for version in servable.leaving:
                if now >= version.until:
                    version.awaited.clear()
                    self._stop_if_left(version, kill=True)

    def _stop_if_left(self, version: Version, kill: bool = False) -> None:
        if version.awaited:
            return
        for seat in version.seats:
            if kill and seat.child is not None:
                seat.child.kill()
            else:
                seat.stop()
        version.until = time.monotonic() + _GRACE
