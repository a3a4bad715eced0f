"""Trains step by step, from a state that a file can hold.

Random numbers are derived and not stored: the order of an epoch from (seed, epoch), the crops of a batch from (seed,
step, process). So a run that is stopped and resumed ends with the weights of a run that never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models import densenet
from service.models.configuration import DenseNetConfig
from training.augment import Crop, normalise, random_crops, resize
from training.budget import Budget
from training.data import Images
from training.ema import Average
from training.forward_only import compiled, evaluated
from training.growth import grown
from training.recipe import Recipe, Stage
from training.team import Team

ALONE = Team()


@dataclass(frozen=True)
class Progress:
    """Progress after a step: steps done, share of the whole, number of the epoch, image side and loss."""

    step: int
    share: float
    epoch: int
    side: int
    loss: Tensor
    learning_rate: float


class Trainer:
    """A network, its optimiser and its average, ``step`` steps into a recipe.

    ``start`` are weights to begin with instead of random ones, also of a network with fewer layers in its last
    block. ``taught``, float ``[len(images), classes]``, are a teacher's logits for ``images``. With a ``budget``,
    progress goes by the clock, otherwise by the number of steps. ``precision`` is that of convolutions.
    """

    def __init__(
        self,
        network: DenseNetConfig,
        recipe: Recipe,
        images: Images,
        team: Team = ALONE,
        *,
        start: Mapping[str, Tensor] | None = None,
        budget: Budget | None = None,
        precision: torch.dtype = torch.bfloat16,
        taught: Tensor | None = None,
    ) -> None:
        if recipe.batch_size % team.size:
            raise ValueError(f"a batch of {recipe.batch_size} cannot be shared among {team.size} processes")
        self.recipe = recipe
        self.team = team
        self.precision = precision
        self.budget = budget
        self.images = images
        self._taught = None if taught is None else taught.to(images.pixels.device)
        self._device = images.pixels.device
        torch.manual_seed(recipe.seed)
        self.network = densenet.build(network)
        if start is not None:
            self.network.load_state_dict(grown(start, self.network.state_dict()))
        self.network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network, recipe.ema_decay)
        self._optimizer = _optimizer(self.network, recipe)
        self._stage: Stage | None = None
        self._frozen: Callable[[Tensor], Tensor] | None = None
        self.step = 0
        self.steps_per_epoch = len(images) // recipe.batch_size
        self.progress = 0.0

    def _measure_progress(self) -> None:
        share = (
            self.budget.progress if self.budget else self.step / (self.steps_per_epoch * self.recipe.epochs)
        )
        self.progress = self.team.agree(share)

    @property
    def done(self) -> bool:
        return self.progress >= 1

    @property
    def epoch(self) -> int:
        """Number of the pass over the data that the next step belongs to, from 0."""
        return self.step // self.steps_per_epoch

    def run_epoch(self) -> Iterator[Progress]:
        """Runs the rest of the current epoch, or of the budget, one step at a time."""
        self.network.train()
        self._stage = None  # an evaluation between two epochs may have changed the network's mode
        epoch = self.epoch
        order = torch.randperm(len(self.images), generator=self._generator(epoch, "cpu")).to(self._device)
        first = self.step % self.steps_per_epoch
        for number in range(first, self.steps_per_epoch):
            if self.done:
                return
            stage = self.recipe.stage(self.progress)
            self._enter(stage)
            rows = order[number * self.recipe.batch_size : (number + 1) * self.recipe.batch_size]
            rows = rows[self.team.rank :: self.team.size]
            rate = self.recipe.learning_rate(self.progress)
            crop = Crop(area=(stage.area, 1.0))
            inputs = normalise(random_crops(self.images.pixels[rows], stage.side, crop, self._chance()))
            loss = self._take_step(inputs, rows, rate)
            self._measure_progress()
            yield Progress(self.step, self.progress, epoch, stage.side, loss, rate)

    def _enter(self, stage: Stage) -> None:
        """Freezes the layers that ``stage`` names: they get no gradients, and their batch norms keep their
        statistics."""
        if stage == self._stage:
            return
        self._stage = stage
        front, back = self._parts(stage.frozen)
        front.eval().requires_grad_(False)
        back.train().requires_grad_(True)
        self._frozen = None
        if stage.frozen is not None:
            shape = (self.images.pixels.shape[1], stage.side, stage.side)
            self._frozen = compiled(front, shape) if self._device.type == "cpu" else evaluated(front)

    def _parts(self, frozen: str | None) -> tuple[nn.Sequential, nn.Sequential]:
        """Splits ``features`` behind the layer ``frozen``."""
        parts = list(self.network.features.named_children())
        end = [name for name, _ in parts].index(frozen) + 1 if frozen is not None else 0
        first, second = (nn.Sequential(*(part for _, part in some)) for some in (parts[:end], parts[end:]))
        return first, second

    def _logits(self, inputs: Tensor) -> Tensor:
        if self._stage is None or self._frozen is None:
            logits: Tensor = self.network(inputs.contiguous(memory_format=torch.channels_last))
            return logits
        _, back = self._parts(self._stage.frozen)
        features = self._frozen(inputs).contiguous(memory_format=torch.channels_last)
        return self.network.forward_head(F.relu(back(features), inplace=True))

    def _chance(self) -> torch.Generator:
        """Returns the generator of this step's crops, equal in every run."""
        return self._generator(1_000_000 + self.step * self.team.size + self.team.rank, self._device)

    def _take_step(self, inputs: Tensor, rows: Tensor, rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            logits = self._logits(inputs)
        loss = self._loss(logits.float(), rows)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.team.average_gradients(self.network.parameters())
        self._optimizer.step()
        self.average.update(self.network, self.step)
        self.step += 1
        return loss.detach()

    def _loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Returns the loss against the labels, mixed with that against the teacher's answers if there are any."""
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, self.images.targets[rows], label_smoothing=smoothing)
        if self._taught is None:
            return loss
        soft = F.cross_entropy(logits, (self._taught[rows] / self.recipe.teacher_temperature).softmax(1))
        return (1 - self.recipe.teacher_share) * loss + self.recipe.teacher_share * soft

    def _generator(self, purpose: int, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.recipe.seed * 1_000_000_007 + purpose)

    def save(self, file: Path) -> None:
        """Writes everything that `restore` needs. The file is complete at every moment."""
        partial = file.with_suffix(".partial")
        torch.save({"recipe": asdict(self.recipe), **self._state()}, partial)
        os.replace(partial, file)

    def restore(self, file: Path) -> None:
        """Continues where `save` was called. Raises `ValueError` for another recipe."""
        saved = torch.load(file, map_location=self._device, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise ValueError(f"{file} belongs to another recipe; choose another --out or remove it")
        self.network.load_state_dict(saved["network"])
        self.average.network.load_state_dict(saved["average"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        if self.budget:
            self.budget.resume(saved["spent"])
        self._measure_progress()

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "spent": self.budget.spent if self.budget else 0.0,
        }


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Returns SGD with Nesterov's momentum; norms and biases have no weight decay."""
    decaying = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decaying, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.peak_learning_rate, momentum=recipe.momentum, nesterov=True)


@torch.no_grad()
def answers(
    network: nn.Module,
    images: Images,
    side: int,
    *,
    batch_size: int = 250,
    precision: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Returns logits, float32 ``[N, classes]``, of whole images at ``side`` pixels."""
    network.eval()
    found = []
    for first in range(0, len(images), batch_size):
        inputs = normalise(resize(images.pixels[first : first + batch_size], side))
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            found.append(network(inputs.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(found)


def accuracy(logits: Tensor, targets: Tensor, *, top: int = 5) -> tuple[float, float]:
    """Returns top-1 and top-``top`` accuracy in percent."""
    right = logits.topk(top).indices == targets[:, None]
    hits = torch.stack([right[:, 0].sum(), right.sum()])
    first_right, among_top = (100 * hits / len(targets)).tolist()
    return first_right, among_top
