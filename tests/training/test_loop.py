from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from service.models import densenet
from tests.training.conftest import NETWORK, RECIPE
from training.augment import normalise, resize
from training.budget import Budget
from training.data import Images
from training.ema import Average
from training.loop import Trainer, accuracy, answers
from training.recipe import Recipe
from training.statistics import renewed


def _finish(trainer: Trainer) -> dict[str, torch.Tensor]:
    while not trainer.done:
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
    top1, _ = accuracy(answers(trainer.average.network, images, 16), images.targets, top=2)
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


def _frozen(part: str) -> Recipe:
    """The recipe with ``part`` frozen in its first stage, two epochs of three."""
    return replace(RECIPE, stages=(replace(RECIPE.stages[0], frozen=part), RECIPE.stages[1]))


def _moved(before: dict[str, torch.Tensor], trainer: Trainer) -> set[str]:
    after = trainer.network.state_dict()
    return {name for name in before if not torch.equal(after[name], before[name])}


def test_what_is_frozen_stays_to_the_bit_with_its_statistics_until_its_stage_ends(images: Images) -> None:
    trainer = Trainer(NETWORK, _frozen("transition1"), images)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    frozen = {name for name in before if name.startswith(FRONT)}
    for _ in range(2):
        list(trainer.run_epoch())
        answers(trainer.average.network, images, 16)
    assert _moved(before, trainer) == set(before) - frozen
    list(trainer.run_epoch())
    assert _moved(before, trainer) == set(before)


FRONT = ("features.conv0", "features.norm0", "features.denseblock1", "features.transition1")


def test_frozen_parts_give_what_they_gave_in_the_network(images: Images) -> None:
    inputs = normalise(images.pixels[:4])
    found = {}
    for frozen in (None, "denseblock1", "norm5"):
        trainer = Trainer(NETWORK, RECIPE, images)
        trainer._enter(replace(RECIPE.stages[0], side=64, frozen=frozen))
        trainer.network.eval()
        with torch.no_grad():
            found[frozen] = trainer._logits(inputs)
    torch.testing.assert_close(found["denseblock1"], found[None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["norm5"], found[None], atol=1e-4, rtol=1e-4)


def test_a_run_with_a_frozen_part_resumes_like_any_other(images: Images, tmp_path: Path) -> None:
    recipe = _frozen("denseblock1")
    whole = _finish(Trainer(NETWORK, recipe, images))
    stopped = Trainer(NETWORK, recipe, images)
    list(islice(stopped.run_epoch(), 3))
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = Trainer(NETWORK, recipe, images)
    resumed.restore(tmp_path / "checkpoint.pt")
    assert _same(whole, _finish(resumed))


def test_a_start_is_where_the_run_begins(images: Images) -> None:
    torch.manual_seed(5)
    start = densenet.build(NETWORK).state_dict()
    assert _same(start, Trainer(NETWORK, RECIPE, images, start=start).network.state_dict())


def test_a_teachers_answers_are_learnt(images: Images) -> None:
    """It says the second class to everything, whatever the labels say."""
    taught = torch.tensor([[0.0, 50.0, 0.0]]).expand(len(images), 3)
    stages = (replace(RECIPE.stages[0], epochs=6),)
    recipe = replace(RECIPE, stages=stages, teacher_share=0.9, ema_decay=0.9)
    trainer = Trainer(NETWORK, recipe, images, taught=taught)
    _finish(trainer)
    assert (answers(trainer.average.network, images, 16).argmax(1) == 1).all()


def test_every_image_has_its_own_answer_of_the_teacher(images: Images) -> None:
    """A teacher that says what the labels say is as good as they are; with its rows turned, it is not."""
    taught = 50 * F.one_hot(images.targets, 3).float()
    stages = (replace(RECIPE.stages[0], epochs=15),)
    recipe = replace(RECIPE, stages=stages, teacher_share=1.0, ema_decay=0.9)
    found = {}
    for turn in (0, 1):
        trainer = Trainer(NETWORK, recipe, images, taught=taught.roll(turn, 0))
        _finish(trainer)
        found[turn], _ = accuracy(answers(trainer.average.network, images, 16), images.targets, top=2)
    assert found[0] > 90
    assert found[1] < 50


def test_a_budget_ends_the_run_on_time_and_slows_it_down_until_then(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trainer = Trainer(NETWORK, RECIPE, images, budget=Budget(10))
    rates, sides = [], []
    while not trainer.done:
        for progress in trainer.run_epoch():
            now += 1.0
            rates.append(progress.learning_rate)
            sides.append(progress.side)
    assert len(rates) == 11  # the clock is read after a step, and the one that it runs out in is finished
    assert rates[:2] == [RECIPE.learning_rate(0), RECIPE.learning_rate(0)]
    assert rates[2:] == [RECIPE.learning_rate(tenth / 10) for tenth in range(1, 10)]
    assert sides == [16] * 8 + [24] * 3


def test_a_budget_counts_the_sittings_and_not_the_nights_between(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    first = Trainer(NETWORK, RECIPE, images, budget=Budget(10))
    now = 4.0
    first.save(tmp_path / "checkpoint.pt")
    now = 50_000.0
    second = Trainer(NETWORK, RECIPE, images, budget=Budget(10))
    second.restore(tmp_path / "checkpoint.pt")
    assert second.progress == pytest.approx(0.4)
    now += 6.0
    assert second.budget is not None
    assert second.budget.progress == 1
    with pytest.raises(ValueError, match="more than 0"):
        Budget(0)


def test_renewed_statistics_are_those_of_whole_images_and_the_network_stays(images: Images) -> None:
    torch.manual_seed(0)
    network = densenet.build(NETWORK).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = renewed(network, images, 24)
    assert not any(module.training for module in found.modules())
    assert _same(before, network.state_dict())
    assert {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])} == {
        name for name in before if "running" in name or "tracked" in name
    }
    first = network.get_submodule("features.conv0")(normalise(resize(images.pixels, 24)))
    torch.testing.assert_close(found.state_dict()["features.norm0.running_mean"], first.mean((0, 2, 3)))
