"""The end of a version that does not answer any more: its engines stop when no front-end has a request with it."""

from __future__ import annotations

from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import ModelVersion, Servable

#: Seconds beyond request_timeout_ms for front-ends to leave a version, and then for its engines to end.
GRACE = 5.0


def begin(state: State, servable: Servable, version: ModelVersion) -> None:
    """Orders every front-end to leave ``version`` when it has no request with it; then its engines stop."""
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
    """Notes that a front-end has left the version ``number``, or (None) all versions, since it has ended."""
    for servable in state.servables:
        for version in servable.leaving:
            if number in (None, version.number) and front_end in version.awaited:
                version.awaited.discard(front_end)
                _stop_if_left(state, version)


def kill_late(state: State) -> None:
    """Kills engines of versions that have not ended in time."""
    for servable in state.servables:
        for version in servable.leaving:
            if state.now >= version.until:
                version.awaited.clear()
                for seat in version.seats:
                    if seat.engine is not None:
                        state.kill(seat.engine)
                version.until = state.now + GRACE


def remove_gone(state: State) -> bool:
    """Removes versions without engines. If there is one, lets engines measure the free memory and returns True."""
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


def _stop_if_left(state: State, version: ModelVersion) -> None:
    if version.awaited:
        return
    for seat in version.seats:
        state.stop_engine(seat)
    version.until = state.now + GRACE
