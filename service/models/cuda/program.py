"""A network as a function on the device, with what is needed to trust it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from service.models.canary import Logits


@dataclass(frozen=True)
class Choice:
    """A program that can be had by `make`, which raises `StartError`. ``without`` is what is given up if not."""

    without: str
    make: Callable[[], Program]


@dataclass(frozen=True)
class Program:
    """``forward``: uint8 ``[N, H, W, C]`` on the device → features ``[N, C', h, w]`` and logits ``[N, classes]``."""

    name: str
    """What the setting ``runtime`` calls it."""
    precision: str
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Without a head the second result is anything that the image decides, for the canary's sake."""
    graphs: bool
    """Whether it is to be captured, one graph for each bucket."""
    expected: Logits | None = None
    """The canary's answer by the network in fp32 on the CPU."""

    most: int | None = None
    """Images that ``forward`` takes at most; None for any number."""
