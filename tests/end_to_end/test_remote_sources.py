"""Weights from a hub by the real command, in a process of its own: nothing is imported but what it imports itself."""

from __future__ import annotations

import os
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from torchvision.models import DenseNet121_Weights

from tests.frontend.test_tls import make
from tests.models.loopback import Reply, Request, serve
from tests.models.parity import FIXTURES
from tests.models.test_huggingface import REPO, repository
from tests.server import HTTP, Server
from tests.uploads import encoded

HUB = "hf:/" + REPO
#: Where torchvision's weights are.
PUBLISHER = urlsplit(DenseNet121_Weights.IMAGENET1K_V1.url).netloc
PRESET = "kaggle://keras/densenet/keras/tiny/3"


def environment(url: str, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "KAGGLE_API_ENDPOINT": url,
        "KAGGLEHUB_CACHE": str(folder / "kaggle"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


@contextmanager
def proxy(reply: Reply | None, folder: Path) -> Iterator[dict[str, str]]:
    """A company's proxy, which opens TLS with a certificate of its own: the variables that lead through it.

    What is asked through it is answered with ``reply``; with None it lets nobody through.
    """
    certificate, key = make(folder, "localhost", f"DNS:{PUBLISHER}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            if reply is None:
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with (
                context.wrap_socket(self.connection, server_side=True) as inner,
                inner.makefile("rwb") as file,
            ):
                while file.readline().strip():
                    pass
                file.write(
                    f"HTTP/1.1 {reply.status} OK\r\nContent-Length: {len(reply.body)}\r\n\r\n".encode()
                )
                file.write(reply.body[: reply.cut])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield {"https_proxy": url, "HTTPS_PROXY": url, "no_proxy": "", "SSL_CERT_FILE": str(certificate)}
        finally:
            server.shutdown()
            thread.join()


def kaggle(request: Request) -> Reply:
    path = FIXTURES / "khub_densenet_g8" / request.path.rpartition("/")[2]
    return Reply(body=path.read_bytes()) if path.is_file() else Reply(404)


@pytest.mark.parametrize(
    ("weights", "fixture", "answer"),
    [
        (HUB, "timm_vgg", repository(FIXTURES / "timm_vgg")),
        pytest.param(
            f"{HUB}/model.pth",
            "tv_densenet_old_keys",
            repository(FIXTURES / "tv_densenet_old_keys"),
            marks=pytest.mark.slow,
        ),
        pytest.param(PRESET, "khub_densenet_g8", kaggle, marks=pytest.mark.slow),
    ],
)
def test_serve_starts_with_weights_of_a_hub(
    tmp_path: Path, weights: str, fixture: str, answer: Callable[[Request], Reply]
) -> None:
    picture = encoded(Image.fromarray(np.load(FIXTURES / fixture / "expected.npz")["image"]))
    with serve(answer) as hub, Server(weights=weights, environment=environment(hub.url, tmp_path)) as server:
        assert HTTP.post(server.url + "/predict", files={"file": picture}).status_code == 200


@pytest.mark.parametrize(
    ("weights", "reply"),
    [
        (HUB, Reply(401, headers={"X-Error-Code": "RepoNotFound"})),
        *(
            pytest.param(weights, reply, marks=pytest.mark.slow)
            for weights in (HUB, f"{HUB}/model.pth", PRESET)
            for reply in (Reply(401), Reply(403), Reply(404), Reply(200, b"{}" * 1000, cut=100))
        ),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(tmp_path: Path, weights: str, reply: Reply) -> None:
    with serve(lambda request: reply) as hub:
        _refused(tmp_path, weights, environment(hub.url, tmp_path))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(404), "answered 404"),
        pytest.param(Reply(503), "answered 503", marks=pytest.mark.slow),
        pytest.param(Reply(200, b"x" * 999, cut=500), "cut after 500 of 999 bytes", marks=pytest.mark.slow),
        pytest.param(Reply(200, b"x" * 999), "SHA-256 begins with", marks=pytest.mark.slow),
        pytest.param(None, "cannot be reached", marks=pytest.mark.slow),
    ],
)
def test_what_a_proxy_refuses_of_torchvisions_weights_is_one_sentence(
    tmp_path: Path, reply: Reply | None, reason: str
) -> None:
    with proxy(reply, tmp_path) as through:
        sentence = _refused(tmp_path, "pretrained", through)
    assert reason in sentence
    assert "TORCH_HOME" in sentence


@pytest.mark.slow
def test_no_network_at_all_is_one_sentence(tmp_path: Path) -> None:
    with serve(lambda request: Reply()) as gone:
        pass
    sentence = _refused(tmp_path, "pretrained", {"https_proxy": gone.url, "no_proxy": ""})
    assert "cannot be reached" in sentence


def _refused(folder: Path, weights: str, variables: dict[str, str]) -> str:
    """What `classify` says in a process of its own, in one sentence."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    ran = subprocess.run(
        [sys.executable, "-m", "service", "classify", str(folder / "a.png"), "--weights", weights],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TORCH_HOME": str(folder / "torch"),
            **variables,
        },
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("imagenet-serve: ")
    return last
