"""Training, step by step, from a state that a file can hold.

Randomness has no state of its own: the order of an epoch comes from (seed, epoch) and the crops of
a batch from (seed, step, process). A run that is stopped and resumed from its last checkpoint therefore ends
with the weights of one that never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models import densenet
from service.models.configuration import DenseNetConfig
from training.augment import Crop, normalise, random_crops, resize
from training.data import Images
from training.ema import Average
from training.recipe import Recipe
from training.team import Team

ALONE = Team()


@dataclass(frozen=True)
class Progress:
    """After a step: how many are done, of how many, this epoch's number, and the step's loss."""

    step: int
    steps: int
    epoch: int
    side: int
    loss: Tensor
    learning_rate: float


class Trainer:
    """A network, its optimiser and its average, ``step`` steps into a recipe."""

    def __init__(self, network: DenseNetConfig, recipe: Recipe, images: Images, team: Team = ALONE) -> None:
        if recipe.batch_size % team.size:
            raise ValueError(f"a batch of {recipe.batch_size} cannot be shared among {team.size} processes")
        self.recipe = recipe
        self.team = team
        self._images = images
        self._device = images.pixels.device
        torch.manual_seed(recipe.seed)
        self.network = densenet.build(network).to(self._device, memory_format=torch.channels_last)
        self.average = Average(self.network, recipe.ema_decay)
        self._optimizer = _optimizer(self.network, recipe)
        self.step = 0
        self.steps_per_epoch = len(images) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to; equal to the number of epochs at the end."""
        return self.step // self.steps_per_epoch

    def run_epoch(self) -> Iterator[Progress]:
        """What is left of the current epoch, one step at a time."""
        self.network.train()
        stage, epoch = self.recipe.stage(self.epoch), self.epoch
        order = torch.randperm(len(self._images), generator=self._generator(epoch, "cpu")).to(self._device)
        first = self.step % self.steps_per_epoch
        for number in range(first, self.steps_per_epoch):
            rows = order[number * self.recipe.batch_size : (number + 1) * self.recipe.batch_size]
            rows = rows[self.team.rank :: self.team.size]
            rate = self.recipe.learning_rate(self.step / self.steps)
            pixels = random_crops(
                self._images.pixels[rows],
                stage.side,
                Crop(area=(stage.area, 1.0)),
                self._generator(1_000_000 + self.step * self.team.size + self.team.rank, self._device),
            )
            loss = self._take_step(normalise(pixels), self._images.targets[rows], rate)
            yield Progress(self.step, self.steps, epoch, stage.side, loss, rate)

    def _take_step(self, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self._device.type, torch.bfloat16):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.team.average_gradients(self.network.parameters())
        self._optimizer.step()
        self.average.update(self.network, self.step)
        self.step += 1
        return loss.detach()

    def _generator(self, purpose: int, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.recipe.seed * 1_000_000_007 + purpose)

    def save(self, file: Path) -> None:
        """Everything that `restore` wants; the file is whole at every moment."""
        partial = file.with_suffix(".partial")
        torch.save({"recipe": asdict(self.recipe), **self._state()}, partial)
        os.replace(partial, file)

    def restore(self, file: Path) -> None:
        """Go on where `save` was called. Raises `ValueError` if that was under another recipe."""
        saved = torch.load(file, map_location=self._device, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise ValueError(f"{file} belongs to another recipe; choose another --out or remove it")
        self.network.load_state_dict(saved["network"])
        self.average.network.load_state_dict(saved["average"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
        }


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum; norms and biases do not decay."""
    decaying = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decaying, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.peak_learning_rate, momentum=recipe.momentum, nesterov=True)


@torch.no_grad()
def accuracy(
    network: nn.Module, images: Images, side: int, *, top: int = 5, batch_size: int = 250
) -> tuple[float, float]:
    """Top-1 and top-``top`` in percent, of images as the service looks at them, at ``side`` pixels."""
    network.eval()
    hits = torch.zeros(2, device=images.pixels.device)
    for first in range(0, len(images), batch_size):
        inputs = normalise(resize(images.pixels[first : first + batch_size], side))
        with torch.autocast(inputs.device.type, torch.bfloat16):
            logits = network(inputs.contiguous(memory_format=torch.channels_last))
        right = logits.topk(top).indices == images.targets[first : first + batch_size, None]
        hits += torch.stack([right[:, 0].sum(), right.sum()])
    first_right, among_top = (100 * hits / len(images)).tolist()
    return first_right, among_top
