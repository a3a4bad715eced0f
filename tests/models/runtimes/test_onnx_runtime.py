"""ONNX Runtime answers like torch, and is taken where it is measured to be the faster one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from service.models import loaded, loader, runner, serving
from service.models.building import describe
from service.models.checkpoints import Checkpoint, resolve
from service.models.configuration import DenseNetConfig, VGGConfig
from service.models.runner import ModelRunner
from service.models.runtimes import Executor, Pixels, converting, onnx_runtime, openvino
from service.models.runtimes.artifact import Graph
from service.settings import load as settings
from service.shared.outputs import OutputKind
from tests import tiny
from tests.models.runtimes.answers import Answers, images

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnx", reason="the extra onnx is not installed")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
CHECKPOINTS = {
    "densenet": tiny.checkpoint,
    "demo": lambda: resolve("demo", "densenet121"),
    "max": lambda: tiny.of(
        DenseNetConfig((2, 2), growth_rate=8, stem_width=8, num_classes=10, head_pooling="catavgmax"), 64
    ),
    "keras": lambda: resolve(str(FIXTURES / "khub_densenet_g8"), "densenet121"),
    "vgg": lambda: tiny.of(VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10), 28),
    "without a head": lambda: resolve(str(FIXTURES / "timm_vgg_bn_headless"), "vgg16"),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def graph(checkpoint: Checkpoint) -> Graph:
    model = loader.load(checkpoint)
    made = converting.load(model, checkpoint, describe(checkpoint, model), "fp32", lambda _: None)
    return made.graphs["model.xml"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_both_ways_answer_like_torch(name: str) -> None:
    checkpoint = CHECKPOINTS[name]()
    right = Answers(checkpoint)
    together, apart = executors = onnx_runtime.executors(graph(checkpoint), 2)
    assert [executor.parallelism for executor in executors] == [None, 2]
    for executor, runs in ((together, ([4], [1, 2, 3], [5, 0, 3, 1])), (apart, ([4], [5, 2]))):
        assert executor.works()
        right.assert_of(executor, runs)


def test_a_model_with_more_than_the_plain_layers_is_left_to_openvino(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = resolve(str(FIXTURES / "khub_densenet_grey_bf16"), "densenet121")
    assert not any(executor.works() for executor in onnx_runtime.executors(graph(checkpoint), 2))
    assert "onnxruntime cannot run this model: no ONNX for" in caplog.text
    executors = openvino.OpenVino(graph(checkpoint), "fp32", 2).executors()
    assert [executor.name for executor in executors] == ["together", "one", "apart"]


def load_runner(tmp_path: Path) -> ModelRunner:
    weights = tmp_path / "tiny"
    found = serving.load(
        settings(weights=str(weights if weights.exists() else tiny.directory(tmp_path)), device="cpu"),
        lambda *_: None,
    )
    assert isinstance(found.runner, ModelRunner)
    return found.runner


@pytest.mark.parametrize("faster", ["onnxruntime", "openvino"])
def test_the_measurement_chooses_and_the_next_start_knows(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "available_cores", lambda: 2)
    measured: list[str] = []

    def once(executor: Executor, pixels: Pixels, images: int) -> float:
        """Its own work is what the clock would have seen, as if one library were twice as fast as the other."""
        measured.append(executor.name)
        executor(pixels, range(images))
        same = executor.name.startswith("onnxruntime") == (faster == "onnxruntime")
        apart = 0.6 if executor.name.endswith("apart") else 1.0
        return 0.02 * images * apart * (1 if same else 2)

    monkeypatch.setattr(runner, "_once", once)
    first = load_runner(tmp_path)
    first.warm_up()
    assert {"onnxruntime", "onnxruntime apart", "one", "apart"} <= set(measured)
    taken = {executor.name for executor in first._executors.values()}
    assert all(name.startswith("onnxruntime") == (faster == "onnxruntime") for name in taken)
    measured.clear()
    second = load_runner(tmp_path)
    second.warm_up()
    assert measured == []
    assert {executor.name for executor in second._executors.values()} == taken
    assert first.streams is not None
    checkpoint = tiny.checkpoint()
    pixels, results = images(checkpoint, 4), np.zeros((4, second.results), np.float32)
    second.run(pixels, [2, 0, 3], [OutputKind.CLASSIFY] * 3, results)
    with torch.inference_mode():
        wanted = loader.load(checkpoint)(torch.from_numpy(pixels)).numpy()
    for slot in (2, 0, 3):
        np.testing.assert_allclose(results[slot, : wanted.shape[1]], wanted[slot], rtol=1e-4, atol=1e-4)


def test_streams_run_side_by_side() -> None:
    checkpoint = tiny.checkpoint()
    apart = onnx_runtime.executors(graph(checkpoint), 3)[1]
    assert isinstance(apart, onnx_runtime.OnnxStreamExecutor)
    pixels, start = images(checkpoint, 24), threading.Barrier(3)
    wanted = [answer.logits for part in range(8) for answer in apart(pixels, range(3 * part, 3 * part + 3))]

    def work(number: int) -> Sequence[np.ndarray]:
        start.wait(60)
        return [apart.streams()[number](pixels, slot).logits for slot in range(number, 24, 3)]

    with ThreadPoolExecutor(3) as threads:
        for number, answers in enumerate(threads.map(work, range(3))):
            for answer, slot in zip(answers, range(number, 24, 3), strict=True):
                np.testing.assert_allclose(answer, wanted[slot], rtol=1e-5, atol=1e-5)


def test_without_the_extra_there_is_openvino_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None)
    executors = openvino.OpenVino(graph(tiny.checkpoint()), "fp32", 2).executors()
    assert [executor.name for executor in executors] == ["together", "one", "apart"]


def test_bf16_is_openvinos_alone() -> None:
    runtime = openvino.OpenVino(graph(tiny.checkpoint()), "fp32", 2)
    runtime.precision = "bf16"
    assert [executor.name for executor in runtime.executors()] == ["together", "one", "apart"]
