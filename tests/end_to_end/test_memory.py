"""Nothing grows: 20,000 requests, good and bad, and the memory of every process before and after."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import tiny
from tests.server import Server
from tests.uploads import png

REQUESTS = 20_000
CLIENTS = 8
#: MiB that any process may have grown by between the first tenth, which fills caches, and the end.
ALLOWED = 16


def resident(pid: int) -> float:
    """MiB of ``pid``'s own memory: the arena is shared and counts where it was first touched."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


def send(server: Server, requests: int) -> None:
    bodies = [png(seed) for seed in range(20)]
    bodies[7], bodies[13] = bodies[7][:200], b"no picture"
    kinds = {200: 18 * requests // 20, 422: requests // 20, 415: requests // 20}

    def some(first: int) -> list[int]:
        statuses = []
        with httpx.Client(verify=False, timeout=60, headers={"content-type": "image/png"}) as client:
            for number in range(first, requests, CLIENTS):
                statuses.append(client.post(server.url + "/predict", content=bodies[number % 20]).status_code)
        return statuses

    with ThreadPoolExecutor(CLIENTS) as clients:
        statuses = [status for part in clients.map(some, range(CLIENTS)) for status in part]
    assert {kind: statuses.count(kind) for kind in set(statuses)} == kinds


@pytest.mark.slow
def test_twenty_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    with Server(weights=tiny.shared(), frontends=2) as server:
        send(server, REQUESTS // 10)
        pids = server.children()
        before = {name: resident(pid) for name, pid in pids.items()}
        send(server, REQUESTS)
        time.sleep(0.5)
        after = {name: resident(pid) for name, pid in pids.items()}
        assert server.metrics()["imagenet_in_flight_requests"] == 0
        assert server.metrics()["imagenet_images_total"] == 1.1 * REQUESTS * 18 / 20
        grown = {name: round(after[name] - before[name], 1) for name in pids}
        assert max(grown.values()) <= ALLOWED, (grown, before)
        print("MiB grown:", grown, "from", before)
