"""The fused networks say what the plain ones say, in every precision and for every form of stem, block and head."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from service.models import densenet, fused, vgg
from service.models.canary import LIMITS
from service.models.configuration import DenseNetConfig, VGGConfig
from service.models.fused import ops
from service.models.fused.norm import Norm
from service.models.loader import Uint8Model
from service.models.network import build
from service.shared.fallback import Fallback

CPU = torch.device("cpu")
CONFIGURATIONS: dict[str, VGGConfig | DenseNetConfig] = {
    "densenet": DenseNetConfig((3, 2, 2), growth_rate=12, stem_width=20, num_classes=9),
    "densenet, no stem pool": DenseNetConfig(
        (2, 2), growth_rate=8, stem_width=8, num_classes=5, stem_pool=False
    ),
    "densenet, Keras": DenseNetConfig(
        (2, 2), 8, 8, num_classes=5, padding="same", head_pooling="max", epsilon=1e-3
    ),
    "densenet, deep and blurred": DenseNetConfig(
        (2, 2), 8, 12, num_classes=5, stem_kernel=3, deep_stem=(6, 6), blur=True
    ),
    "densenet, grey": DenseNetConfig((2, 2), growth_rate=8, stem_width=8, num_classes=5, channels=1),
    "vgg": VGGConfig(((8,), (12, 12)), hidden=20, num_classes=7),
    "vgg, norms": VGGConfig(((8, 8), (12,)), batch_norm=True, hidden=20, num_classes=7),
    "vgg, sliding head": VGGConfig(((8,), (12,)), hidden=20, num_classes=7, head="sliding"),
}


def model(name: str) -> Uint8Model:
    """Every norm of it does something, and every number is of the size that trained ones have."""
    configuration = CONFIGURATIONS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build(configuration)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                for tensor, low, high in (
                    (module.weight.data, 0.5, 1.5),
                    (module.bias.data, -0.3, 0.3),
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.uniform_(low, high)
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    found = Uint8Model(network, configuration.channels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return found.eval().requires_grad_(False)


def photos(count: int = 3) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=chance)


def away(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.inference_mode()
def test_fused_answers_are_the_plain_ones(name: str, precision: str) -> None:
    plain = model(name)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    wanted = plain.forward_features(photos())
    logits = plain.forward_head(wanted)
    network = fused.fuse(copy.deepcopy(plain), fused.TORCH, CPU, dtype)
    features, answers = network(photos())
    assert features.dtype == dtype
    assert away(features, wanted) <= LIMITS[precision]
    assert away(answers, logits) <= LIMITS[precision]
    for row in range(3):
        alone = network(photos()[row : row + 1])[1][0]
        assert away(alone, logits[row]) <= LIMITS[precision]


@torch.inference_mode()
def test_without_a_head_the_second_answer_is_the_features_mean() -> None:
    network = fused.fuse(model("densenet"), fused.TORCH, CPU, torch.float32, has_head=False)
    features, means = network(photos())
    assert away(means, features.mean((2, 3))) < 1e-6


class Names(TorchDispatchMode):
    """What torch was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


def test_a_block_writes_into_one_buffer_and_nothing_concatenates() -> None:
    network = fused.fuse(model("densenet"), fused.TORCH, CPU, torch.float32)
    with torch.inference_mode(), Names() as names:
        network(photos())
    assert "aten.cat" not in names.seen
    assert any("batch_norm" in name for name in names.seen)


def test_an_operation_that_fails_or_is_wrong_falls_back_to_torch() -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no C compiler")

    def lies(x: Tensor, norm: Norm) -> Tensor:
        return fused.TORCH.norm_relu(x, norm) * 1.001

    def works(x: Tensor, conv: nn.Conv2d) -> Tensor:
        return fused.TORCH.conv_relu(x, conv)

    faster: ops.Candidates = {"norm_relu_conv": (fails,), "norm_relu": (lies,), "conv_relu": (works,)}
    found = ops.chosen(faster, CPU, torch.float32)
    assert found.names == ("conv_relu",)
    assert found.conv_relu is works
    assert (found.norm_relu, found.norm_relu_conv) == (fused.TORCH.norm_relu, fused.TORCH.norm_relu_conv)
    assert found.refused == (
        Fallback("norm_relu_conv", "RuntimeError: no C compiler"),
        Fallback("norm_relu", "ArithmeticError: its answers are off by 0.001"),
    )
    assert fused.best(CPU, torch.float32) is fused.TORCH


def test_of_several_versions_each_size_gets_the_fastest_and_is_timed_once() -> None:
    ran: list[str] = []

    def version(name: str) -> ops.ConvInto:
        def works(x: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
            ran.append(name)
            fused.TORCH.conv_into(x, conv, out)

        return works

    times = iter((3.0, 1.0, 2.0, 1.0, 2.0, 3.0))  # torch's, ours, smaller; for one size after another
    found = ops.chosen(
        {"conv_into": (version("ours"), version("smaller"))}, CPU, torch.float32, lambda work: next(times)
    )
    assert (found.names, found.refused) == (("conv_into",), ())
    conv = nn.Conv2d(8, 4, 3, padding=1, bias=False).requires_grad_(False)
    for images, expected in ((2, ["ours"]), (2, ["ours"]), (5, []), (2, ["ours"]), (5, [])):
        ran.clear()
        x, out = torch.randn(images, 8, 5, 5), torch.zeros(images, 4, 5, 5)
        found.conv_into(x, conv, out)
        assert ran == expected
        assert torch.equal(out, conv(x))


def test_a_version_that_fails_leaves_the_others() -> None:
    def broken(x: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
        raise RuntimeError("no C compiler")

    times = iter((2.0, 1.0))
    ours = Mock(side_effect=fused.TORCH.conv_into)
    found = ops.chosen({"conv_into": (broken, ours)}, CPU, torch.float32, lambda work: next(times))
    assert found.refused == (Fallback("conv_into", "RuntimeError: no C compiler"),)
    ours.reset_mock()
    conv = nn.Conv2d(8, 4, 3, padding=1, bias=False).requires_grad_(False)
    found.conv_into(torch.randn(1, 8, 5, 5), conv, torch.zeros(1, 4, 5, 5))
    assert ours.call_count == 1
    assert ops.chosen({"conv_into": (broken, broken)}, CPU, torch.float32).conv_into is fused.TORCH.conv_into


@pytest.mark.parametrize(
    "name", [field.name for field in fields(ops.Ops) if field.name not in ("names", "refused")]
)
@torch.inference_mode()
def test_every_operation_of_torch_s_runs_on_its_own_example(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert ops.chosen({name: (getattr(fused.TORCH, name),)}, CPU, dtype).names == (name,)


def test_every_configuration_builds() -> None:
    assert isinstance(model("vgg").network, vgg.VGG)
    assert isinstance(model("densenet").network, densenet.DenseNet)
