"""How a model is executed: each runtime offers one or several ways to run a batch, `ModelRunner` picks among them.

service.models.runner      slots, plans, warm-up: the engine's door
    │ Executor(pixels, slots) → answers
eager.py                   torch: the reference, on any device
openvino.py                OpenVINO on the CPU ◀── conversion.py   torch module → OpenVINO model, by translation.py
                                               ◀── onnx_runtime.py  more executors, where the extra is installed
                                               ◀── winograd.py     VGG's convolutions, with fewer products
                                               ◀── artifact.py     a converted or quantised model on disk
                                               ◀── int8.py         OpenVINO model → one of integers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class Answer(NamedTuple):
    """What the model says to one image. Valid until the same executor runs again."""

    features: NDArray[np.float32]
    """The last block's output, ``[C, h, w]``."""
    logits: NDArray[np.float32]
    """``[classes]``; empty for a checkpoint without a head."""


class Executor(Protocol):
    """One way to run images through the model, on its device."""

    @property
    def name(self) -> str:
        """What notes call it; no other executor of the runtime's has it."""

    @property
    def parallelism(self) -> int | None:
        """None: all images given go through the layers together, as one batch. Else: they go one by one,
        this many at the same time, so that a multiple of it takes a multiple of the time."""

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        """Runs ``pixels[slots]``, uint8 ``[slots, H, W, C]``. The answers are in the order of ``slots``."""


@runtime_checkable
class Preparable(Protocol):
    """An executor that has something to compile before its first pass."""

    def prepare(self) -> object:
        """Does that now, unless it was done."""


class Stream(Protocol):
    """One of the ``parallelism`` places of an executor that runs images side by side, to be used without the others."""

    def __call__(self, pixels: Pixels, slot: int) -> Answer:
        """Runs ``pixels[slot]``. Each stream may do so in a thread of its own at the same time."""


@runtime_checkable
class SupportsStreams(Protocol):
    """An executor whose places need not begin and end together."""

    def streams(self) -> list[Stream]:
        """As many as the executor's ``parallelism``."""


@runtime_checkable
class Stoppable(Protocol):
    """An executor that can be stopped in the middle of a batch."""

    def stop(self) -> None:
        """Lets the batch that runs fail soon; does nothing where none does. To be called in any thread."""


class Runtime(Protocol):
    """A model that is ready to run."""

    precision: str

    @property
    def most(self) -> int | None:
        """Images in one batch at most; None for any number."""

    @property
    def name(self) -> str:
        """What the setting ``runtime`` calls it."""

    def executors(self) -> list[Executor]:
        """Every executor worth trying on this host; the first one is good for any number of images."""

    def another(self) -> Runtime | None:
        """The same with memory of its own, to be measured beside it; None where there is no choice or no room."""

    def settle(self, names: Sequence[str]) -> bool:
        """No executor but these is going to be used from now on. Returns whether any of them was made anew."""


def gather(pixels: Pixels, slots: Sequence[int], staging: Pixels) -> Pixels:
    """``pixels[slots]`` as one block: a view where the slots are neighbours, else copied into ``staging``."""
    first, count = slots[0], len(slots)
    if list(slots) == list(range(first, first + count)):
        return pixels[first : first + count]
    for row, slot in enumerate(slots):
        staging[row] = pixels[slot]
    return staging[:count]
