from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.training.conftest import NETWORK, RECIPE
from training.data import Images
from training.loop import Trainer
from training.team import Team


def _three_steps(rank: int, images: Images, folder: Path) -> None:
    torch.set_num_threads(1)
    team = Team(rank, 2)
    team.join(folder / "meeting")
    trainer = Trainer(NETWORK, RECIPE, images, team)
    for _, _ in zip(range(3), trainer.run_epoch(), strict=False):
        pass
    torch.save(dict(trainer.network.named_parameters()), folder / f"{rank}.pt")
    team.leave()


@pytest.mark.slow
def test_processes_that_see_different_images_keep_the_same_weights(images: Images, tmp_path: Path) -> None:
    spawn(_three_steps, (images, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    untrained = dict(Trainer(NETWORK, RECIPE, images).network.named_parameters())
    assert not any(torch.equal(first[name], untrained[name]) for name in first if "conv" in name)


def test_a_batch_that_does_not_divide_is_refused(images: Images) -> None:
    with pytest.raises(ValueError, match="8 cannot be shared among 3"):
        Trainer(NETWORK, RECIPE, images, Team(0, 3))
