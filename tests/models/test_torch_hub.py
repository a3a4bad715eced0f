"""torchvision's weights through torch hub's cache, fetched from a server on the loopback."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.errors import CheckpointError
from service.models.catalog import VARIANTS
from service.models.checkpoints import resolve, torch_hub
from service.models.checkpoints.download import terminal_progress
from service.models.configuration import DenseNetConfig
from service.models.loader import load
from service.models.network import build
from tests.models.loopback import Loopback, Reply, serve

SMALL = DenseNetConfig((1, 1), growth_rate=2, stem_width=4, num_classes=1000)


@pytest.fixture(scope="module")
def content() -> bytes:
    buffer = io.BytesIO()
    torch.save(build(SMALL).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def cached(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache keeps the file of a "densenet121" that is small enough for a test."""
    name = f"densenet121-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    small = replace(VARIANTS["densenet121"], configuration=SMALL, weights_file=name)
    monkeypatch.setitem(VARIANTS, "densenet121", small)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints" / name


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loopback], None]:
    def point(server: Loopback) -> None:
        monkeypatch.setattr(torch_hub, "url", lambda variant: f"{server.url}/{variant.weights_file}")

    return point


def test_it_is_fetched_once_and_then_read_without_a_server(
    content: bytes, cached: Path, point_at: Callable[[Loopback], None]
) -> None:
    seen: list[tuple[int, int | None]] = []
    with serve(lambda request: Reply(body=content)) as server:
        point_at(server)
        first = resolve("pretrained", "densenet121", progress=lambda done, total: seen.append((done, total)))
    assert (seen[0], seen[-1]) == ((0, len(content)), (len(content), len(content)))
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    again = resolve("pretrained", "densenet121")
    assert first.sha256 == again.sha256 == hashlib.sha256(content).hexdigest()
    assert (again.name, again.source) == ("IMAGENET1K_V1", f"torchvision {cached.name}")
    load(again)


def test_a_damaged_cache_is_fetched_again(
    content: bytes, cached: Path, point_at: Callable[[Loopback], None]
) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content[:-1] + b"?")
    with serve(lambda request: Reply(body=content)) as server:
        point_at(server)
        resolve("pretrained", "densenet121")
    assert cached.read_bytes() == content


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(404), "answered 404"),
        (Reply(503), "answered 503"),
        (Reply(200, b"x" * 99), "SHA-256 begins with"),
        (Reply(200, b"x" * 99, cut=50), "cut after 50 of 99 bytes"),
        (Reply(302, headers={"Location": "file:///etc/passwd"}), "answered 302"),
    ],
)
def test_a_failed_download_leaves_no_file_of_that_name_and_names_the_ways_out(
    cached: Path, point_at: Callable[[Loopback], None], reply: Reply, reason: str
) -> None:
    with serve(lambda request: reply) as server:
        point_at(server)
        with pytest.raises(CheckpointError, match=rf"{reason}.*TORCH_HOME.*--weights PATH.*demo.*random"):
            resolve("pretrained", "densenet121")
    assert [path.name for path in cached.parent.glob("*.pth")] == []
    assert all(path.stat().st_size < 99 + 200 for path in cached.parent.iterdir())


def test_no_server_is_one_clear_message(cached: Path, point_at: Callable[[Loopback], None]) -> None:
    with serve(lambda request: Reply()) as server:
        pass
    point_at(server)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve("pretrained", "densenet121")


def test_a_cache_that_cannot_be_written_is_one_clear_message(
    content: bytes, cached: Path, point_at: Callable[[Loopback], None]
) -> None:
    cached.parent.parent.mkdir(parents=True)
    cached.parent.write_text("a file where a folder is wanted")
    with serve(lambda request: Reply(body=content)) as server:
        point_at(server)
        with pytest.raises(CheckpointError, match="File exists"):
            resolve("pretrained", "densenet121")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_progress_line_and_a_log_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    report = terminal_progress("vgg11.pth")
    for done in (0, 250_000_000, 500_000_000):
        report(done, 500_000_000)
    written = capsys.readouterr().err
    assert written == ("\rvgg11.pth  0/477 MiB\rvgg11.pth  238/477 MiB\rvgg11.pth  477/477 MiB\n" * terminal)


def test_the_url_is_torchvisions() -> None:
    for variant in VARIANTS.values():
        assert torch_hub.url(variant).endswith(f"/models/{variant.weights_file}")
