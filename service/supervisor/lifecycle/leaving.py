"""How a version ends that does not answer any more: when every front-end has answered what it has with it."""

from __future__ import annotations

from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import Servable, Version

#: Seconds beyond request_timeout_ms that front-ends may need to let go of a version, and its engines to end.
GRACE = 5.0


def begin(state: State, servable: Servable, version: Version) -> None:
    """``version`` is forgotten by every front-end as soon as nobody there waits for it; then its engines stop."""
    if version is servable.kept:
        servable.kept = None
    if version is servable.coming:
        servable.coming = None
    servable.leaving.append(version)
    version.until = state.now + version.settings.request_timeout_ms / 1000 + GRACE
    version.awaited = set(state.front_ends)
    for front_end in state.front_ends:
        state.send(front_end, "forget", model=servable.place, version=version.number)
    _stop_if_left(state, version)


def left(state: State, front_end: int, number: int | None = None) -> None:
    """A front-end is done with a version, or with all of them since it has ended."""
    for servable in state.servables:
        for version in servable.leaving:
            if number in (None, version.number) and front_end in version.awaited:
                version.awaited.discard(front_end)
                _stop_if_left(state, version)


def kill_late(state: State) -> None:
    """Ends at once what has not ended in time."""
    for servable in state.servables:
        for version in servable.leaving:
            if state.now >= version.until:
                version.awaited.clear()
                for seat in version.seats:
                    if seat.engine is not None:
                        state.kill(seat.engine)
                version.until = state.now + GRACE


def remove_gone(state: State) -> bool:
    """A version ends with its last engine. True if one has: engines see how much memory there is for pictures now."""
    before = sum(len(servable.leaving) for servable in state.servables)
    for servable in state.servables:
        servable.leaving = [version for version in servable.leaving if not version.gone]
    if sum(len(servable.leaving) for servable in state.servables) == before:
        return False
    for servable in state.servables:
        for seat in servable.current.serving:
            assert seat.engine is not None
            state.send(seat.engine.number, "measure")
    return True


def _stop_if_left(state: State, version: Version) -> None:
    if version.awaited:
        return
    for seat in version.seats:
        state.stop_engine(seat)
    version.until = state.now + GRACE
