"""Networks as data: other libraries' notations, JSON and back, and what is no network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import CheckpointError
from service.models.catalog import VARIANTS
from service.models.configuration import DenseNetConfig, VGGConfig, from_json, to_json
from service.models.head import Activate, Adapt, Flatten, Linear, Norm
from service.models.network import build


@pytest.mark.parametrize("name", VARIANTS)
def test_json_and_back(name: str) -> None:
    configuration = VARIANTS[name].configuration
    assert from_json(to_json(configuration)) == configuration


def test_a_vgg_in_the_words_of_keras_hub() -> None:
    vgg11 = VARIANTS["vgg11"].configuration
    assert VGGConfig.from_stackwise([1, 1, 2, 2, 2], [64, 128, 256, 512, 512]) == vgg11


def test_a_stage_may_have_no_layers() -> None:
    configuration = VGGConfig(stages=((4,), (), (6,), ()))
    assert (configuration.width, configuration.map_size((33, 47))) == (6, (2, 2))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("vgg", {"stages": []}),
        ("vgg", {"stages": [[]]}),
        ("vgg", {"stages": [[64, 0]]}),
        ("vgg", {"stages": [["64"]]}),
        ("vgg", {"stages": 3}),
        ("vgg", {"stages": [[64]], "head": "round"}),
        ("vgg", {"stages": [[64]], "num_classes": -1}),
        ("vgg", {"stages": [[64]], "depth": 3}),
        ("vgg", {}),
        ("densenet", {"blocks": []}),
        ("densenet", {"blocks": [10**9]}),
        ("densenet", {"blocks": [2, -1]}),
        ("densenet", {"blocks": [2], "compression": 0}),
        ("densenet", {"blocks": [2], "padding": "valid"}),
        ("densenet", {"blocks": [2], "head_pooling": "sum"}),
        ("densenet", {"blocks": [2], "growth_rate": True}),
        ("resnet", {}),
    ],
)
def test_what_is_no_network_is_refused(family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="configuration"):
        from_json({"family": family, **changes})


def test_a_billion_layers_are_a_message() -> None:
    with pytest.raises(CheckpointError, match="number of layers must be whole and from 1 to 1000"):
        VGGConfig.from_stackwise([10**9], [64])
    with pytest.raises(CheckpointError, match="number of layers"):
        DenseNetConfig((10**12,))


POOL, LAST = {"layer": "pool"}, {"layer": "linear", "name": "0", "inputs": 64, "outputs": 1000}


def test_a_head_of_its_own_goes_through_json_and_fits_the_network() -> None:
    layers = (
        Adapt((2, 2)),
        Flatten(),
        Linear("0", 256, 9),
        Norm("1", 9),
        Activate("elu", 0.5),
        Linear("4", 9, 3),
    )
    for configuration in (
        VGGConfig(((64,),), num_classes=3, layers=layers),
        DenseNetConfig((2,), growth_rate=8, stem_width=48, num_classes=3, layers=layers),
    ):
        assert from_json(json.loads(json.dumps(to_json(configuration)))) == configuration
        names = [name for name, _ in build(configuration).classifier.named_parameters()]
        assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]


@pytest.mark.parametrize(
    "layers",
    [
        [LAST],
        [POOL],
        [POOL, POOL, LAST],
        [POOL, {**LAST, "inputs": 65}],
        [POOL, {**LAST, "outputs": 10}],
        [POOL, {**LAST, "outputs": 64}, LAST],
        [{"layer": "pool", "by": "sum"}, LAST],
        [{"layer": "pool", "by": ["avg"]}, LAST],
        [POOL, {**LAST, "name": 3}],
        [POOL, {**LAST, "name": "forward"}],
        [POOL, {**LAST, "colour": "red"}],
        [POOL, {"layer": "attention"}, LAST],
        [POOL, "linear"],
        [POOL, LAST, {"layer": "norm", "name": "1", "width": 1000, "epsilon": "small"}],
        [POOL, *[{"layer": "activate"}] * 100, LAST],
        "linear",
        {"pool": 1},
    ],
)
def test_layers_that_are_no_head_are_refused(layers: Any) -> None:
    with pytest.raises(CheckpointError, match=r"head|layer"):
        from_json({"family": "vgg", "stages": [[64]], "layers": layers})
