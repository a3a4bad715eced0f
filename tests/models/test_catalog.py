"""The twelve variants: every figure is torchvision's, every network torchvision's own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision import models

from service.models.catalog import VARIANTS
from service.models.network import build

#: What the seeds say of the backbones, in millions (keras_hub's preset tables).
BACKBONES = {
    "vgg11": 9.22,
    "vgg13": 9.40,
    "vgg16": 14.71,
    "vgg19": 20.02,
    "densenet121": 7.04,
    "densenet169": 12.64,
    "densenet201": 18.32,
}


def test_the_order_is_the_contracts() -> None:
    assert " ".join(VARIANTS) == (
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn "
        "densenet121 densenet161 densenet169 densenet201"
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_figure_is_torchvisions(name: str) -> None:
    variant = VARIANTS[name]
    weights = models.get_model_weights(name)[variant.weights_name]
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    assert variant.name == name
    assert variant.parameters == weights.meta["num_params"]
    assert variant.gflops == weights.meta["_ops"]
    assert (variant.top1, variant.top5) == (accuracy["acc@1"], accuracy["acc@5"])
    assert variant.download_mb == weights.meta["_file_size"]
    assert variant.weights_file == weights.url.rpartition("/")[2]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(VARIANTS[name].configuration), models.get_model(name)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in ours.parameters()) == VARIANTS[name].parameters


@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbones_have_the_parameters_of_the_seeds(name: str) -> None:
    with torch.device("meta"):
        network = build(VARIANTS[name].configuration)
    # Keras counts a batch norm's running mean and variance as (untrained) parameters.
    tensors = [
        t for key, t in network.features.state_dict().items() if not key.endswith("num_batches_tracked")
    ]
    assert round(sum(tensor.numel() for tensor in tensors) / 1e6, 2) == BACKBONES[name]


def test_the_catalogue_needs_no_torch() -> None:
    program = "import sys, service.models.catalog, service.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
