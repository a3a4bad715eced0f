"""Kaggle through its HTTP interface, answered by a server on the loopback."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import CheckpointError
from service.models.checkpoints import resolve
from service.models.checkpoints.kaggle import BUILT_IN
from tests.models.loopback import Reply, Request, serve
from tests.models.parity import FIXTURES

MODEL = "/api/v1/models/keras/densenet/keras/tiny"
HANDLE = "kaggle://keras/densenet/keras/tiny"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))


def kaggle(request: Request) -> Reply:
    """The preset in the fixtures as version 3 of a model."""
    if request.path == f"{MODEL}/get":
        return Reply(body=json.dumps({"versionNumber": 3}).encode())
    name = request.path.removeprefix(f"{MODEL}/3/download/")
    path = FIXTURES / "khub_densenet_g8" / name
    return Reply(body=path.read_bytes()) if path.is_file() else Reply(404)


def fetch(
    answer: Callable[[Request], Reply], monkeypatch: pytest.MonkeyPatch, address: str = f"{HANDLE}/3"
) -> list[Request]:
    with serve(answer) as server:
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
        resolve(address, "densenet121")
    return server.requests


def test_a_second_start_needs_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []
    with serve(kaggle) as server:
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
        resolve(f"{HANDLE}/3", "densenet121", progress=lambda done, total: seen.append(done))
    assert max(seen) == (FIXTURES / "khub_densenet_g8" / "model.weights.h5").stat().st_size
    checkpoint = resolve(f"{HANDLE}/3", "densenet121")
    assert checkpoint.name == "keras/densenet/keras/tiny/3"
    assert len(checkpoint.classes or ()) == 5
    # As kagglehub lays it out, so that the two share it.
    variation = tmp_path / "cache/models/keras/densenet/keras/tiny"
    assert (variation / "3/model.weights.h5").is_file()
    assert (variation / ".complete/3/model.weights.h5.complete").is_file()


def test_without_a_version_the_newest_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = fetch(kaggle, monkeypatch, HANDLE)
    assert [request.path for request in requests][:2] == [f"{MODEL}/get", f"{MODEL}/3/download/config.json"]
    with pytest.raises(CheckpointError, match=r"names no version.*write the version"):
        resolve(HANDLE, "densenet121")


def test_a_preset_without_a_head_stays_so_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(lambda request: Reply(404) if "task" in request.path else kaggle(request), monkeypatch)
    assert resolve(f"{HANDLE}/3", "densenet121").classes is None


def test_a_file_that_was_never_asked_for_is_no_missing_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """KerasHub would take a random head here."""
    with pytest.raises(CheckpointError, match="answered 503"):
        fetch(lambda request: Reply(503) if "task" in request.path else kaggle(request), monkeypatch)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve(f"{HANDLE}/3", "densenet121")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(401), "access is denied; accept the model's terms.*KAGGLE_API_TOKEN"),
        (Reply(403), "access is denied"),
        (Reply(404), "there is no such model"),
        (Reply(500), "answered 500.*KAGGLEHUB_CACHE"),
    ],
)
@pytest.mark.parametrize("address", [HANDLE, f"{HANDLE}/3"])
def test_every_refusal_has_its_message(
    monkeypatch: pytest.MonkeyPatch, reply: Reply, message: str, address: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch(lambda request: reply, monkeypatch, address)


def test_a_cut_connection_leaves_no_file_of_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cutting(request: Request) -> Reply:
        reply = kaggle(request)
        return Reply(body=reply.body, cut=1000) if "weights" in request.path else reply

    with pytest.raises(CheckpointError, match="cut after 1000 of"):
        fetch(cutting, monkeypatch)
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(name.endswith(".h5") for name in names)
    fetch(kaggle, monkeypatch)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"KAGGLE_API_TOKEN": "secret"}, "Bearer secret"),
        ({"KAGGLE_API_TOKEN": "{home}/token.txt"}, "Bearer from a file"),
        ({"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "mine"}, "Basic " + base64.b64encode(b"me:mine").decode()),
        ({"KAGGLE_CONFIG_DIR": "{home}/config"}, "Basic " + base64.b64encode(b"you:yours").decode()),
    ],
)
def test_credentials_are_where_kagglehub_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], expected: str | None
) -> None:
    (tmp_path / "token.txt").write_text("from a file\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "kaggle.json").write_text('{"username": "you", "key": "yours"}')
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    requests = fetch(kaggle, monkeypatch)
    assert {request.headers.get("authorization") for request in requests} == {expected}


def test_a_redirect_to_another_host_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    with serve(lambda request: kaggle(request)) as storage:
        requests = fetch(
            lambda request: Reply(302, headers={"Location": storage.url + request.path}), monkeypatch
        )
    assert {request.headers.get("authorization") for request in requests} == {"Bearer secret"}
    assert {request.headers.get("authorization") for request in storage.requests} == {None}


@pytest.mark.parametrize(
    "address",
    [
        "kaggle://keras/densenet",
        "kaggle://a/b/c/d/x",
        "kaggle://a/b/c/../1",
        "kaggle://a/b/c/d/1/e",
        "kaggle://",
    ],
)
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match="write kaggle://owner/model/framework/variation"):
        resolve(address, "densenet121")


def test_kerashubs_names_are_kaggles() -> None:
    own = [f"vgg_{depth}_imagenet" for depth in (11, 13, 16, 19)]
    own += [f"densenet_{depth}_imagenet" for depth in (121, 169, 201)]
    # And as Keras's documentation calls them.
    others = {"vgg16": "vgg_16_imagenet", "vgg16_imagenet": "vgg_16_imagenet"}
    others |= {"densenet121_imagenet": "densenet_121_imagenet"}
    assert {*own, *others} <= {*BUILT_IN}
    assert all(BUILT_IN[other] == BUILT_IN[name] for other, name in others.items())
    assert {*BUILT_IN.values()} == {BUILT_IN[name] for name in own}
    assert BUILT_IN["vgg_16_imagenet"] == "kaggle://keras/vgg/keras/vgg_16_imagenet/3"
    assert BUILT_IN["densenet_121_imagenet"] == "kaggle://keras/densenet/keras/densenet_121_imagenet/3"


def test_a_name_of_kerashubs_is_fetched_from_kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="keras/vgg/keras/vgg_11_imagenet/3: there is no such model"):
        fetch(lambda request: Reply(404), monkeypatch, "vgg_11_imagenet")
