"""The image's two scripts: is it healthy, and fetch the weights."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from service.models.catalog import VARIANTS
from service.models.checkpoints import resolve
from tests.frontend.test_tls import make
from tests.models.test_torch_hub import cached, content  # noqa: F401  # fixtures
from tests.server import Server

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def health(url: str, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DEPLOY / "health.py", path],
        env={**os.environ, "IMAGENET_PORT": url.rpartition(":")[2], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_the_health_command_asks_as_the_port_speaks(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "not this host")
    files: dict[str, Any] = {"tls_certificate_file": certificate, "tls_key_file": key}
    with Server(module="tests.drills.hostile", frontends=1, **files) as server:
        tls = {"IMAGENET_TLS_CERTIFICATE_FILE": str(certificate)}
        for path in ("/livez", "/readyz"):
            assert health(server.url, path, **tls).returncode == 0
        assert health(server.url, "/nothing", **tls).returncode == 1
        wrong = health(server.url, "/livez")
        assert (wrong.returncode, "Traceback" in wrong.stderr) == (1, False)
        assert server.terminate() == 0
    assert health(server.url, "/livez", **tls).returncode == 1


def test_baked_weights_are_found_under_a_volume(
    content: bytes,  # noqa: F811
    cached: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.hub's folder is empty, as where a fresh volume was mounted over it, and there is no network."""
    baked = tmp_path / "baked"
    baked.mkdir()
    (baked / cached.name).write_bytes(content)
    monkeypatch.setenv("BAKED_WEIGHTS", str(baked))
    found = resolve("pretrained", "densenet121")
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert not cached.exists()
    assert Path(torch.hub.get_dir()).parent.parent == tmp_path
    assert VARIANTS["densenet121"].weights_file == cached.name
