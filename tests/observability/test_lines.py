"""Log lines towards a reader that stalls, comes back, or goes away."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.observability import lines
from service.observability.lines import Handler, LineWriter

#: Far more than any pipe, socket or terminal keeps.
MANY = 3000
PATIENCE = 60.0


def pipe() -> tuple[int, int]:
    return os.pipe()


def sockets() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    return pty.openpty()


@pytest.mark.parametrize("kind", [pipe, sockets, terminal])
@pytest.mark.parametrize("knows", [True, False], ids=["nowait", "poll"])
def test_a_stalled_reader_holds_nobody_up_and_learns_what_it_missed(
    kind: Callable[[], tuple[int, int]], knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_MAX_QUEUED_BYTES", 20_000)
    reader, writer = kind()
    output = LineWriter(writer)
    output._knows_nowait &= knows
    for number in range(MANY):
        output.write(b"%06d %s\n" % (number, b"x" * 100))
    dropped = output.dropped
    assert MANY > dropped > 0
    os.set_blocking(reader, False)
    read = b""
    give_up = time.monotonic() + PATIENCE
    while not output.flush() or read.count(b"\n") < MANY - dropped:
        assert time.monotonic() < give_up
        try:
            read += os.read(reader, 1 << 16)
        except BlockingIOError:
            time.sleep(0.001)
    numbers = [int(line.split()[0]) for line in read.replace(b"\r", b"").splitlines()]
    assert len(numbers) == MANY - dropped
    assert numbers == sorted(numbers)
    output.end()
    os.close(reader)
    os.close(writer)


def test_what_was_dropped_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_MAX_QUEUED_BYTES", 1000)
    reader, writer = os.pipe()
    handler = Handler(LineWriter(writer))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    lines.log.addHandler(handler)
    try:
        for _ in range(MANY):
            logger.warning("x" * 100)
        handler.flush()
        read = b""
        while b"were dropped" not in read:
            read += os.read(reader, 1 << 20)
            handler.flush()
        said = re.findall(rb"(\d+) log lines were dropped", read)
        assert len(said) == 1
        assert int(said[0]) + read.count(b"xxx\n") == MANY
    finally:
        lines.log.removeHandler(handler)
        os.close(reader)
        handler.close()
        os.close(writer)


def test_a_fork_leaves_its_parents_lines_alone() -> None:
    reader, writer = os.pipe()
    output = LineWriter(writer)
    for _ in range(MANY):
        output.write(b"parent %s\n" % (b"x" * 100))
    if (child := os.fork()) == 0:
        os.close(reader)
        output.end()
        os._exit(len(output._queue))
    assert os.waitpid(child, 0)[1] == 0
    os.close(reader)
    output.flush()
    os.close(writer)


@contextmanager
def unread() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service whose log nobody reads any more, once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.drills.hostile", "serve", "--port=0", "--frontends=1"],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stderr is not None
    try:
        url = ""
        while b"ready on" not in (line := process.stderr.readline()):
            assert line, "it ended"
        url = re.findall(r"http://[0-9.:]+", json.loads(line)["message"])[0]
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_service_whose_log_nobody_reads_serves_and_ends() -> None:
    with unread() as (process, url), httpx.Client(timeout=PATIENCE) as client:
        for _ in range(600):
            assert client.get(f"{url}/model").status_code == 200
        assert client.get(f"{url}/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
