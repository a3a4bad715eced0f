"""Where weights come from, without a network: random, files, our own directory, and every refusal."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from service.cli.main import cli
from service.errors import CheckpointError
from service.labels import imagenet_classes
from service.models.checkpoints import Checkpoint, places, resolve, write
from service.models.configuration import DenseNetConfig, VGGConfig
from service.models.loader import load
from service.models.network import build

SMALL = DenseNetConfig((2, 2), growth_rate=4, stem_width=8, num_classes=3)
SMALL_VGG = VGGConfig(((4,), (6, 6)), batch_norm=True, hidden=5, num_classes=3)


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = build(SMALL).state_dict()
    return tensors


def test_random_is_torchvisions_initialisation_to_the_bit() -> None:
    torch.manual_seed(7)
    expected = models.densenet121().state_dict()
    before = torch.get_rng_state()
    checkpoint = resolve("random:7", "densenet121")
    assert torch.equal(torch.get_rng_state(), before)
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[key], tensor) for key, tensor in expected.items())
    assert (checkpoint.name, checkpoint.sha256) == ("random:7", None)
    assert checkpoint.classes == imagenet_classes()


@pytest.mark.parametrize("batch_norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_vggs_initialisation_is_torchvisions(batch_norm: bool) -> None:
    torch.manual_seed(3)
    ours = build(VGGConfig(((4,), (6, 512)), batch_norm=batch_norm, num_classes=3)).state_dict()
    # torchvision fixes its head at 512 channels and 4,096 neurons; the convolutions may be few.
    torch.manual_seed(3)
    features = models.vgg.make_layers([4, "M", 6, 512, "M"], batch_norm=batch_norm)
    theirs = models.VGG(features, num_classes=3).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_random_without_a_seed_is_seed_0() -> None:
    assert resolve("random", "densenet121").name == "random:0"


@pytest.mark.parametrize("weights", ["random:", "random:x", "random:-1", f"random:{2**64}", "random:3:"])
def test_a_bad_seed_is_refused(weights: str) -> None:
    with pytest.raises(CheckpointError, match="random:SEED"):
        resolve(weights, "densenet121")


@pytest.mark.parametrize("weights", ["imagenet", "missing.pth", "hub://x", "", "missing/"])
def test_unknown_weights_name_what_is_accepted(weights: str) -> None:
    with pytest.raises(CheckpointError, match=r"pretrained.*random.*demo.*\.safetensors"):
        resolve(weights, "densenet121")


def test_an_unknown_model_names_the_twelve() -> None:
    with pytest.raises(CheckpointError, match=r"vgg11.*densenet201"):
        resolve("random", "resnet50")


def test_the_averaged_weights_come_first(tmp_path: Path, state_dict: dict[str, Tensor]) -> None:
    averaged = {key: tensor + 1 for key, tensor in state_dict.items()}
    torch.save({"state_dict": state_dict, "state_dict_ema": averaged}, tmp_path / "mine.pth")
    checkpoint = resolve(str(tmp_path / "mine.pth"), "densenet121")
    assert torch.equal(checkpoint.state_dict["classifier.bias"], averaged["classifier.bias"])


def _wrap(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {key: tensors, "epoch": 3, "optimizer": {"lr": 0.1}}


def _prefix(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {prefix + key: tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    "dress",
    [
        dict,
        _wrap("state_dict"),
        _wrap("model_state_dict"),
        _wrap("model"),
        _wrap("state_dict_ema"),
        lambda tensors: {"model": tensors, "args": Namespace(lr=0.1), "epoch": 3},
        _prefix("module."),
        _prefix("_orig_mod."),
        _prefix("module._orig_mod."),
        _prefix("_orig_mod.module."),
        lambda tensors: _wrap("state_dict")(_prefix("module.")(tensors)),
        lambda tensors: {key: tensor for key, tensor in tensors.items() if "batches" not in key},
    ],
)
def test_files_of_training_scripts_are_unwrapped(
    tmp_path: Path, state_dict: dict[str, Tensor], dress: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(dress(state_dict), tmp_path / "mine.pth")
    checkpoint = resolve(str(tmp_path / "mine.pth"), "densenet121")
    assert checkpoint.configuration == SMALL
    assert checkpoint.state_dict.keys() == state_dict.keys()
    assert [entry.label for entry in checkpoint.classes or ()] == ["class 0", "class 1", "class 2"]
    assert (checkpoint.name, checkpoint.source) == ("mine", "file mine.pth")
    load(checkpoint)


def test_safetensors_and_pth_give_the_same(tmp_path: Path) -> None:
    tensors = build(SMALL_VGG).state_dict()
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "b.safetensors")
    first, second = (resolve(str(tmp_path / name), "vgg11_bn") for name in ("a.pth", "b.safetensors"))
    assert first.configuration == second.configuration == SMALL_VGG
    assert all(torch.equal(first.state_dict[key], second.state_dict[key]) for key in tensors)


@pytest.mark.parametrize("compression", [0.5, 0.7, 0.29, 1.0, 1 / 3])
def test_a_compression_is_read_off_the_transitions(tmp_path: Path, compression: float) -> None:
    tensors = build(DenseNetConfig((2, 3, 1), 4, 10, compression=compression, num_classes=2)).state_dict()
    torch.save(tensors, tmp_path / "a.pth")
    checkpoint = resolve(str(tmp_path / "a.pth"), "densenet121")
    assert isinstance(checkpoint.configuration, DenseNetConfig)
    same = build(checkpoint.configuration).state_dict()
    assert {key: tensor.shape for key, tensor in same.items()} == {
        key: tensor.shape for key, tensor in tensors.items()
    }
    for channels in (12, 18):  # what the two transitions of this network get
        assert int(channels * checkpoint.configuration.compression) == int(channels * compression)
    load(checkpoint)


def test_a_fine_tuned_variant_just_works(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = build(DenseNetConfig((6, 12, 24, 16), num_classes=10)).state_dict()
    torch.save(
        {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in shapes.items()}, tmp_path / "tuned.pth"
    )
    assert resolve(str(tmp_path / "tuned.pth"), "densenet121").configuration.num_classes == 10
    with pytest.raises(
        CheckpointError, match="holds a densenet121, and model is vgg16; set model to densenet121"
    ):
        resolve(str(tmp_path / "tuned.pth"), "vgg16")


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip", b"\x80\x02.", b"\xff" * 64])
def test_damaged_files_are_one_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"'bad{suffix}'"):
        resolve(str(path), "densenet121")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Any, Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    save({"a": _Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        resolve("evil.pth", "densenet121")
    assert not Path("ran").exists()


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(build(SMALL), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"save model\.state_dict"):
        resolve(str(tmp_path / "whole.pth"), "densenet121")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.weight"), "'classifier.bias' and no weights of a head with it"),
        (lambda t: t.update({"classifier.bias": torch.zeros(9)}), "classifier.bias"),
        (lambda t: t.update({"classifier.bias": torch.zeros(3, dtype=torch.int8)}), "torch.int8"),
        (lambda t: t.pop("features.norm5.weight"), "norm5"),
        (lambda t: t.clear(), "neither a VGG nor a DenseNet"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, state_dict: dict[str, Tensor], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(state_dict)
    torch.save(state_dict, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load(resolve(str(tmp_path / "a.pth"), "densenet121"))


def _as_saved(tmp_path: Path) -> Checkpoint:
    torch.save(build(SMALL).state_dict(), tmp_path / "a.pth")
    return resolve(str(tmp_path / "a.pth"), "densenet121")


def test_our_directory_gives_back_what_was_written(tmp_path: Path) -> None:
    checkpoint = _as_saved(tmp_path)
    write(checkpoint, tmp_path / "ours")
    again = resolve(str(tmp_path / "ours"), "vgg16")
    assert again.configuration == checkpoint.configuration
    assert again.preprocessing == checkpoint.preprocessing
    assert (again.classes, again.activation, again.name) == (checkpoint.classes, "softmax", "a")
    assert all(torch.equal(again.state_dict[key], tensor) for key, tensor in checkpoint.state_dict.items())
    assert str(tmp_path) not in again.source


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "JSON"),
        ("[]", "no JSON object"),
        ("{}", "unknown format"),
        ('{"format": "imagenet-serve", "version": 2}', "version 2"),
        ('{"format": "imagenet-serve", "version": 1}', "architecture"),
    ],
)
def test_a_bad_directory_is_refused(tmp_path: Path, config: str, message: str) -> None:
    write(_as_saved(tmp_path), tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path / "ours"), "densenet121")


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json, and neither model\.safetensors"):
        resolve(str(tmp_path), None)


def test_labels_replace_the_classes_and_must_be_as_many(tmp_path: Path) -> None:
    _as_saved(tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\n")
    checkpoint = resolve(str(tmp_path / "a.pth"), "densenet121", labels=labels)
    assert [entry.label for entry in checkpoint.classes or ()] == ["ant", "bee", "cat"]
    labels.write_text("ant\nbee\n")
    with pytest.raises(CheckpointError, match="has 2 labels and the model 3 classes"):
        resolve(str(tmp_path / "a.pth"), "densenet121", labels=labels)


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (
            {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [4, 6]},
            VGGConfig(((4,), (6, 6)), num_classes=0),
        ),
        (
            {
                "stackwise_num_repeats": [2, 2],
                "growth_rate": 4,
                "compression_ratio": 0.7,
                "image_shape": [None, None, 3],
            },
            DenseNetConfig((2, 2), 4, compression=0.7, num_classes=0, padding="same", epsilon=1.001e-5),
        ),
        ({"family": "densenet", "blocks": [2], "num_classes": 3}, DenseNetConfig((2,), num_classes=3)),
        (
            {"architecture": "tv_densenet121", "num_classes": 7, "pretrained_cfg": {}},
            DenseNetConfig((6, 12, 24, 16), num_classes=7),
        ),
    ],
)
def test_a_configuration_without_weights_is_a_network(
    tmp_path: Path, document: dict[str, Any], wanted: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(document))
    for source in (f"random:{tmp_path}", f"random:5:{tmp_path / 'config.json'}"):
        checkpoint = resolve(source, "vgg16")
        assert checkpoint.configuration == wanted
        load(checkpoint)
    assert (checkpoint.name, checkpoint.sha256) == ("random:5", None)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"family": "resnet"}', '{"stackwise_num_repeats": "many"}']
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json|family"):
        resolve(f"random:{tmp_path / 'config.json'}", "vgg16")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("pretraned", "did you mean pretrained"),
        ("densenet121", "--model densenet121"),
        ("model.pth", "there are no weights 'model.pth'"),
        ("model.pth?pool=avg", "has no option 'pool'"),
        ("model.pth?pooling=mean", "it takes avg, max"),
        ("hf://owner", "no hf:// address"),
        ("kaggle://owner", "no kaggle:// address"),
        ("random:x", "random:SEED"),
    ],
)
def test_cheap_mistakes_are_told_from_the_words_alone(weights: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        places.check(weights)


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "demo",
        "classify F",
        "evaluate F",
        "plan --p99 50",
        "quantize O --calibrate F",
        "export O",
        "convert",
    ],
)
def test_every_command_tells_them_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    class Told(Exception):
        pass

    def tell(weights: str, labels: Path | None) -> None:
        raise Told

    monkeypatch.setattr(places, "check", tell)
    named = ["pretraned", str(tmp_path / "out")] if command == "convert" else ["--weights", "pretraned"]
    words = [{"F": str(tmp_path), "O": str(tmp_path / "out")}.get(word, word) for word in command.split()]
    ran = CliRunner().invoke(cli, [*words, *named])
    assert isinstance(ran.exception, Told), ran.output


def test_and_without_torch() -> None:
    program = (
        "import sys\nfrom service.models.checkpoints import places\n"
        "try:\n    places.check('pretraned')\nexcept Exception as error:\n    print(error)\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("False\n")


def test_a_labels_file_that_is_none_is_told_before_the_weights_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"labels file 'none\.txt'"):
        resolve("hf://owner/repo", "vgg16", labels=tmp_path / "none.txt")
