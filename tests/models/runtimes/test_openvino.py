"""OpenVINO says what torch says, whatever the model and however the batch lies; it is cached, or not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import ConfigurationError
from service.models import building, loader, placement, serving
from service.models.checkpoints import Checkpoint, resolve
from service.models.configuration import VGGConfig
from service.models.guard import Guard
from service.models.output_writer import OutputWriter, pool
from service.models.placement import place
from service.models.runner import ModelRunner
from service.models.runtimes import (
    Gather,
    Stoppable,
    SupportsStreams,
    artifact,
    conversion,
    converting,
    manifest,
    onnx_runtime,
    openvino,
)
from service.models.runtimes.eager import Eager
from service.models.runtimes.machine import Measured, Notes
from service.models.streams import CpuStreams
from service.settings import load as settings
from service.shared.outputs import OutputKind
from tests import tiny
from tests.models.runtimes.answers import Answers, images

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: False)  # its ways have tests of their own


def converted(
    checkpoint: Checkpoint, precision: str = "fp32", say: Callable[[str], object] = lambda detail: None
) -> artifact.Converted:
    model = loader.load(checkpoint)
    return converting.load(model, checkpoint, building.describe(checkpoint, model), precision, say)


def runtime(checkpoint: Checkpoint, precision: str = "fp32", cores: int = 2) -> openvino.OpenVino:
    image = checkpoint.preprocessing.shape
    return openvino.runtime(converted(checkpoint, precision), precision, cores, image)


def cached(checkpoint: Checkpoint) -> Path:
    return artifact.cached(manifest.fingerprint(checkpoint), "fp32")


CHECKPOINTS = {
    "densenet": tiny.checkpoint,
    "vgg": lambda: tiny.of(VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10), 32),
    "vgg_bn": lambda: tiny.of(VGGConfig(((8,), (8, 8)), batch_norm=True, hidden=16, num_classes=10), 40),
    "keras densenet": lambda: resolve(str(FIXTURES / "khub_densenet_g8"), "densenet121"),
    "keras grey densenet": lambda: resolve(str(FIXTURES / "khub_densenet_grey_bf16"), "densenet121"),
    "keras vgg": lambda: resolve(str(FIXTURES / "khub_vgg_avg"), "vgg16"),
    "keras flat vgg": lambda: resolve(str(FIXTURES / "khub_vgg_flatten_softmax"), "vgg16"),
    "timm vgg": lambda: resolve(str(FIXTURES / "timm_vgg"), "vgg16"),
    "timm densenet": lambda: resolve(str(FIXTURES / "timm_densenetblur"), "densenet121"),
    "timm headless": lambda: resolve(str(FIXTURES / "timm_vgg_bn_headless"), "vgg16"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_way_answers_like_torch(name: str) -> None:
    checkpoint = CHECKPOINTS[name]()
    right = Answers(checkpoint)
    executors = runtime(checkpoint).executors()
    assert [executor.parallelism for executor in executors] == [None, 1, 2]
    for executor in executors:
        right.assert_of(executor, ([4], [1, 2, 3], [5, 0, 3, 1, 2]))


@pytest.mark.parametrize("make", [runtime, lambda checkpoint: Eager(loader.load(checkpoint), "fp32")])
def test_a_warm_runner_fills_the_slots_that_it_was_given_and_no_other(make) -> None:  # type: ignore[no-untyped-def]
    checkpoint = tiny.checkpoint()
    runner = ModelRunner(make(checkpoint), checkpoint.preprocessing.shape, 6)
    runner.warm_up()
    assert runner.max_batch_size == 6
    assert runner.capacity > 0
    model, count = loader.load(checkpoint), runner.max_batch_size
    pixels = images(checkpoint, count + 2)
    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(pixels))
        logits = model.forward_head(features)
    for batch in range(1, count + 1):
        slots = np.random.default_rng(batch).permutation(count + 2)[:batch].tolist()
        tasks = [OutputKind(slot % 4) for slot in slots]
        results = np.full((count + 2, runner.results), 777, np.float32)
        runner.run(pixels, slots, tasks, results)
        for slot, task in zip(slots, tasks, strict=True):
            wanted = (
                (
                    logits[slot]
                    if task is OutputKind.CLASSIFY
                    else torch.from_numpy(pool(features[slot].numpy(), task))
                )
                .flatten()
                .numpy()
            )
            np.testing.assert_allclose(results[slot, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)
            assert (results[slot, len(wanted) :] == 777).all()
        assert (np.delete(results, slots, axis=0) == 777).all()


def test_streams_run_side_by_side_and_say_what_the_batch_says() -> None:
    checkpoint = tiny.checkpoint()
    apart = runtime(checkpoint).executors()[2]
    assert isinstance(apart, SupportsStreams)
    pixels = images(checkpoint, 12)
    expected = [answer.logits.copy() for answer in runtime(checkpoint).executors()[0](pixels, range(12))]
    guard = Guard(checkpoint.preprocessing.shape, "fp32")
    guard.learn([apart], [[1, 2]])
    streams = CpuStreams(apart.name, apart.streams(), [False, False, True], OutputWriter(), guard)
    assert streams.count == 2
    assert [streams.sooner(images) for images in (1, 2, 50)] == [False, True, True]
    results = np.full((12, 30), 777, np.float32)

    def every_other(stream: int) -> None:
        for slot in range(stream, 12, 2):
            streams.run(stream, pixels, slot, OutputKind.CLASSIFY, results)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(every_other, range(2)))
    assert [streams.canary(stream).mismatches for stream in range(2)] == [0, 0]
    for slot, wanted in enumerate(expected):
        np.testing.assert_allclose(results[slot, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)
        assert (results[slot, len(wanted) :] == 777).all()


@pytest.mark.parametrize("streams_are_faster", [True, False])
def test_a_runner_has_streams_where_they_are_faster(tmp_path: Path, streams_are_faster: bool) -> None:
    checkpoint = tiny.checkpoint()
    made = runtime(checkpoint)
    times = {
        executor.name: {
            size: size * (0.01 if (executor.parallelism == 2) == streams_are_faster else 0.1)
            for size in ({1, executor.parallelism} if executor.parallelism else {1, 2, 4})
        }
        for executor in made.executors()
    }
    notes = Notes((tmp_path,))
    notes.write(Measured(times))
    runner = ModelRunner(made, checkpoint.preprocessing.shape, 4, notes=notes)
    runner.warm_up()
    assert (runner.streams is not None) is streams_are_faster
    if runner.streams is not None:
        assert runner.streams.count == 2
        assert runner.streams.sooner(2)


def test_a_batch_that_is_stopped_fails_or_ends_and_the_next_one_is_right() -> None:
    checkpoint = tiny.checkpoint()
    for executor in runtime(checkpoint).executors():
        assert isinstance(executor, Stoppable)
        pixels = images(checkpoint, 2)
        count = executor.parallelism or 2
        right = [answer.logits.copy() for answer in executor(pixels, range(count))]
        for _ in range(20):
            with ThreadPoolExecutor(1) as thread:
                running = thread.submit(executor, pixels, range(count))
                executor.stop()
                error = running.exception()
            assert error is None or "cancel" in str(error)
            again = [answer.logits for answer in executor(pixels, range(count))]
            assert all(map(np.array_equal, again, right))


def test_neighbouring_slots_are_not_copied() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    gather = Gather()
    assert np.shares_memory(gather(pixels, [2, 3, 4]), pixels)
    whole = gather(pixels, [5, 0, 1])
    assert (whole == pixels[[5, 0, 1]]).all()
    for slots in ([2, 4], [3, 2], [5, 0, 1]):
        block = gather(pixels, slots)
        assert np.shares_memory(block, whole)
        assert (block == pixels[slots]).all()


def test_a_failing_image_leaves_no_request_running(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.checkpoint()
    apart = runtime(checkpoint).executors()[2]
    pixels = images(checkpoint, 3)
    expected = [answer.logits.copy() for answer in apart(pixels, [0, 1, 2])]
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        apart(pixels[:, :5], [0, 1, 2])
    again = apart(pixels, [0, 1, 2])
    assert all(np.array_equal(answer.logits, wanted) for answer, wanted in zip(again, expected, strict=True))


def test_the_second_start_converts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.checkpoint()
    said: list[str] = []
    for _ in range(2):
        converted(checkpoint, say=said.append)
    assert len(said) == 1
    changed = replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, mean=(0.5, 0.5, 0.5)))
    assert cached(changed) != cached(checkpoint)
    other = {**checkpoint.state_dict, "classifier.bias": torch.ones(10)}
    assert cached(replace(checkpoint, state_dict=other)) != cached(checkpoint)


def test_a_damaged_conversion_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tiny.checkpoint()
    runtime(checkpoint)
    weights = cached(checkpoint) / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    runtime(checkpoint)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    runtime(checkpoint)
    assert not caplog.records


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoint = tiny.checkpoint()
    answer = runtime(checkpoint).executors()[0](images(checkpoint, 1), [0])[0]
    assert answer.logits.shape == (10,)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not cached" in caplog.text


def test_a_full_disk_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(model: object, path: Path, **options: object) -> None:
        path.write_text("<half")
        raise RuntimeError("Exception from core:\nno space left on device")

    monkeypatch.setattr(openvino.openvino, "save_model", full)  # type: ignore[attr-defined]
    runtime(tiny.checkpoint())
    assert list(artifact.cache_directory().iterdir()) == []
    assert "no space left" in caplog.text


def test_the_cache_keeps_the_last_few(tmp_path: Path) -> None:
    folder = artifact.cache_directory()
    for number in range(6):
        (folder / f"{number}").mkdir(parents=True)
        os.utime(folder / f"{number}", (number, number))
    artifact.prune()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "4", "5"]


def test_an_artifact_serves_the_checkpoint_that_it_was_made_from(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    made = converted(checkpoint)
    model = made.graphs[artifact.DIRECT].model()
    path = tmp_path / "int8"
    artifact.write(path, model, checkpoint, made.card, made.head, "int8", check={"top1_agreement": 1.0})
    weights = tiny.directory(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'int8' was made from the weights 'tiny'.*quantize these"):
        serving.load(settings(weights=str(weights), runtime=str(path), device="cpu"), lambda *_: None)
    ours = resolve(str(weights), "densenet121")
    artifact.write(path, model, ours, made.card, made.head, "int8")
    loaded = serving.load(settings(weights=str(weights), runtime=str(path), device="cpu"), lambda *_: None)
    card = loaded.card()
    assert (card.runtime, card.precision, card.device) == ("openvino", "int8", "cpu")
    with pytest.raises(ConfigurationError, match="leave precision to auto"):
        place("cpu", "fp32", str(path))


def test_what_is_no_artifact_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no artifact that can be read"):
        artifact.read(tmp_path)
    about = {"format": "imagenet-serve-openvino", "version": 99}
    (tmp_path / "about.json").write_text(json.dumps(about))
    with pytest.raises(ConfigurationError, match="another version"):
        artifact.read(tmp_path)


def test_without_openvino_torch_runs_the_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    assert place("cpu", "auto", "auto").runtime == "eager"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(ConfigurationError, match="not installed"):
        place("cpu", "auto", "openvino")


def test_a_model_that_cannot_be_converted_runs_on_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise conversion.ConversionError("no such layer")

    monkeypatch.setattr(conversion, "convert", fails)
    weights = str(tiny.directory(tmp_path))
    card = serving.load(settings(weights=weights, device="cpu"), lambda *_: None).card()
    assert (card.runtime, card.precision) == ("eager", "fp32")
    assert "going on without openvino: " in caplog.text
    assert "no such layer" in caplog.text
    with pytest.raises(ConfigurationError, match="use runtime=eager"):
        serving.load(settings(weights=weights, device="cpu", runtime="openvino"), lambda *_: None)


def test_a_conversion_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.checkpoint()
    model = loader.load(checkpoint)
    spoilt = loader.load(tiny.checkpoint())  # tensors of its own
    for parameter in spoilt.parameters():
        parameter.mul_(1.01)
    monkeypatch.setattr(model, "forward_features", spoilt.forward_features)
    with pytest.raises(conversion.ConversionError, match="differ from torch's"):
        conversion.convert(model, checkpoint.preprocessing.shape)


@pytest.mark.parametrize(
    ("device", "precision", "runtime", "complaint"),
    [
        ("cpu", "auto", "cudagraph", "runtime=cudagraph needs a CUDA device"),
        ("cpu", "auto", "/no/such/folder", "runtime=/no/such/folder is not available"),
        ("cpu", "fp16", "auto", "needs a CUDA device"),
    ],
)
def test_what_cannot_be_is_said(device: str, precision: str, runtime: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        place(device, precision, runtime)


def test_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.checkpoint()
    capabilities = openvino.openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # type: ignore[attr-defined]
    if "BF16" in capabilities:
        logits = runtime(checkpoint, "bf16").executors()[0](images(checkpoint, 1), [0])[0].logits
        exact = runtime(checkpoint).executors()[0](images(checkpoint, 1), [0])[0].logits
        assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()
    else:
        with pytest.raises(ConfigurationError, match="use fp32"):
            runtime(checkpoint, "bf16")


def test_openvino_leaves_no_trace_at_home(tmp_path: Path) -> None:
    """Its telemetry would make a folder there, and a connection."""
    code = (
        "import sys; from service.models.openvino_import import openvino;"
        "print('openvino_telemetry.main' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr
    assert list((tmp_path / "home").iterdir()) == []


def test_the_log_says_what_the_first_start_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    checkpoint = tiny.checkpoint()
    runtime(checkpoint)
    assert "converting the model for OpenVINO" in caplog.text
    caplog.clear()
    runtime(checkpoint)
    assert "from the cache" in caplog.text
    shutil.rmtree(artifact.cache_directory())
