"""The whole service in its own processes, seen from outside over real sockets."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from service.models import loader
from service.preprocess import Preprocessing, prepare
from tests import tiny
from tests.crew import Crew
from tests.server import HTTP, Server
from tests.uploads import png

SLOTS = 64
#: Seconds. No property hangs on it: what is waited for comes in milliseconds where nothing else runs.
PATIENCE = 30.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.shared()


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with Server(weights=weights, frontends=2, queue_capacity=SLOTS, max_batch_size=8) as running:
        yield running


@cache
def model() -> tuple[Preprocessing, loader.Uint8Model]:
    checkpoint = tiny.checkpoint()
    return checkpoint.preprocessing, loader.load(checkpoint)


def probabilities(data: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the tiny model says to an image, computed here."""
    preprocessing, network = model()
    pixels = np.empty((1, *preprocessing.shape), np.uint8)
    prepare(data, preprocessing, pixels[0], max_pixels=10**7)
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels))[0]
    return torch.softmax(logits.double(), 0).numpy()


def agrees(answer: dict[str, Any], wanted: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    got = {entry["class_id"]: entry["probability"] for entry in answer["predictions"]}
    return all(abs(wanted[index] - probability) < 1e-5 for index, probability in got.items())


def idle(server: Server) -> bool:
    return in_flight(server) == 0


def until(condition: Callable[[], bool], complaint: str) -> None:
    """Waits for what has to come, as long as a busy machine may need for it."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, complaint
        time.sleep(0.02)


def wait_idle(server: Server) -> None:
    until(lambda: idle(server), "slots were lost")


def in_flight(server: Server) -> float:
    return server.metrics()["imagenet_in_flight_requests"]


def readiness(server: Server) -> tuple[int, str | None]:
    answer = HTTP.get(server.url + "/readyz")
    return answer.status_code, answer.json().get("code")


def test_two_hundred_clients_each_get_their_own_answer(server: Server) -> None:
    before = server.metrics()
    photos = [(data := png(seed), probabilities(data)) for seed in range(200)]

    def one(work: tuple[bytes, Any]) -> tuple[bool, int]:
        photo, wanted = work
        retries = 0
        while True:
            answer = HTTP.post(server.url + "/predict", files={"file": photo})
            if answer.status_code != 429:
                assert answer.status_code == 200, answer.text
                return agrees(answer.json(), wanted), retries
            retries += 1
            time.sleep(0.2)

    with ThreadPoolExecutor(200) as clients:
        results = list(clients.map(one, photos))
    assert all(right for right, _ in results)
    after = server.metrics()

    def grew(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grew('imagenet_requests_total{route="/predict",status="200"}') == 200
    refused = sum(retries for _, retries in results)
    assert grew('imagenet_requests_total{route="/predict",status="429"}') == refused
    assert grew('imagenet_rejected_total{reason="overloaded"}') == refused
    assert grew("imagenet_images_total") == 200
    assert grew("imagenet_batch_size_sum") == 200
    assert grew("imagenet_batch_size_count") == grew("imagenet_batches_total") < 200  # so batches did form
    assert grew('imagenet_batch_size_bucket{le="8.0"}') == grew("imagenet_batches_total")
    assert after["imagenet_late_work_total"] == 0
    wait_idle(server)


def test_every_front_end_tells_the_same_sum(server: Server) -> None:
    name = 'imagenet_requests_total{route="/livez",status="200"}'
    before = server.metrics().get(name, 0)
    for _ in range(40):  # a new connection each, so that both front-ends get some
        HTTP.get(server.url + "/livez")
    scrapes = {server.metrics()[name] - before for _ in range(10)}
    assert scrapes == {40}


def test_a_client_that_hangs_up_frees_its_place(weights: Path) -> None:
    body = png(1)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    # Alone in the queue, the request waits for company; its client goes away meanwhile.
    with Server(weights=weights, frontends=1, max_batch_size=2, max_queue_delay_ms=3000) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            until(lambda: in_flight(server) == 1, "it was never admitted")
            # A reset: who only closes may still read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_idle(server)
        after = server.metrics()
        assert after["imagenet_cancelled_total"] == 1
        assert after["imagenet_images_total"] == 0
        assert after['imagenet_requests_total{route="/predict",status="499"}'] == 1


class Load(Crew):
    """Clients that keep asking until they are told to stop; every answer is checked."""

    def __init__(self, server: Server, clients: int = 8) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.wrong = 0
        self._server = server
        self._photos = [(photo := png(seed), probabilities(photo).argmax()) for seed in range(8)]
        super().__init__(*(partial(self._ask, number) for number in range(clients)))

    def _ask(self, number: int) -> None:
        photo, best = self._photos[number % len(self._photos)]
        while not self._stop.is_set():
            try:
                # A connection each: a refused one was never admitted, a broken one is a lost request.
                answer = HTTP.post(self._server.url + "/predict", files={"file": photo})
            except httpx.ConnectError:
                self.statuses["refused"] += 1
                time.sleep(0.02)
                continue
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                time.sleep(0.05)
            if answer.status_code == 200:
                self.wrong += answer.json()["predictions"][0]["class_id"] != best


def test_sigterm_under_load_answers_what_was_admitted(weights: Path) -> None:
    with Server(weights=weights, frontends=2, drain_delay_ms=3000) as server, Load(server) as load:
        until(lambda: load.statuses[200] > 0, "nobody is answered")
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: readiness(server) == (503, "draining"), "it stays ready")
        load.statuses.clear()
        assert server.wait() == 0
    assert load.wrong == 0
    assert load.statuses[200] > 10  # it went on serving
    assert set(load.statuses) <= {200, "refused"}, load.statuses


def test_a_drain_that_is_too_short_says_so_with_its_exit_code(weights: Path) -> None:
    settings: dict[str, Any] = {"max_queue_delay_ms": 10_000, "drain_timeout_ms": 500, "max_batch_size": 8}
    with Server(weights=weights, frontends=1, **settings) as server, ThreadPoolExecutor(1) as clients:
        asked = clients.submit(HTTP.post, server.url + "/predict", files={"file": png(1)})
        until(lambda: in_flight(server) == 1, "it was never admitted")
        assert server.terminate() == 1
        answer = asked.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert any("drain_timeout_ms" in line for line in server.lines)


def test_a_killed_engine_is_said_at_once_and_comes_back(weights: Path) -> None:
    with Server(weights=weights, frontends=2) as server, Load(server, clients=4) as load:
        until(lambda: load.statuses[200] > 0, "nobody is answered")
        os.kill(server.children()["engine"], signal.SIGKILL)
        until(lambda: readiness(server) == (503, "engine_failed"), "it stays ready")
        answer = HTTP.post(server.url + "/predict", files={"file": png(1)})
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_failed")
        assert HTTP.get(server.url + "/livez").status_code == 200
        server.wait_ready()

        def all_is_well() -> bool:  # one front-end is ready first, the other a moment later
            load.statuses.clear()
            until(lambda: sum(load.statuses.values()) >= 20, "nobody asks")
            return set(load.statuses) == {200}

        until(all_is_well, "some requests still fail")
        assert HTTP.get(server.url + "/healthz").json()["restarts"] == 1
        assert server.metrics()["imagenet_engine_restarts_total"] == 1
        assert load.wrong == 0


def test_a_killed_front_end_is_replaced_and_its_slots_come_back(weights: Path) -> None:
    with Server(weights=weights, frontends=2, queue_capacity=16) as server:
        with Load(server, clients=6) as load:
            until(lambda: load.statuses[200] > 0, "nobody is answered")
            before = set(server.children().values())
            os.kill(server.children()["frontend-1"], signal.SIGKILL)
            until(
                lambda: len(after := set(server.children().values())) == 3 and after != before, "nobody came"
            )
            assert len(set(server.children().values()) & before) == 2
            answered = load.statuses[200]
            until(lambda: load.statuses[200] > answered + 20, "the others answer no more")
        assert load.wrong == 0
        assert sum(count for status, count in load.statuses.items() if status not in (200, 429)) <= 6
        wait_idle(server)


def test_a_dead_supervisor_leaves_nobody_behind(weights: Path) -> None:
    with Server(weights=weights, frontends=2) as server:
        children = list(server.children().values())
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "somebody stayed")


def test_http_answers_while_the_model_is_loading(weights: Path) -> None:
    with Server(weights="random:0", wait=False) as server:
        assert HTTP.get(server.url + "/livez").status_code == 200
        assert HTTP.get(server.url + "/healthz").json()["state"] in ("starting", "loading", "warming")
        assert HTTP.get(server.url + "/readyz").status_code == 503
        assert server.terminate() == 0


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"weights": "/no/such/file.pth"}, 1, "there are no weights"),
        ({"model": "resnet50"}, 2, "densenet121"),
        ({"device": "tpu"}, 2, "device"),
        ({"frontends": 0}, 2, "frontends"),
        ({"host": "192.0.2.1"}, 1, "cannot listen"),
        ({"api_keys_file": "/no/such/file"}, 1, "api_keys_file cannot be read"),
        ({"tls_certificate_file": "/no/such", "tls_key_file": "/file"}, 1, "tls_certificate_file"),
        ({"device": "cuda", "weights": "random"}, 1, "no usable CUDA"),
    ],
)
def test_a_start_that_cannot_be_ends_with_one_sentence(
    settings: dict[str, Any], code: int, message: str
) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this host has CUDA")
    server = Server(**settings)
    assert server.wait() == code
    server.__exit__(None, None, None)
    assert any(message in line for line in server.lines), server.lines
    assert not any("Traceback" in line for line in server.lines)


def test_a_taken_port_is_named(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    second = Server(port=port, weights="random")
    assert second.wait() == 1
    second.__exit__(None, None, None)
    assert any(f"port {port}" in line for line in second.lines)


def test_an_engine_holds_no_torch(weights: Path, tmp_path: Path) -> None:
    """Not after its first start either: what needs torch is done by a process that goes."""
    pytest.importorskip("openvino")
    for _ in range(2):
        with Server(weights=weights, frontends=1, environment={"XDG_CACHE_HOME": str(tmp_path)}) as server:
            mapped = Path(f"/proc/{server.children()['engine']}/maps").read_text()
            assert "openvino" in mapped
            assert "libtorch" not in mapped
            assert server.terminate() == 0
