"""File descriptors that run out, and who notices."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from service.frontend import descriptors
from service.shared.transport import PROCESSES, Channel, socket_pair
from tests.server import HTTP, Server
from tests.uploads import png

#: Seconds: far above what anything here takes, on any machine.
PATIENCE = 60.0


@contextlib.contextmanager
def exhausted() -> Iterator[list[int]]:
    """This process has no descriptor left; those that it took can be closed one by one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))  # other tests of this process may have many open
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 64), hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not PROCESSES, reason="channels with descriptors are Linux's")
@pytest.mark.parametrize("left", [0, 1, 2])
def test_descriptors_that_do_not_fit_are_noticed_and_none_is_lost(left: int) -> None:
    ours, theirs = socket_pair()
    channel, other = Channel(ours), Channel(theirs)
    with exhausted() as taken:
        given = [taken.pop() for _ in range(3)]
        channel.send("engine", number=1, descriptors=given)
        taken.extend(given[left:])
        for descriptor in given[:left]:
            os.close(descriptor)
        assert other.receive() == ({"kind": "truncated"}, [])
        taken.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(left))  # they are free again
    channel.close()
    other.close()


def test_a_reserve_is_there_when_nothing_else_is() -> None:
    reserve = descriptors.Reserve()
    with exhausted() as taken:
        reserve.release()
        taken.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(3))
        reserve.hold()  # less than before, and no error
        reserve.release()
    reserve.hold()
    reserve.release()


@pytest.mark.parametrize(
    ("limit", "asked", "most"), [(256, None, 160), (20_000, None, 19_904), (20_000, 50, 50)]
)
def test_connections_fit_the_limit(
    limit: int, asked: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (limit, limit))
    assert descriptors.connections(asked) == most
    assert (descriptors.complaint(asked) is None) is (limit > 256)
    assert descriptors.connections(10 * limit) < limit


def until(condition: Callable[[], bool], complaint: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, complaint
        time.sleep(0.05)


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="there is no prlimit here")
def test_idle_connections_beyond_the_limit_cost_nobody_a_new_engine() -> None:
    photo = png(1)
    with (
        Server(module="tests.drills.hostile", frontends=1, descriptors=256) as server,
        contextlib.ExitStack() as stack,
    ):
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(400):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))
        front_end = server.children()["frontend-1"]
        os.kill(server.children()["engine"], signal.SIGKILL)

        def is_served() -> bool:
            return HTTP.post(server.url + "/predict", files={"file": photo}).status_code == 200

        until(lambda: HTTP.get(server.url + "/healthz").json()["restarts"] == 1, "no new engine")
        until(is_served, "never served again")
        assert server.children()["frontend-1"] == front_end
        assert server.terminate() == 0
    assert any("ulimit -n is 256" in line for line in server.lines)
    assert any("max_connections" in line for line in server.lines)
