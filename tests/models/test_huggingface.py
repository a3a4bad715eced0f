"""The Hugging Face Hub through its own client, answered by a server on the loopback."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from service.errors import CheckpointError
from service.models.checkpoints import resolve
from tests.models.loopback import Loopback, Reply, Request, serve
from tests.models.parity import FIXTURES

pytest.importorskip("huggingface_hub")
constants: Any = import_module("huggingface_hub.constants")
http: Any = import_module("huggingface_hub.utils._http")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "/timm/tiny"


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    for close in ("close_session", "reset_sessions"):
        getattr(http, close, lambda: None)()


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loopback], None]:
    def point(server: Loopback) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )

    return point


def repository(folder: Path, revisions: tuple[str, ...] = ("main", COMMIT)) -> Callable[[Request], Reply]:
    """A folder as the hub serves it."""

    def answer(request: Request) -> Reply:
        prefix, _, rest = request.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        headers = {"X-Repo-Commit": COMMIT}
        if prefix != REPO:
            return Reply(401, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in revisions:
            return Reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if not (folder / name).is_file():
            return Reply(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        body = (folder / name).read_bytes()
        return Reply(body=body, headers={**headers, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'})

    return answer


def test_a_second_start_needs_no_server(point_at: Callable[[Loopback], None]) -> None:
    seen: list[tuple[int, int | None]] = []
    with serve(repository(FIXTURES / "timm_vgg")) as server:
        point_at(server)
        first = resolve("hf://timm/tiny", "vgg11", progress=lambda done, total: seen.append((done, total)))
    size = (FIXTURES / "timm_vgg" / "model.safetensors").stat().st_size
    assert (size, size) in seen
    again = resolve("hf://timm/tiny", "vgg11")
    assert first.sha256 == again.sha256
    assert (again.name, again.source) == ("timm/tiny", "timm vgg11, Hugging Face timm/tiny")


def test_all_files_are_of_one_commit(point_at: Callable[[Loopback], None]) -> None:
    with serve(repository(FIXTURES / "khub_densenet_g8")) as server:
        point_at(server)
        checkpoint = resolve("hf://timm/tiny", "densenet121")
    assert len(checkpoint.classes or ()) == 5
    revisions = [path.split("/")[4] for path in server.paths if "/resolve/" in path]
    assert revisions[0] == "main"
    assert set(revisions[1:]) == {COMMIT}


def test_a_revision_is_asked_for(point_at: Callable[[Loopback], None]) -> None:
    with serve(repository(FIXTURES / "timm_vgg", ("v1.0", COMMIT))) as server:
        point_at(server)
        assert resolve("hf://timm/tiny@v1.0", "vgg11").name == "timm/tiny@v1.0"
        with pytest.raises(CheckpointError, match="no revision main; name a branch, a tag or a commit"):
            resolve("hf://timm/tiny", "vgg11")


def test_a_preset_without_a_head_stays_so_without_a_server(
    point_at: Callable[[Loopback], None], tmp_path: Path
) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        shutil.copy(FIXTURES / "khub_densenet_g8" / name, folder)
    with serve(repository(folder)) as server:
        point_at(server)
        resolve("hf://timm/tiny", "densenet121")
    assert resolve("hf://timm/tiny", "densenet121").classes is None


def test_a_file_that_was_never_asked_for_is_no_missing_head(point_at: Callable[[Loopback], None]) -> None:
    """KerasHub would take a random head here."""
    whole = repository(FIXTURES / "khub_densenet_g8")
    with serve(lambda request: Reply(503) if "task" in request.path else whole(request)) as server:
        point_at(server)
        with pytest.raises(CheckpointError, match=r"task\.json"):
            resolve("hf://timm/tiny", "densenet121")
    with pytest.raises(CheckpointError, match=r"cannot be reached and the cache has no task\.json"):
        resolve("hf://timm/tiny", "densenet121")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(401, headers={"X-Error-Code": "RepoNotFound"}), "no such repository, or it is private"),
        (Reply(403, headers={"X-Error-Code": "GatedRepo"}), "it is gated; accept its terms.*HF_TOKEN"),
        (Reply(404, headers={"X-Error-Code": "RepoNotFound"}), "no such repository"),
        (Reply(404, headers={"X-Error-Code": "RevisionNotFound"}), "no revision main"),
        (Reply(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}), "no config.json"),
        (Reply(403), "could not be fetched|cannot be reached"),
        (Reply(500), "could not be fetched|cannot be reached"),
    ],
)
def test_every_refusal_has_its_message(
    point_at: Callable[[Loopback], None], reply: Reply, message: str
) -> None:
    with serve(lambda request: reply) as server:
        point_at(server)
        with pytest.raises(CheckpointError, match=message):
            resolve("hf://timm/tiny", "vgg11")


def test_a_cut_connection_is_no_partial_cache(point_at: Callable[[Loopback], None]) -> None:
    whole = repository(FIXTURES / "timm_vgg")

    def cutting(request: Request) -> Reply:
        reply = whole(request)
        cut = request.method == "GET" and "safetensors" in request.path
        return Reply(reply.status, reply.body, reply.headers, cut=1000) if cut else reply

    with serve(cutting) as server:
        point_at(server)
        with pytest.raises(CheckpointError, match=r"could not be fetched|cannot be reached"):
            resolve("hf://timm/tiny", "vgg11")
    with serve(whole) as server:
        point_at(server)
        resolve("hf://timm/tiny", "vgg11")


def test_the_token_is_sent(point_at: Callable[[Loopback], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(repository(FIXTURES / "timm_vgg")) as server:
        point_at(server)
        resolve("hf://timm/tiny", "vgg11")
    asked = [request.headers.get("authorization") for request in server.requests if REPO in request.path]
    assert set(asked) == {"Bearer hf_secret"}


def test_offline_mode_asks_nobody(
    point_at: Callable[[Loopback], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(repository(FIXTURES / "timm_vgg")) as server:
        point_at(server)
        resolve("hf://timm/tiny", "vgg11")
        asked = len(server.requests)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        resolve("hf://timm/tiny", "vgg11")
        with pytest.raises(CheckpointError, match="the cache has no"):
            resolve("hf://timm/other", "vgg11")
        assert len(server.requests) == asked


def test_no_server_and_no_cache(point_at: Callable[[Loopback], None]) -> None:
    with serve(lambda request: Reply()) as server:
        pass
    point_at(server)
    with pytest.raises(CheckpointError, match=r"the cache has no config\.json; check the network"):
        resolve("hf://timm/tiny", "vgg11")


@pytest.mark.parametrize("address", ["hf://", "hf://timm", "hf://a/b@", "hf://a b/c"])
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match="write hf://owner/repo"):
        resolve(address, "vgg11")
