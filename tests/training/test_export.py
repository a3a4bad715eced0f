from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from service.models import checkpoints, densenet, loader
from service.models.configuration import DenseNetConfig
from tests.training.conftest import NETWORK
from training.augment import normalise
from training.export import export

#: In ImageNet's order, as `training.data.class_order` gives them.
WNIDS = ("n02124075", "n07753592", "n07920052")

DEMO = Path(checkpoints.__file__).parents[1] / "demo"


def test_the_service_gives_the_trained_networks_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = densenet.build(NETWORK).eval()
    export(tmp_path, NETWORK, network.state_dict(), WNIDS, {"data": "none"})
    served = loader.load(checkpoints.resolve(str(tmp_path), "densenet121"))
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    expected = network(normalise(pixels.permute(0, 3, 1, 2)))
    torch.testing.assert_close(served(pixels), expected.detach(), atol=0.01, rtol=0.01)


def test_weights_are_half_precision_and_training_is_told(tmp_path: Path) -> None:
    export(tmp_path, NETWORK, densenet.build(NETWORK).state_dict(), WNIDS, {"data": "none"})
    checkpoint = checkpoints.resolve(str(tmp_path), "densenet121")
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float16, torch.int64}
    assert json.loads((tmp_path / "config.json").read_text())["training"] == {"data": "none"}


def test_classes_carry_imagenets_index_and_torchvisions_label(tmp_path: Path) -> None:
    export(tmp_path, NETWORK, densenet.build(NETWORK).state_dict(), WNIDS, {})
    classes = checkpoints.resolve(str(tmp_path), "densenet121").classes
    assert classes is not None
    assert [astuple(label) for label in classes] == [
        (285, "n02124075", "Egyptian cat"),
        (954, "n07753592", "banana"),
        (967, "n07920052", "espresso"),
    ]


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model has not been trained yet")
def test_the_shipped_model_is_whole_and_small() -> None:
    checkpoint = checkpoints.resolve("demo", "densenet121")
    assert isinstance(checkpoint.configuration, DenseNetConfig)
    assert checkpoint.classes is not None
    assert len(checkpoint.classes) == checkpoint.configuration.num_classes == 200
    class_ids = [label.class_id for label in checkpoint.classes]
    assert class_ids == sorted(set(class_ids))
    loader.load(checkpoint)
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000


def test_the_temperature_divides_the_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = densenet.build(NETWORK).eval()
    torch.nn.init.normal_(network.get_parameter("classifier.weight"), 0, 1)
    export(tmp_path, NETWORK, network.state_dict(), WNIDS, {"temperature": 0.5}, temperature=0.5)
    served = loader.load(checkpoints.resolve(str(tmp_path), "densenet121"))
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    expected = 2 * network(normalise(pixels.permute(0, 3, 1, 2)))
    torch.testing.assert_close(served(pixels), expected.detach(), atol=0.02, rtol=0.02)
