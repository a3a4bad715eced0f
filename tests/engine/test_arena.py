"""Slots: each is one's own, none is lost, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.engine.arena import RECORD, Arena, Geometry, Outcome
from service.shared.outputs import Explain, OutputKind, from_code, to_code

GEOMETRY = Geometry(slots=7, height=5, width=3, channels=3, results=11)


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=60))
def test_free_and_taken_are_all_slots(steps: list[tuple[int, bool]]) -> None:
    arena = Arena.create(GEOMETRY)
    held: list[int] = []
    for owner, take in steps:
        if take:
            slot = arena.acquire(owner)
            assert (slot is None) == (len(held) == GEOMETRY.slots)
            if slot is not None:
                assert slot not in held
                held.append(slot)
        elif held:
            arena.release(held.pop(0))
        assert arena.free + len(held) == GEOMETRY.slots
    arena.close()


def test_parts_do_not_overlap() -> None:
    arena = Arena.create(GEOMETRY)
    parts: list[np.ndarray[Any, Any]] = [
        arena.gauges,
        arena.arrivals,
        arena.owners,
        arena.records,
        arena.results,
        arena.pixels,
    ]
    for number, part in enumerate(parts, start=1):
        part.view(np.uint8).reshape(-1)[:] = number
    for number, part in enumerate(parts, start=1):
        assert (part.view(np.uint8) == number).all()
    assert arena.records.itemsize == RECORD.itemsize
    arena.close()


def test_a_record_is_the_same_bytes_to_struct_and_numpy() -> None:
    arena = Arena.create(GEOMETRY)
    arena.record_admission(2, deadline=1.0, bulk=True)
    arena.record_submission(2, deadline=1.5, submitted=2.5, wanted=OutputKind.FEATURES_MAP)
    arena.record_finish(2, started=3.5, finished=4.5, batch=5, batch_size=6, outcome=Outcome.FAILED)
    assert arena.records[2].item() == (1.5, 2.5, 3.5, 4.5, 5, 6, Outcome.FAILED, 1, 3)
    assert tuple(arena.record(2)) == arena.records[2].item()
    assert arena.record(2)._fields == RECORD.names
    assert arena.deadline(2) == 1.5
    assert arena.is_bulk(2)
    assert arena.wanted(2) is OutputKind.FEATURES_MAP
    arena.record_outcome(2, Outcome.EXPIRED)
    assert arena.records[2].item() == (1.5, 2.5, 3.5, 4.5, 5, 6, Outcome.EXPIRED, 1, 3)
    for other in (1, 3):
        assert not any(arena.records[other].item())
    arena.close()


def test_another_mapping_sees_the_same_bytes() -> None:
    arena = Arena.create(GEOMETRY)
    other = Arena(os.dup(arena.descriptor), GEOMETRY)
    slot = arena.acquire(9)
    assert slot is not None
    arena.pixels[slot] = 77
    assert (other.pixels[slot] == 77).all()
    assert other.held_by(9) == [slot]
    other.release(slot)
    assert arena.free == GEOMETRY.slots
    arena.close()
    other.close()


GRAB = """
import sys
from typing import Any
from service.engine.arena import Arena, Geometry
arena = Arena(int(sys.argv[1]), Geometry(slots=2000, height=1, width=1, channels=1, results=1))
owner = int(sys.argv[2])
taken = []
print("ready", flush=True)
sys.stdin.readline()
while (slot := arena.acquire(owner)) is not None:
    taken.append(slot)
print(*taken, flush=True)
sys.stdin.readline()
"""


def test_processes_never_take_the_same_slot_and_a_killed_one_blocks_nobody() -> None:
    arena = Arena.create(Geometry(slots=2000, height=1, width=1, channels=1, results=1))
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", GRAB, str(arena.descriptor), str(owner)],
            pass_fds=[arena.descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner in (1, 2)
    ]
    try:
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("\n")
            taker.stdin.flush()
        taken = [[int(slot) for slot in (taker.stdout or sys.stdin).readline().split()] for taker in takers]
        assert sorted(taken[0] + taken[1]) == list(range(2000))
        for owner, slots in zip((1, 2), taken, strict=True):
            assert arena.held_by(owner) == sorted(slots)
    finally:
        for taker in takers:
            taker.send_signal(signal.SIGKILL)
            taker.communicate()
    for owner in (1, 2):
        for slot in arena.held_by(owner):
            arena.release(slot)
    assert arena.acquire(3) == 0
    arena.close()


@given(st.sampled_from(OutputKind) | st.builds(Explain, st.none() | st.integers(0, 2**20)))
def test_what_is_wanted_of_a_slot_is_one_number(wanted: OutputKind | Explain) -> None:
    assert from_code(to_code(wanted)) == wanted
    assert -(2**31) <= to_code(wanted) < 2**31


@given(st.integers(1, 70), st.integers(1, 40))
def test_the_parts_of_the_memory_do_not_overlap(slots: int, results: int) -> None:
    arena = Arena.create(Geometry(slots, 3, 5, 3, results))
    names = ("gauges", "arrivals", "decoding", "owners", "records", "results", "pixels")
    parts = [getattr(arena, name).view(np.uint8) for name in names]
    for number, part in enumerate(parts):
        part[...] = 1 + number
    for number, part in enumerate(parts):
        assert (part == 1 + number).all(), names[number]
    arena.close()


_FREE = """
import fcntl, sys
for lock in (0, 1):
    try:
        fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, lock)
    except OSError:
        continue
    print(lock, end=" ")
"""


def test_who_decides_about_memory_holds_up_nobody_who_takes_a_slot() -> None:
    arena = Arena.create(Geometry(2, 2, 2, 3, results=1))

    def free() -> str:
        """Which of the two locks another process could have."""
        descriptor = arena.descriptor
        program = [sys.executable, "-S", "-c", _FREE, str(descriptor)]
        return subprocess.run(
            program, pass_fds=[descriptor], check=True, capture_output=True, text=True
        ).stdout

    with arena.deciding_about_memory():
        assert free() == "0 "
    assert free() == "0 1 "
    assert arena.acquire(1) == 0
    assert free() == "0 1 "
    arena.close()
