"""A start that finds its model converted: the same answers, without torch, from what an earlier start has noted."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.cli.export import run as export
from service.errors import CheckpointError, ConfigurationError
from service.models import building, cache, canary, serving, sources
from service.models.checkpoints import resolve, write
from service.models.configuration import VGGConfig
from service.models.runner import ModelRunner
from service.models.runtimes import artifact, machine
from service.settings import Settings
from service.settings import load as settings
from service.shared.outputs import OutputKind
from tests import tiny

pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def vgg(parent: Path) -> Path:
    path = parent / "vgg"
    write(tiny.of(VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10), 32), path)
    return path


#: A start of each of some weights: loads, warms up, answers every kind of question, and says which large modules that
#: took.
PROGRAM = """
import json, sys
import numpy as np
from typing import Any
from service.models import serving
from service.settings import load
from service.shared.outputs import Explain, OutputKind
def answers(weights):
    loaded = serving.load(load(weights=weights, device="cpu"), lambda *_: None)
    loaded.runner.warm_up()
    wanted = [*OutputKind, Explain(), Explain(3)]
    pixels = np.random.default_rng(0).integers(0, 256, (6, *loaded.card().image), np.uint8)
    results = np.zeros((6, loaded.runner.results), np.float32)
    for slot, want in enumerate(wanted):
        loaded.runner.run(pixels, [slot], [want], results)
    return {"results": results.tolist(), "name": loaded.card().weights}
models = [answers(weights) for weights in sys.argv[1:]]
heavy = sorted(name for name in ("torch", "torchvision") if name in sys.modules)
print(json.dumps({"heavy": heavy, "models": models}))
"""


def start(*weights: Path, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, *map(str, weights)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_second_start_needs_no_torch_and_answers_the_same(tmp_path: Path) -> None:
    """A DenseNet, and a VGG, whose features and maps come from before its own head."""
    weights = tiny.directory(tmp_path), vgg(tmp_path)
    first, second = start(*weights), start(*weights)
    assert first["heavy"] == ["torch"]
    assert second["heavy"] == []
    for before, after in zip(first["models"], second["models"], strict=True):
        assert before["name"] == after["name"]
        np.testing.assert_allclose(before["results"], after["results"], rtol=1e-5, atol=1e-5)


def test_an_exported_model_is_served_where_there_is_no_torch(tmp_path: Path) -> None:
    """As in an image that has none: whoever imports it, or the packages that read weights, fails."""
    out, labels = tmp_path / "model", tmp_path / "labels.txt"
    labels.write_text("".join(f"kind-{number}x\n" for number in range(10)))
    chosen = settings(weights=str(vgg(tmp_path)), labels=labels, runtime="openvino")
    assert export.run(chosen, out) == 0
    (tmp_path / "vgg" / "model.safetensors").unlink()
    missing = tmp_path / "missing"
    missing.mkdir()
    for name in ("torch", "torchvision", "safetensors", "h5py", "huggingface_hub"):
        (missing / f"{name}.py").write_text("raise ImportError(f'there is no {__name__} here')\n")
    answer = start(out, PYTHONPATH=str(missing))
    assert answer["heavy"] == []
    (model,) = answer["models"]
    assert model["name"] == "tiny"
    assert np.isfinite(np.array(model["results"])).all()
    assert loaded(out).card().classes[3].label == "kind-3x"
    with pytest.raises(ConfigurationError, match="--runtime must be openvino, or compile"):
        export.run(settings(weights="demo", runtime="eager"), tmp_path / "other")


def test_an_image_knows_the_model_that_it_was_built_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pretrained` is what was baked in where that is published, for its model alone; else it says what it has."""
    out = tmp_path / "model"
    assert export.run(settings(weights=str(vgg(tmp_path)), runtime="openvino"), out) == 0
    about = json.loads((out / "about.json").read_text())

    def called(weights: str) -> None:
        card = {**about["card"], "name": "vgg11", "weights": weights}
        (out / "about.json").write_text(json.dumps({**about, "card": card}))

    monkeypatch.setenv("BAKED_MODEL", str(out))
    called("somebody's own")
    assert serving.converted_weights("pretrained", "vgg11") is None
    assert serving.converted_weights(str(out), "densenet121") == out
    called("IMAGENET1K_V1")
    assert serving.converted_weights("pretrained", "vgg11") == out
    assert serving.converted_weights("pretrained", "vgg13") is None
    assert serving.converted_weights("demo", "vgg11") is None
    assert serving.load(settings(model="vgg11", device="cpu"), lambda *_: None).card().name == "vgg11"
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=f"serve what this image was built with .weights={out}."):
        serving.load(settings(model="vgg13", device="cpu"), lambda *_: None)


def loaded(weights: Path, **more: object) -> serving.Loaded:
    return serving.load(settings(weights=str(weights), device="cpu", **more), lambda *_: None)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights that were read with torch, one for each time."""
    seen: list[str] = []
    really = building.load

    def load(given: Settings, *rest: object) -> serving.Loaded:
        seen.append(given.weights)
        return really(given, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "load", load)
    return seen


def test_other_weights_under_the_same_name_are_read_again(tmp_path: Path, built: list[str]) -> None:
    weights = tiny.directory(tmp_path)
    first = loaded(weights).card()
    assert loaded(weights).card() == first
    assert len(built) == 1
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "name": "another"}))
    assert loaded(weights).card().weights == "another"
    assert len(built) == 2
    (weights / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its file model.safetensors"):
        loaded(weights)


def test_labels_are_those_of_this_start(tmp_path: Path, built: list[str]) -> None:
    weights, labels = tiny.directory(tmp_path), tmp_path / "labels.txt"
    for sort in "ab":
        labels.write_text("".join(f"{sort}{number}\n" for number in range(10)))
        assert loaded(weights, labels=labels).card().classes[3].label == f"{sort}3"
    assert loaded(weights).card().classes[3].label == "thing 3"
    assert len(built) == 1
    labels.write_text("one\n")
    with pytest.raises(CheckpointError, match="and the model 10 classes"):
        loaded(weights, labels=labels)


def test_a_converted_model_is_weights_of_its_own(tmp_path: Path, built: list[str]) -> None:
    """Nothing but its folder is needed: not the weights, not the cache."""
    first = loaded(tiny.directory(tmp_path))
    first.runner.warm_up()
    (made,) = artifact.cache_directory().iterdir()
    made.rename(tmp_path / "baked")
    (tmp_path / "tiny").rename(tmp_path / "gone")
    second = loaded(tmp_path / "baked")
    second.runner.warm_up()
    assert second.card() == first.card()
    assert len(built) == 1
    with pytest.raises(ConfigurationError, match="'baked' is a model converted for OpenVINO"):
        loaded(tmp_path / "baked", runtime="eager")


def of_an_older_version(directory: Path) -> None:
    """Makes an artifact one that holds the answer to an earlier canary, whose image was another one."""
    about = json.loads((directory / "about.json").read_text())
    (name,) = (name for name in about["files"] if name.startswith("canary-"))
    (directory / name).write_bytes(np.ones(10, np.float32).tobytes())
    (directory / name).rename(directory / "canary.bin")
    del about["files"][name]
    about["files"]["canary.bin"] = cache.file_sha256(directory / "canary.bin")
    (directory / "about.json").write_text(json.dumps(about))


def test_an_artifact_with_the_answer_to_an_earlier_canary_serves_without_that_comparison(
    tmp_path: Path,
) -> None:
    out = tmp_path / "model"
    assert export.run(settings(weights=str(tiny.directory(tmp_path)), runtime="openvino"), out) == 0
    expected = artifact.read(out).open().expected
    assert expected is not None
    assert expected.shape == (canary.IMAGES, 10)
    of_an_older_version(out)
    assert artifact.read(out).open().expected is None
    loaded(out).runner.warm_up()


def test_a_cached_conversion_with_the_answer_to_an_earlier_canary_is_made_again(
    tmp_path: Path, built: list[str]
) -> None:
    weights = tiny.directory(tmp_path)
    loaded(weights)
    (made,) = artifact.cache_directory().iterdir()
    of_an_older_version(made)
    assert artifact.from_cache(made) is None
    loaded(weights).runner.warm_up()
    assert len(built) == 2
    again = artifact.from_cache(made)
    assert again is not None
    assert again.open().expected is not None


def test_a_damaged_answer_to_the_canaries_stops_the_start(tmp_path: Path) -> None:
    weights = tiny.directory(tmp_path)
    first = loaded(weights).runner
    assert isinstance(first, ModelRunner)
    found = artifact.read(next(artifact.cache_directory().iterdir())).open()
    assert found.expected is not None
    wrong = found.expected.copy()
    wrong[-1] *= 1.01  # of the last image only
    runner = ModelRunner(first.runtime, first._image, 4, None, (first.feature_shape, 10), expected=wrong)
    with pytest.raises(canary.UntrustedError, match="off the network's answer"):
        runner.warm_up()


def test_what_was_measured_is_kept_for_each_kind_of_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny.directory(tmp_path)
    measured: list[str] = []
    here, really = dict(machine.processor()), machine.Notes.write
    kind = ""

    def write(notes: machine.Notes, found: Any) -> None:
        measured.append(kind)
        really(notes, found)

    monkeypatch.setattr(machine.Notes, "write", write)
    for kind in ("here", "here", "elsewhere", "here", "elsewhere"):
        other = here if kind == "here" else {**here, "flags": "fewer"}
        monkeypatch.setattr(machine, "processor", lambda found=other: found)
        runner = loaded(weights).runner
        runner.warm_up()
        assert runner.capacity > 0
    assert measured == ["here", "elsewhere"]


def test_the_number_of_cores_and_the_largest_batch_count_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artifact.cache_directory() / "one"
    found = {
        machine.notes(folder, cores, precision, largest).folders
        for cores in (1, 2)
        for precision in ("fp32", "bf16")
        for largest in (None, 4)
    }
    assert len(found) == 8
    monkeypatch.setattr(machine.manifest, "libraries", lambda *names: dict.fromkeys(names, "0"))  # type: ignore[attr-defined]
    assert machine.notes(folder, 1, "fp32", None).folders not in found


@pytest.mark.parametrize(
    "spoilt", ["{", "[]", '{"times": {"one": {"1": -1}}, "rounds": 1, "graph": ""}', "{}"]
)
def test_notes_that_make_no_sense_are_made_again(tmp_path: Path, spoilt: str) -> None:
    weights = tiny.directory(tmp_path)
    loaded(weights).runner.warm_up()
    (plan,) = artifact.cache_directory().rglob("plan.json")
    plan.write_text(spoilt)
    runner = loaded(weights).runner
    runner.warm_up()
    assert runner.capacity > 0
    assert machine.Measured.from_json(json.loads(plan.read_text())).times


def test_a_compiled_model_that_is_damaged_is_compiled_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tiny.directory(tmp_path)
    first = loaded(weights)
    first.runner.warm_up()
    blobs = list(artifact.cache_directory().rglob("*.blob"))
    assert blobs
    for number, blob in enumerate(blobs):  # others under their names, as the first start still reads them
        content = b"no model"
        if number % 2:
            content = bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:]
        blob.unlink()
        blob.write_bytes(content)
    second = loaded(weights)
    second.runner.warm_up()
    assert "is damaged" in caplog.text
    for blob in artifact.cache_directory().rglob("*.blob"):
        assert machine.Notes((blob.parent,)).blob(blob.name.split(".")[0]) == blob
    pixels = np.random.default_rng(1).integers(0, 256, (1, *first.card().image), np.uint8)
    answers = []
    for each in (first, second):
        results = np.zeros((1, each.runner.results), np.float32)
        each.runner.run(pixels, [0], [OutputKind.CLASSIFY], results)
        answers.append(results)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-5)


def test_the_least_of_several_measurements_counts() -> None:
    first = machine.Measured({"one": {1: 2.0}, "together": {1: 5.0, 4: 9.0}}, 1, "a")
    second = machine.Measured({"one": {1: 3.0}, "together": {1: 4.0, 8: 20.0}}, 2, "a")
    both = first.merged(second)
    assert both.times == {"one": {1: 2.0}, "together": {1: 4.0, 4: 9.0, 8: 20.0}}
    assert (both.rounds, both.graph) == (3, "a")
    assert machine.Measured.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_a_plan_made_in_a_bad_moment_is_corrected(tmp_path: Path) -> None:
    """A first start beside other work took one way for slow; a later one finds out when it is idle."""
    weights = tiny.directory(tmp_path)
    loaded(weights).runner.warm_up()
    (plan,) = artifact.cache_directory().rglob("plan.json")
    true = machine.Measured.from_json(json.loads(plan.read_text()))
    slow = {
        executor: dict.fromkeys(sizes, 5.0)
        for executor, sizes in true.times.items()
        if executor != "together"
    }
    spoilt = machine.Measured({**true.times, **slow}, 1, true.graph)
    plan.write_text(json.dumps(spoilt.to_json()))
    second = loaded(weights).runner
    assert isinstance(second, ModelRunner)
    second.warm_up()
    assert {executor.name for executor in second._executors.values()} == {"together"}
    steps = sum(1 for _ in second.measure_again())
    assert steps > 4
    found = machine.Measured.from_json(json.loads(plan.read_text()))
    assert found.rounds == 2
    assert all(took < 5 for executor in slow for took in found.times[executor].values())
    for _ in range(10):  # not for ever
        for _ in loaded(weights).runner.measure_again():  # type: ignore[union-attr]
            pass
    assert machine.Measured.from_json(json.loads(plan.read_text())).rounds == 4


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    really = cache._read
    monkeypatch.setattr(cache, "_read", lambda path: (read.append(path), really(path))[1])  # type: ignore[func-returns-value]
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(2 << 20))
    small.write_bytes(b"1")
    assert cache.file_sha256(large) == cache.file_sha256(large)
    assert len(read) == 2  # it was written a moment ago
    monkeypatch.setattr(cache, "_SETTLED", -1.0)
    first = cache.file_sha256(large)
    del read[:]
    assert cache.file_sha256(large) == first
    assert read == []
    content = bytearray(large.read_bytes())
    content[5] = 1
    status = large.stat()
    large.write_bytes(content)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))  # as whoever hides a change would
    assert cache.file_sha256(large) != first
    assert read == [large]


def test_random_weights_are_told_apart_by_seed_and_model(
    built: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    checkpoint = resolve("demo", "densenet121")
    card = building.describe(checkpoint, building.loader.load(checkpoint))  # type: ignore[attr-defined]
    assert sources.find("random:1", "densenet121") is None
    sources.remember("random:1", "densenet121", replace(checkpoint, files={}), card)
    found = sources.find("random:1", "densenet121")
    assert found is not None
    assert found.card == card
    assert sources.find("random:2", "densenet121") is None
    assert sources.find("random:1", "vgg16") is None
