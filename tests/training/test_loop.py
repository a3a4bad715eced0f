from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from service.models import densenet
from tests.training.conftest import NETWORK, RECIPE
from training.data import Images
from training.ema import Average
from training.loop import Trainer, accuracy


def _finish(trainer: Trainer) -> dict[str, torch.Tensor]:
    while trainer.step < trainer.steps:
        for _ in trainer.run_epoch():
            pass
    return trainer.average.network.state_dict()


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_resumed_in_mid_epoch_ends_like_one_that_never_stopped(images: Images, tmp_path: Path) -> None:
    whole = _finish(Trainer(NETWORK, RECIPE, images))
    stopped = Trainer(NETWORK, RECIPE, images)
    for _ in stopped.run_epoch():
        pass
    list(islice(stopped.run_epoch(), 2))
    assert stopped.step == 6
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = Trainer(NETWORK, RECIPE, images)
    resumed.restore(tmp_path / "checkpoint.pt")
    assert resumed.step == 6
    assert _same(whole, _finish(resumed))


def test_the_seed_decides_the_weights(images: Images) -> None:
    first, second = (_finish(Trainer(NETWORK, RECIPE, images)) for _ in range(2))
    other = _finish(Trainer(NETWORK, replace(RECIPE, seed=1), images))
    assert _same(first, second)
    assert not _same(first, other)


def test_a_checkpoint_of_another_recipe_is_refused(images: Images, tmp_path: Path) -> None:
    Trainer(NETWORK, RECIPE, images).save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="another recipe"):
        Trainer(NETWORK, replace(RECIPE, momentum=0.5), images).restore(tmp_path / "checkpoint.pt")


def test_it_learns(images: Images) -> None:
    stages = (replace(RECIPE.stages[0], epochs=15),)
    trainer = Trainer(NETWORK, replace(RECIPE, stages=stages, ema_decay=0.9), images)
    _finish(trainer)
    top1, _ = accuracy(trainer.average.network, images, 16, top=2)
    assert top1 > 90


def test_the_sizes_and_rates_of_the_recipe_are_used(images: Images) -> None:
    trainer = Trainer(NETWORK, RECIPE, images)
    seen = [(p.side, p.learning_rate) for _ in range(3) for p in trainer.run_epoch()]
    assert [side for side, _ in seen] == [16] * 8 + [24] * 4
    assert [rate for _, rate in seen] == [RECIPE.learning_rate(step / 12) for step in range(12)]


def test_the_learning_rate_rises_to_its_peak_and_ends_at_zero() -> None:
    rates = [RECIPE.learning_rate(step / 1000) for step in range(1001)]
    peak = rates.index(max(rates))
    assert peak == round(1000 * RECIPE.warm_up)
    assert rates[peak] == pytest.approx(RECIPE.peak_learning_rate)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0)


def test_the_average_follows_weights_and_statistics_and_leaves_the_counter() -> None:
    torch.manual_seed(0)
    trained = densenet.build(NETWORK)
    average = Average(trained, decay=0.9)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            tensor.add_(1)
    average.update(trained, step=10_000)
    for name, tensor in average.network.state_dict().items():
        moved = 0.1 if tensor.is_floating_point() else 0
        torch.testing.assert_close(tensor, before[name] + moved, msg=name)
    assert not average.network.training
