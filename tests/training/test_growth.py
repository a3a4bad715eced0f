from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from service.models import densenet
from tests.training.conftest import NETWORK
from training.growth import grown


def test_a_grown_network_gives_the_same_answers_and_can_learn_with_its_new_layers() -> None:
    torch.manual_seed(0)
    small = densenet.build(NETWORK).eval()
    for name, tensor in small.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    large = densenet.build(replace(NETWORK, blocks=(1, 3))).eval()
    large.load_state_dict(grown(small.state_dict(), large.state_dict()))
    pixels = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(large(pixels), small(pixels))
    torch.autograd.backward(large(pixels)[:, 0].sum())
    assert large.classifier.weight.grad is not None
    grown_weight, weight = (network.get_parameter("classifier.weight") for network in (large, small))
    new = grown_weight.shape[1] - weight.shape[1]
    assert new == 2 * NETWORK.growth_rate
    assert grown_weight.grad is not None
    assert grown_weight.grad[0, -new:].abs().max() > 0


@pytest.mark.parametrize(
    "change", [{"blocks": (2, 1)}, {"blocks": (1, 1, 1)}, {"growth_rate": 8}, {"num_classes": 2}]
)
def test_weights_that_would_not_fit_are_refused(change: dict[str, object]) -> None:
    small = densenet.build(NETWORK).state_dict()
    other = densenet.build(replace(NETWORK, **change)).state_dict()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not fit|has no"):
        grown(small, other)
    with pytest.raises(ValueError, match=r"does not fit|has no"):
        grown(other, small)
