"""Callbacks of descriptors."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from service.supervisor.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_an_event_for_what_another_event_has_ended_is_dropped(loop: Loop) -> None:
    """Even where the descriptor's number belongs to something new by then."""
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def end_the_other(which: int) -> None:
        called.append(which)
        pairs[which][0].recv(1)
        other = pairs[1 - which][0].fileno()
        loop.remove_reader(other)
        loop.add_reader(other, lambda: called.append(2))

    for which, (ours, theirs) in enumerate(pairs):
        loop.add_reader(ours.fileno(), lambda which=which: end_the_other(which))  # type: ignore[misc]
        theirs.send(b"x")
    loop.step(0.0)
    assert called in ([0], [1])
    loop.step(0.0)
    assert called[1:].count(2) == 1  # what is new hears of its own events
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_nothing_is_called_where_nothing_has_come(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    loop.add_reader(ours.fileno(), lambda: pytest.fail("called"))
    loop.step(0.0)
    assert loop.has_reader(ours.fileno())
    loop.remove_reader(ours.fileno())
    loop.remove_reader(ours.fileno())
    theirs.send(b"x")
    loop.step(0.0)
    ours.close()
    theirs.close()
