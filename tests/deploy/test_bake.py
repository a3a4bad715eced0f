"""What the CPU image is built with: `deploy/bake.py` on whatever WEIGHTS may be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from service.models.catalog import VARIANTS
from service.models.runtimes import artifact
from tests.deploy.scripts import ROOT


@pytest.fixture(scope="module")
def bake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bake", ROOT / "deploy" / "bake.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "weights", [*VARIANTS, "demo", "random:3", "hf://owner/repo@main", "deploy/weights/a.pth?transposed=1"]
)
def test_a_variant_is_its_published_weights_and_all_else_an_origin(bake: ModuleType, weights: str) -> None:
    words = bake.command("out", weights, "--labels", "names.txt")
    given = dict(zip(words[5::2], words[6::2], strict=True))
    assert words[1:5] == ["-m", "service", "export", "out"]
    wanted = (
        {"--model": weights, "--weights": "pretrained"} if weights in VARIANTS else {"--weights": weights}
    )
    assert given == {"--device": "cpu", "--runtime": "openvino", "--labels": "names.txt", **wanted}


@pytest.mark.slow
def test_weights_beside_the_dockerfile_become_a_model_and_a_model_stays_as_it_is(
    bake: ModuleType, tmp_path: Path
) -> None:
    """A folder of timm's with a head of a few classes, whose names are in a file."""
    names = tmp_path / "names.txt"
    fixture = ROOT / "tests" / "fixtures" / "timm_vgg"
    classes = json.loads((fixture / "config.json").read_text())["num_classes"]
    names.write_text("".join(f"kind-{number}\n" for number in range(classes)))
    first, second = tmp_path / "first", tmp_path / "second"
    command = [
        sys.executable,
        str(ROOT / "deploy" / "bake.py"),
        str(first),
        str(fixture),
        "--labels",
        str(names),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = artifact.read(first).open().card
    assert [one.label for one in card.classes] == [f"kind-{number}" for number in range(classes)]
    assert bake.main([str(second), str(first)]) == 0
    assert artifact.read(second).about == artifact.read(first).about
    assert bake.main([str(tmp_path / "third"), str(first), "--labels", str(names)]) == 2


def test_what_an_image_with_torch_cannot_take_is_said_when_it_is_built() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "fetch_weights.py"), "demo"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    assert "WEIGHTS=demo: an image with torch takes the published weights of a variant alone" in done.stderr
    assert "Traceback" not in done.stderr
