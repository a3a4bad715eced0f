"""A real server, a real browser, and a picture: what the tests of the page stand on.

The server is the one at ``IMAGENET_PAGE_URL``, or one that is started here with untrained weights. The tests only
speak HTTP to it, so the browser's packages live in an environment of their own (see ``run.sh``).
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 180.0

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium and playwright (tests/page/run.sh)")


# ---- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that is ready, without the slash at its end."""
    if given := os.environ.get("IMAGENET_PAGE_URL"):
        yield given.rstrip("/")
        return
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(log, "--model", "densenet121", "--weights", "random:0") as url:
        yield url


@contextmanager
def serving(log: Path, *flags: str) -> Iterator[str]:
    """A real server that is ready, until the block ends; its address without the slash at its end."""
    port = free_port()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [service_python(), "-m", "service", "serve", "--port", str(port), *flags],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def service_python() -> str:
    """The Python that has the service's dependencies; not the one that runs these tests."""
    own = ROOT / ".venv/bin/python"
    return os.environ.get("IMAGENET_PYTHON") or (
        str(own) if own.exists() else shutil.which("python3") or sys.executable
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text(errors='replace')[-3000:]}", pytrace=False)


# ---- the browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright; tests/page/run.sh brings it"
    )
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium; or set CHROMIUM)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, base_url: str) -> Iterator[Callable[..., Page]]:
    """``open_page(prepare, **context_options)``: the page, after ``prepare(page)`` has set its routes.

    At the test's end: no script error, no refusal by the content security policy, nothing from another host.
    """
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def open_(prepare: Callable[[Page], object] = lambda page: None, **options: object) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        page.on(
            "console",
            lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None,
        )
        page.on(
            "request", lambda request: faults.append(request.url) if foreign(request.url, base_url) else None
        )
        prepare(page)
        page.goto(f"{base_url}/")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def foreign(url: str, base_url: str) -> bool:
    return not url.startswith((base_url + "/", f"blob:{base_url}/", "data:"))


# ---- a picture -------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG, 320 × 200: dark, with a light square in its upper left."""
    path = tmp_path / "light square.png"
    path.write_bytes(png(320, 200, lambda x, y: (250, 240, 200) if x < 120 and y < 120 else (30, 60, 90)))
    return path


def png(width: int, height: int, pixel: Callable[[int, int], tuple[int, int, int]]) -> bytes:
    """A PNG by the standard library alone (W3C PNG, colour type 2, filter 0)."""
    rows = b"".join(b"\0" + bytes(v for x in range(width) for v in pixel(x, y)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
