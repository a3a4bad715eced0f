"""A network as a function on the device, with what is needed to check it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from service.models.canary import Logits


@dataclass(frozen=True)
class Choice:
    """A way to make a program. `make` raises `StartError`; ``without`` names what is given up if it does."""

    without: str
    make: Callable[[], Program]


@dataclass(frozen=True)
class Program:
    """A network on the device.

    ``forward`` maps uint8 ``[N, H, W, C]`` on the device → features ``[N, C', h, w]`` and logits ``[N, classes]``.
    """

    name: str
    """The program's name in the setting ``runtime``."""
    precision: str
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """The function. Without a head, its second result is any value that depends on the image, for the canary check.
    """
    graphs: bool
    """True if the program is to be captured, one graph for each bucket."""
    expected: Logits | None = None
    """The network's answers to the canaries ``[images, length]``, in fp32 on the CPU."""

    max_batch_size: int | None = None
    """Most images that ``forward`` takes; None for any number."""
