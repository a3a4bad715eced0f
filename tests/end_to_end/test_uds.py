"""The service on a Unix socket: answers there, says what its processes use, and takes the file away at its end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.server import program

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "red-panda.jpg"
#: Seconds: a start on a busy machine.
PATIENCE = 120.0


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_service_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    command = [sys.executable, "-m", "service", "serve", "--weights=demo", "--frontends=1", f"--uds={path}"]
    with (
        program(command, stderr=subprocess.DEVNULL) as service,
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://service", timeout=60
        ) as http,
    ):
        give_up = time.monotonic() + PATIENCE
        while not (listens(path) and http.get("/readyz").status_code == 200):
            assert service.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)
        answer = http.put("/predict", content=SAMPLE.read_bytes())
        assert answer.status_code == 200
        assert answer.json()["predictions"]
        scraped = http.get("/metrics").text
        for process in ("supervisor", "engine", "frontend"):
            assert f'imagenet_process_resident_memory_bytes{{process="{process}"}}' in scraped
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE) == 0
    assert not path.exists()
