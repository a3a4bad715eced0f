"""The recipe as data: the network, epochs and image sizes, learning rates. No tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.models.configuration import DenseNetConfig

#: The demo model's network. An input of 64x64 passes blocks at 32, 16, 8 and 4 pixels. A layer costs by its area, so
#: most layers are where maps are small: the last four, at 4 pixels, have a fifth of the weights and take a few
#: percent of the time. Layers are wide (growth 64) and few, since concatenation, norm and ReLU are memory-bound. A
#: bottleneck of 2 instead of 4 saves 40 % of a step.
NETWORK = DenseNetConfig(
    blocks=(1, 4, 8, 8),
    growth_rate=64,
    stem_width=64,
    bottleneck=2,
    stem_kernel=3,
    stem_stride=2,
    stem_pool=False,
    num_classes=200,
)


@dataclass(frozen=True)
class Stage:
    """A part of a recipe: ``epochs`` at images of ``side`` pixels, cropped from at least ``area`` of the picture.

    After each epoch the network is evaluated at ``tried`` pixels, or at ``side``. The layers of ``features`` up to
    ``frozen`` are not trained: maps are largest there, so they cost most, and their features are the most general.
    """

    epochs: float
    side: int
    area: float
    tried: int | None = None
    frozen: str | None = None


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights beside the data. Learning rates are SGD's, per batch."""

    stages: tuple[Stage, ...] = (
        Stage(5, 32, 0.35),
        Stage(3, 32, 0.5),
        Stage(2, 48, 0.5),
        Stage(2, 64, 0.6),
        Stage(3, 64, 0.3),
    )
    batch_size: int = 128
    peak_learning_rate: float = 0.25
    warm_up: float = 0.18
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema_decay: float = 0.998
    seed: int = 0
    #: Share of a teacher's soft answers in the loss, if there is a teacher; the labels have the rest.
    teacher_share: float = 0.6
    #: Divisor of the teacher's logits (Hinton et al., arXiv:1503.02531).
    teacher_temperature: float = 1.5

    @property
    def epochs(self) -> float:
        return sum(stage.epochs for stage in self.stages)

    def stage(self, progress: float) -> Stage:
        """Returns the stage at the share ``progress`` (0..1) of the whole."""
        epoch = progress * self.epochs
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        return self.stages[-1]

    def learning_rate(self, progress: float) -> float:
        """Returns the learning rate at the share ``progress`` (0..1) of the whole.

        It is one cycle (Smith and Topin, arXiv:1708.07120): a linear rise, then a cosine to zero.
        """
        if progress < self.warm_up:
            return self.peak_learning_rate * (0.02 + 0.98 * progress / self.warm_up)
        done = (progress - self.warm_up) / (1 - self.warm_up)
        return self.peak_learning_rate * (1 + math.cos(math.pi * done)) / 2


#: One more cycle from trained weights. Crops at 48 pixels show things as large as whole pictures at 64 do, at 56 %
#: of the cost (Touvron et al., arXiv:1906.06423). The first two blocks take two thirds of a step; both are frozen
#: for the first half, and the first one to the end.
REFINING = Recipe(
    stages=(
        Stage(3.5, 48, 0.35, tried=64, frozen="transition2"),
        Stage(4, 48, 0.35, tried=64, frozen="transition1"),
        Stage(2.5, 64, 0.5, frozen="transition1"),
    ),
    peak_learning_rate=0.08,
    warm_up=0.05,
    label_smoothing=0.0,
)
