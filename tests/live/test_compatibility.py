"""docs/COMPATIBILITY.md is true: its commands run against a real server; deploy/platforms/ names what there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.app import create_api
from service.settings import Settings
from tests import tiny
from tests.live.test_api_docs import ROOT, Example, blocks, commands, run
from tests.server import Server

TEXT = (ROOT / "docs" / "COMPATIBILITY.md").read_text("utf-8")
PLATFORMS = ROOT / "deploy" / "platforms"
CONTRACTS = "torchserve,kserve-v1,sagemaker,huggingface"


def shell_commands() -> list[str]:
    found = [
        command
        for block in blocks(TEXT)
        for command in commands(block.content)
        if block.language == "console"
    ]
    (start, *rest) = found
    assert start == f"imagenet-serve serve --weights demo --compat {CONTRACTS}"
    return rest


@pytest.fixture(scope="module")
def compatible() -> Iterator[Server]:
    with Server(weights=tiny.demo(), frontends=1, compat=CONTRACTS) as running:
        yield running


def test_the_commands_are_answered(compatible: Server, tmp_path: Path) -> None:
    for command in shell_commands():
        printed = run(Example("sh", command, None), compatible.url, tmp_path)
        if "curl" in command:
            assert json.loads(printed), command


def routes(settings: Settings) -> set[str]:
    return set(create_api(settings).openapi()["paths"])


def environment_of(document: dict[str, str]) -> Settings:
    return Settings(**{name.removeprefix("IMAGENET_").lower(): value for name, value in document.items()})  # type: ignore[arg-type]


def load(name: str) -> Any:
    return yaml.safe_load((PLATFORMS / name).read_text("utf-8"))


def test_the_platforms_examples_name_settings_and_routes_that_exist() -> None:
    sagemaker = environment_of(load("sagemaker.json")["PrimaryContainer"]["Environment"])
    assert {"/ping", "/invocations"} <= routes(sagemaker)

    vertex = load("vertex.json")["containerSpec"]
    settings = environment_of({entry["name"]: entry["value"] for entry in vertex["env"]}).model_copy(
        update={
            "compat": "vertex",
            "vertex_health_route": vertex["healthRoute"],
            "vertex_predict_route": vertex["predictRoute"],
        }
    )
    assert {vertex["healthRoute"], vertex["predictRoute"]} <= routes(settings)

    custom = load("huggingface.json")["model"]["image"]["custom"]
    huggingface = environment_of(custom["env"])
    assert custom["health_route"] in routes(huggingface)
    assert custom["port"] == huggingface.port

    azure = load("azureml-environment.yaml")["inference_config"]
    deployment = load("azureml-deployment.yaml")
    settings = environment_of(deployment["environment_variables"])
    assert {route["path"] for route in azure.values()} <= routes(settings)
    assert {route["port"] for route in azure.values()} == {settings.port}
    assert deployment["request_settings"]["request_timeout_ms"] > settings.request_timeout_ms
