"""`imagenet-serve doctor`: each check on made-up hosts, and the command on this one."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service import settings
from service.cli.doctor import libraries, machine, weights
from service.cli.doctor.run import Level
from service.cli.main import cli
from service.shared.fallback import Fallback
from tests import tiny
from tests.models.loopback import Reply, Request, serve

GB = 10**9


def test_an_old_processor_is_said_to_be_slow() -> None:
    assert machine.processor([], "Old").level is Level.WARN
    assert machine.processor(["avx2"], "Middling").level is Level.PASS
    assert machine.processor(["asimddp"], "Graviton").level is Level.PASS
    new = machine.processor(["avx2", "avx512f", "avx512_vnni", "amx_bf16"], "New")
    assert "bf16" in new.found
    assert "int8" in new.found


@pytest.mark.parametrize(
    ("quota", "environment", "level", "used"),
    [
        (None, {}, Level.PASS, 8),
        (4.0, {}, Level.PASS, 4),
        (1.5, {}, Level.WARN, 2),
        (None, {"OMP_NUM_THREADS": "1"}, Level.WARN, 8),
        (4.0, {"OMP_NUM_THREADS": "4"}, Level.PASS, 4),
    ],
)
def test_threads_follow_the_quota(
    quota: float | None, environment: dict[str, str], level: Level, used: int
) -> None:
    finding = machine.threads(quota, 8, environment)
    assert finding.level is level
    assert f"{used} used" in finding.found


def test_memory_is_held_against_the_model() -> None:
    densenet, vgg = 7_978_856, 138_357_544
    assert machine.memory(2 * GB, densenet).level is Level.PASS
    assert machine.memory(GB, vgg).level is Level.FAIL
    assert machine.memory(3 * GB, vgg).level is Level.WARN
    assert machine.memory(None, vgg).level is Level.WARN


def test_torch_and_torchvision_belong_together() -> None:
    requires = ["numpy", "torch==2.13.0", "pillow (!=8.3.*,>=5.3.0)"]
    assert libraries.torch_pair("2.13.0+cpu", "0.28.0", requires).level is Level.PASS
    wrong = libraries.torch_pair("2.12.1", "0.28.0", requires)
    assert wrong.level is Level.FAIL
    assert "pip install torch==2.13.0" in wrong.advice


@pytest.mark.parametrize(
    ("device", "driver", "build", "working", "level"),
    [
        ("auto", None, None, "", Level.PASS),
        ("auto", "NVRM 580", "13.0", "NVIDIA H200", Level.PASS),
        ("auto", "NVRM 580", None, "", Level.WARN),
        ("auto", "NVRM 470", "13.0", "", Level.WARN),
        ("cuda", "NVRM 470", "13.0", "", Level.FAIL),
        ("cuda:1", None, "13.0", "", Level.FAIL),
    ],
)
def test_the_way_to_a_gpu(
    device: str, driver: str | None, build: str | None, working: str, level: Level
) -> None:
    finding = libraries.judge_cuda(device, driver, build, working)
    assert finding.level is level
    assert bool(finding.advice) is (level is not Level.PASS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Root may write anywhere, so a file stands where the folder would be."""
    (tmp_path / "file").write_text("")
    finding = machine.cache("cache", tmp_path / "file" / "below", "TORCH_HOME")
    assert finding.level is Level.WARN
    assert "TORCH_HOME" in finding.advice
    assert machine.cache("cache", tmp_path / "new" / "below", "TORCH_HOME").level is Level.PASS
    assert machine.cache("cache", tmp_path, "TORCH_HOME", room_mib=10**12).level is Level.WARN
    assert not (tmp_path / "new").exists()


DENSENET = Path(__file__).parents[1] / "fixtures" / "timm_densenetblur"


@pytest.fixture
def hub_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and the hub's client as it finds them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def finds(monkeypatch: pytest.MonkeyPatch, address: str, answer: Any, level: Level, words: str) -> list[str]:
    """The doctor finds ``level`` and ``words`` while the hubs answer so. Returns what they were asked."""
    with serve(answer) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.url + TEMPLATE)
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
        finding = weights.weights(settings.load(weights=address))
    assert finding.level is level, finding
    assert words in finding.found + finding.advice
    return [f"{request.method} {request.path}" for request in server.requests]


TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


def hugging_face(request: Request) -> Reply:
    if "resolve" in request.path and request.path.startswith("/timm/there"):
        headers = {"X-Repo-Commit": "a" * 40, "ETag": '"e"', "X-Linked-Size": "10"}
        return Reply(200, b"x" * 10, headers)
    codes = {"/timm/gated": "GatedRepo", "/timm/none": "RepoNotFound"}
    for start, code in codes.items():
        if request.path.startswith(start):
            return Reply(401, b"", {"X-Error-Code": code})
    return Reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})


@pytest.mark.parametrize(
    ("address", "level", "words"),
    [
        ("hf://timm/there", Level.PASS, "gives it"),
        ("hf://timm/gated", Level.FAIL, "gated"),
        ("hf://timm/none", Level.FAIL, "no such repository"),
        ("hf://timm/empty", Level.FAIL, "no config.json"),
        ("hf://nobody", Level.FAIL, "write hf://owner/repo"),
    ],
)
def test_a_hub_is_asked_for_the_very_weights(
    hub_folders: Path, monkeypatch: pytest.MonkeyPatch, address: str, level: Level, words: str
) -> None:
    asked = finds(monkeypatch, address, hugging_face, level, words)
    assert not any(one.startswith("GET") and "resolve" in one for one in asked), "nothing is fetched"
    assert [path for path in hub_folders.rglob("*") if path.is_file()] == []


def kaggle(request: Request) -> Reply:
    if request.path.endswith("/vgg_16_imagenet/get"):
        return Reply(200, b'{"versionNumber": 3}')
    return Reply(403 if "private" in request.path else 404)


@pytest.mark.parametrize(
    ("address", "level", "words"),
    [
        ("vgg_16_imagenet", Level.PASS, "gives it"),
        ("kaggle://keras/vgg/keras/vgg_16_imagenet", Level.PASS, "gives it"),
        ("kaggle://keras/vgg/keras/vgg_16_imagenet/4", Level.FAIL, "no version 4"),
        ("kaggle://keras/vgg/keras/nothing/1", Level.FAIL, "no such model"),
        ("kaggle://keras/vgg/keras/private", Level.FAIL, "access is denied"),
        ("kaggle://keras", Level.FAIL, "write kaggle://"),
    ],
)
def test_kaggle_is_asked_for_the_very_weights(
    hub_folders: Path, monkeypatch: pytest.MonkeyPatch, address: str, level: Level, words: str
) -> None:
    asked = finds(monkeypatch, address, kaggle, level, words)
    assert not any("/download/" in one for one in asked), "nothing is fetched"
    assert [path for path in hub_folders.rglob("*") if path.is_file()] == []


def test_a_filled_cache_needs_no_network(hub_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folders / "kaggle/models/keras/vgg/keras/mine/1"
    shutil.copytree(DENSENET, folder)
    for file in [*folder.iterdir()]:
        marker = folder.parent / ".complete/1" / f"{file.name}.complete"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", "http://127.0.0.1:1")
    finding = weights.weights(settings.load(weights="kaggle://keras/vgg/keras/mine/1"))
    assert finding.level is Level.PASS, finding
    assert "no network used" in finding.found


@pytest.mark.parametrize("address", ["hf://timm/there", "kaggle://keras/vgg/keras/vgg_16_imagenet/3"])
def test_no_way_to_the_hub_is_a_failure_with_a_way_out(
    hub_folders: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1" + TEMPLATE
    )
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", "http://127.0.0.1:1")
    finding = weights.weights(settings.load(weights=address))
    assert finding.level is Level.FAIL
    assert "--weights demo" in finding.advice


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", "--device=cpu", *arguments])


def test_a_good_host_is_told_so_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.httpx, "head", lambda *_, **__: pytest.fail("nothing is missing here"))  # type: ignore[attr-defined]
    done = doctor("--port=0", f"--weights={tiny.shared()}")
    assert done.exit_code == 0, done.output
    assert "FAIL" not in done.output
    assert "this can serve" in done.output


def test_what_would_not_run_fails_as_json(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = doctor("--json", f"--port={port}", f"--weights={tmp_path / 'none.pth'}")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["ok"] is False
    bad = {one["check"]: one for one in document["findings"] if one["level"] == "FAIL"}
    assert set(bad) == {"port", "weights"}
    assert all(one["advice"] for one in document["findings"] if one["level"] != "PASS")


def test_what_a_gpu_would_go_on_without_is_named() -> None:
    assert libraries.judge_gpu_kernels((), "").level is Level.PASS
    refused = (Fallback("norm_relu", "it disagrees"), Fallback("max_pool", "no launcher"))
    for missing, advice in (("", "the model runs"), ("a C++ compiler (g++)", "install a C++ compiler")):
        finding = libraries.judge_gpu_kernels(refused, missing)
        assert finding.level is Level.WARN
        assert "norm_relu: it disagrees" in finding.found
        assert "max_pool: no launcher" in finding.found
        assert advice in finding.advice


def test_what_decode_gpu_would_lack_is_named() -> None:
    assert libraries.judge_decoding(True, True).level is Level.PASS
    assert "cores decode everything" in libraries.judge_decoding(False, True).advice
    assert "gpu" in libraries.judge_decoding(True, False).advice
    assert [libraries.judge_decoding(*case).level for case in ((False, False), (True, False))] == [
        Level.WARN
    ] * 2


@pytest.mark.parametrize("works", [True, False])
def test_whether_other_programs_can_import_torchvision_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: bool
) -> None:
    (tmp_path / "torchvision.py").write_text(
        "" if works else "raise RuntimeError('operator nms does not exist')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = libraries.torchvision_alone()
    assert finding is not None
    assert finding.level is (Level.PASS if works else Level.WARN)
    assert works or "operator nms does not exist" in finding.found
