"""HTTPS by two files, as an operator sets and renews them."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.frontend import credentials
from service.frontend.tls import Certificate
from service.settings import load
from tests import tiny
from tests.server import HTTP, Server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def make(folder: Path, name: str, alternative: str = "DNS:localhost") -> tuple[Path, Path]:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={alternative}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def shown(certificate: Certificate) -> str:
    """The certificate that a client is shown, PEM."""
    ours, theirs = socket.socketpair()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with ours, theirs:
        server = threading.Thread(
            target=lambda: certificate.context.wrap_socket(theirs, server_side=True).close()
        )
        server.start()
        with client.wrap_socket(ours) as connection:
            data = connection.getpeercert(binary_form=True)
        server.join()
    assert data is not None
    return ssl.DER_cert_to_PEM_cert(data)


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = make(tmp_path, "first")
    certificate = Certificate(*files)
    assert shown(certificate) == files[0].read_text()
    certificate.refresh()
    assert caplog.records == []
    make(tmp_path, "second")
    second = files[0].read_text()
    certificate.refresh()
    assert shown(certificate) == second
    files[0].write_text("half a certifi")
    certificate.refresh()
    files[1].unlink()
    certificate.refresh()
    assert shown(certificate) == second
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]


def test_files_that_are_no_pair_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, key = make(tmp_path, "one")
    _, other = make(tmp_path / "other", "two")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", str(key), "-aes128", "-passout", "pass:word", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    for wrong in (other, locked, tmp_path / "missing"):
        settings = load(tls_certificate_file=certificate, tls_key_file=wrong)
        with pytest.raises(ConfigurationError, match="tls_certificate_file and tls_key_file"):
            credentials.check(settings)


def test_the_whole_service_over_https(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "here")
    weights = tiny.shared()
    with Server(weights=weights, frontends=1, tls_certificate_file=certificate, tls_key_file=key) as server:
        assert server.url.startswith("https://")
        assert HTTP.get(server.url + "/model").status_code == 200
        big = bytes(11_000_000)
        refused = HTTP.post(server.url + "/predict", content=big, headers={"content-type": "image/png"})
        assert refused.status_code == 413
        assert server.terminate() == 0
