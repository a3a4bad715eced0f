"""Execution of models: each runtime offers executors of a batch, and `ModelRunner` chooses among them.

service.models.runner      slots, plans, warm-up: the engine calls it
    │ Executor(pixels, slots) → answers
eager.py                   torch: the reference, on any device
openvino.py                OpenVINO on the CPU ◀── conversion.py   torch module → OpenVINO model, by translation.py
                                               ◀── onnx_runtime.py more executors, if the extra is installed
                                               ◀── winograd.py     VGG's convolutions with fewer products
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
    """The model's answer to one image. Valid until the same executor runs again."""

    features: NDArray[np.float32]
    """The last block's output, ``[C, h, w]``."""
    logits: NDArray[np.float32]
    """Logits ``[classes]``; empty for a checkpoint without a head."""


class Executor(Protocol):
    """One way to run images through the model on its device."""

    @property
    def name(self) -> str:
        """Name in notes, unique within the runtime."""

    @property
    def parallelism(self) -> int | None:
        """None if all images go through the layers together, as one batch. Otherwise the number of images that run
        side by side, each alone; a multiple of it takes a multiple of the time."""

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        """Runs ``pixels[slots]``, uint8 ``[slots, H, W, C]``. The answers are in the order of ``slots``."""


@runtime_checkable
class Preparable(Protocol):
    """An executor that compiles something before its first pass."""

    def prepare(self) -> object:
        """Compiles now, unless that was done."""


class Stream(Protocol):
    """One of the ``parallelism`` places of an executor, which can run images independently of the others."""

    def __call__(self, pixels: Pixels, slot: int) -> Answer:
        """Runs ``pixels[slot]``, uint8 ``[slots, H, W, C]``. Streams may run at the same time in threads of their
        own."""


@runtime_checkable
class SupportsStreams(Protocol):
    """An executor whose places need not start and end together."""

    def streams(self) -> list[Stream]:
        """Returns ``parallelism`` streams."""


@runtime_checkable
class Stoppable(Protocol):
    """An executor that can be stopped in the middle of a batch."""

    def stop(self) -> None:
        """Makes the running batch fail soon; does nothing without one. Can be called in any thread."""


class Runtime(Protocol):
    """A model that is ready to run."""

    precision: str

    @property
    def max_batch_size(self) -> int | None:
        """Most images in one batch; None for any number."""

    @property
    def name(self) -> str:
        """The runtime's name in the setting ``runtime``."""

    def executors(self) -> list[Executor]:
        """Returns every executor worth measuring on this host; the first one takes any number of images."""

    def another(self) -> Runtime | None:
        """Returns a second runtime with its own memory, to be measured beside this one; None without choice or room."""

    def settle(self, names: Sequence[str]) -> bool:
        """Keeps only the executors ``names``. Returns True if any of them was compiled anew."""


class Gather:
    """Collects a batch's images. Keeps the memory for copies, which is as large as the largest batch so far."""

    def __init__(self) -> None:
        self._staging: Pixels = np.empty(0, np.uint8)

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> Pixels:
        """Returns ``pixels[slots]`` as one block, valid until the next call.

        It is a view of ``pixels`` if the slots are neighbours, else a copy.
        """
        first, count = slots[0], len(slots)
        if list(slots) == list(range(first, first + count)):
            return pixels[first : first + count]
        if len(self._staging) < count or self._staging.shape[1:] != pixels.shape[1:]:
            self._staging = np.empty((count, *pixels.shape[1:]), np.uint8)
        for row, slot in enumerate(slots):
            self._staging[row] = pixels[slot]
        return self._staging[:count]
