"""timm repositories whose config.json says something else than the fixtures'."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from service.errors import CheckpointError
from service.labels import imagenet_classes
from service.models.checkpoints import resolve
from service.models.checkpoints.timm import _classes
from service.models.loader import load
from tests.models.parity import FIXTURES


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the fixture with values of its config.json, or of its pretrained_cfg, replaced."""

    def make(*, pretrained_cfg: dict[str, Any] | None = None, **changes: Any) -> Path:
        folder = Path(shutil.copytree(FIXTURES / "timm_vgg", tmp_path / "timm_vgg", dirs_exist_ok=True))
        document = json.loads((folder / "config.json").read_text()) | changes
        document["pretrained_cfg"] |= pretrained_cfg or {}
        (folder / "config.json").write_text(json.dumps(document))
        return folder

    return make


def test_the_pickle_is_read_where_there_is_nothing_safer(repository: Callable[..., Path]) -> None:
    folder = repository()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its file model\.safetensors"):
        resolve(str(folder), "vgg11")
    torch.save(tensors, folder / "pytorch_model.bin")
    load(resolve(str(folder), "vgg11"))


def test_a_state_dict_of_timms_is_known_by_its_names(tmp_path: Path) -> None:
    torch.save(load_file(FIXTURES / "timm_vgg" / "model.safetensors"), tmp_path / "trained.pth")
    expected = resolve(str(FIXTURES / "timm_vgg"), "vgg11").configuration
    assert resolve(str(tmp_path / "trained.pth"), "vgg11").configuration == expected


def test_the_oldest_repositories_are_flat(repository: Callable[..., Path]) -> None:
    folder = repository()
    document = json.loads((folder / "config.json").read_text())
    document |= document.pop("pretrained_cfg")
    document["labels"] = document.pop("label_names")
    del document["model_args"]
    (folder / "config.json").write_text(json.dumps(document))
    checkpoint = resolve(str(folder), "vgg11")
    assert checkpoint.preprocessing.crop == (64, 64)
    assert [entry.label for entry in checkpoint.classes or ()] == list("abcde")


def test_the_test_size_is_taken_when_asked_for(repository: Callable[..., Path]) -> None:
    folder = repository(pretrained_cfg={"test_input_size": [3, 96, 96], "test_crop_pct": 0.95})
    assert resolve(str(folder), "vgg11").preprocessing.crop == (64, 64)
    preprocessing = resolve(f"{folder}?test_size=true", "vgg11").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (101, (96, 96))


def test_squashing_resizes_to_both_sides(repository: Callable[..., Path]) -> None:
    folder = repository(pretrained_cfg={"crop_mode": "squash", "input_size": [3, 70, 35]})
    preprocessing = resolve(str(folder), "vgg11").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == ((80, 40), (70, 35))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"label_names": ["x", "y"]}, ["x", "y"]),
        ({"label_names": {"0": "x", "1": "y"}}, ["x", "y"]),
        ({"label_names": {"10": "late", "2": "early"}}, ["early", "late"]),
        ({}, ["class 0", "class 1"]),
    ],
)
def test_label_names(document: dict[str, Any], expected: list[str]) -> None:
    assert [entry.label for entry in _classes(document, 2, "x") or ()] == expected


def test_wordnet_ids_become_imagenets_classes() -> None:
    names = [entry.wnid for entry in imagenet_classes()]
    assert _classes({"label_names": names}, 1000, "x") == imagenet_classes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"}, "is a resnet50; only VGGs and DenseNets"),
        ({"global_pool": "", "model_args": {}}, "pools by ''"),
        ({"model_args": {"global_pool": ["avg"]}}, "pools by"),
        ({"model_args": {"act_layer": "gelu"}}, "act_layer=gelu"),
        ({"label_names": ["a"]}, "names 1 labels for 5 classes"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crops by 'border' to 64x64"),
        ({"pretrained_cfg": {"input_size": [3, 64, 32]}}, "crops by 'center' to 64x32"),
        ({"pretrained_cfg": {"input_size": 64}}, "not as timm writes it"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "not as timm writes it"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation 'random' is unknown"),
    ],
)
def test_what_cannot_be_served_is_refused(
    repository: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(str(repository(**changes)), "vgg11")


def test_transformers_models_are_refused(repository: Callable[..., Path]) -> None:
    folder = repository(model_type="vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is a transformers model \(vit\)"):
        resolve(str(folder), "vgg11")


def test_a_head_without_classes_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        checkpoint = resolve(str(FIXTURES / "timm_vgg_bn_headless"), "vgg11")
    assert checkpoint.classes is None
    assert not any(key.startswith(("classifier", "pre_logits")) for key in checkpoint.state_dict)
