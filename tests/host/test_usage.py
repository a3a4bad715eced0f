"""What processes use, held against what the system says of children that the test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.host import usage
from tests.server import program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

CHILD = """
import sys
from service.host.usage import name_process
name_process(sys.argv[1])
files = [open("/dev/null") for _ in range(int(sys.argv[2]))]
held = bytearray(b"x" * (int(sys.argv[3]) << 20))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def child(name: str, files: int = 0, mebibytes: int = 0) -> Iterator[int]:
    command = [sys.executable, "-c", CHILD, name, str(files), str(mebibytes)]
    with program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def test_processes_are_told_apart_by_what_they_are() -> None:
    with child("engine", files=50), child("frontend-1", mebibytes=64), child("frontend-2", mebibytes=64):
        found = usage.by_process(os.getpid())
    assert found.keys() == {"supervisor", "engine", "frontend"}
    assert 50 <= found["engine"].open_files < 50 + 20
    assert found["frontend"].resident_bytes > 2 * (64 << 20) > found["engine"].resident_bytes
    assert all(used.cpu_seconds > 0 for used in found.values())


def test_a_helper_without_a_name_of_its_own_counts_to_who_started_it() -> None:
    with child("sh-something", mebibytes=64):
        found = usage.by_process(os.getpid())
    assert found.keys() == {"supervisor"}
    assert found["supervisor"].resident_bytes > 64 << 20


def test_a_process_that_is_not_there_uses_nothing() -> None:
    assert usage.by_process(2**22 + 1) == {}
