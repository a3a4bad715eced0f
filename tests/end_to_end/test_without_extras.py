"""The service without any optional package, as a host has it that installed no extra: it starts and answers."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

from tests import tiny
from tests.server import HTTP, Server
from tests.uploads import png

ROOT = Path(__file__).parent.parent.parent
#: Extras for people who work on this project. The others are for those who run it.
_FOR_DEVELOPERS = {"dev", "training", "bench"}
#: An import of these fails, as if they were not installed.
_BLOCK = """import os, sys
for name in os.environ["BLOCKED"].split(","):
    sys.modules[name] = None
"""


def distributions(requirements: list[str]) -> set[str]:
    return {Requirement(line).name.lower().replace("_", "-") for line in requirements}


def optional_modules() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [line for extra, lines in extras.items() if extra not in _FOR_DEVELOPERS for line in lines]
    optional = distributions(named) - distributions(project["dependencies"])
    # FastAPI itself imports OpenTelemetry's interface, and a namespace is shared; the parts are what is optional.
    parts = {"opentelemetry": "opentelemetry.sdk", "nvidia": "nvidia.nvimgcodec"}
    return {
        parts.get(module, module)
        for module, owners in packages_distributions().items()
        if optional & {owner.lower().replace("_", "-") for owner in owners}
    } - {"service"}


def test_the_service_starts_and_answers_without_its_extras(tmp_path: Path) -> None:
    blocked = optional_modules()
    assert {"openvino", "onnxruntime", "grpc", "huggingface_hub", "triton"} <= blocked | {"triton"}
    (tmp_path / "sitecustomize.py").write_text(_BLOCK)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "BLOCKED": ",".join(sorted(blocked))}
    with Server(weights=tiny.shared(), environment=environment) as server:
        answer = HTTP.post(server.url + "/predict", files={"file": ("photo.png", png(1))})
        assert answer.status_code == 200, answer.text
        assert HTTP.get(server.url + "/model").json()["runtime"] == "eager"
        for route in ("features", "explain"):
            asked = HTTP.post(f"{server.url}/{route}", files={"file": ("photo.png", png(1))})
            assert asked.status_code == 200, asked.text
