"""Trains the demo model: ``python -m training.train --data ZIP --out DIR``.

Started again with the same arguments, it resumes from ``DIR/checkpoint.pt``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from service.cli.evaluate.temperature import fitted
from service.models.checkpoints import resolve
from training import data, teacher
from training.budget import Budget
from training.export import export
from training.loop import Progress, Trainer, accuracy, answers
from training.recipe import NETWORK, REFINING, Recipe
from training.statistics import renewed
from training.team import Team

#: Steps between two checkpoints: the most that a kill costs.
CHECKPOINT_STEPS = 300
#: Steps between two log lines without a terminal.
LOG_STEPS = 100

#: The file in OUT through which the processes of a team meet.
MEETING = "meeting"

log = logging.getLogger("training")


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data.load(arguments.data, "train", data.class_order(arguments.data), arguments.cache)
    if arguments.teacher:
        _taught(arguments)  # made here, as the images are, before several processes need them
    if arguments.workers == 1:
        run(0, arguments)
        return
    (arguments.out / MEETING).unlink(missing_ok=True)
    spawn(run, (arguments,), nprocs=arguments.workers)


def _taught(arguments: argparse.Namespace) -> Tensor:
    """Returns the teacher's logits for the images that are trained on."""
    classes = data.class_order(arguments.data)
    images = data.load(arguments.data, "train", classes, arguments.cache)
    return teacher.answers(images, len(classes), arguments.cache)[~data.is_held_out(len(images))]


def run(rank: int, arguments: argparse.Namespace) -> None:
    """Runs process number ``rank`` of ``arguments.workers``, from the first step or the last checkpoint."""
    team = Team(rank, arguments.workers)
    if team.size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // team.size))
        team.join(arguments.out / MEETING)
    logging.basicConfig(
        level=logging.INFO if team.leads else logging.WARNING, format="%(asctime)s %(message)s"
    )
    classes = data.class_order(arguments.data)
    images = data.load(arguments.data, "train", classes, arguments.cache).to(torch.device(arguments.device))
    network = replace(NETWORK, num_classes=len(classes))
    start = resolve(str(arguments.start), "densenet121").state_dict if arguments.start else None
    recipe = replace(REFINING if arguments.start else Recipe(), seed=arguments.seed)
    budget = Budget(60 * arguments.minutes) if arguments.minutes else None
    trainer = Trainer(
        network,
        recipe,
        images.part(held_out=False),
        team,
        start=start,
        budget=budget,
        precision=getattr(torch, arguments.precision),
        taught=_taught(arguments) if arguments.teacher else None,
    )
    for judged, temperature, note in train(trainer, images.part(held_out=True), arguments.out):
        notes = {"data": "Tiny-ImageNet-200", "temperature": round(temperature, 4), **note}
        export(arguments.out / "demo", network, judged.state_dict(), classes, notes, temperature=temperature)
    team.leave()


def train(
    trainer: Trainer, held_out: data.Images, out: Path
) -> Iterator[tuple[nn.Module, float, dict[str, float]]]:
    """Runs the recipe to its end, from ``out/checkpoint.pt`` if it exists, and yields results after every epoch.

    A result is: the average with its statistics from whole images; the temperature that calibrates its
    probabilities; and its accuracy at the epoch's size with the epoch's seconds (after a resumption, the seconds
    since). Temperature and accuracy are measured on ``held_out``, which is never trained on. ``out/history.jsonl``
    keeps the figures. Only the leading process yields results.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(checkpoint)
        log.info("resumed after %d steps, %.1f %% of the whole", trainer.step, 100 * trainer.progress)
    while not trainer.done:
        if not trainer.team.leads:
            deque(trainer.run_epoch(), maxlen=0)
            continue
        stage, started = trainer.recipe.stage(trainer.progress), time.monotonic()
        side = stage.tried or stage.side
        for progress in shown(trainer.run_epoch()):
            if progress.step % CHECKPOINT_STEPS == 0:
                trainer.save(checkpoint)
        trainer.save(checkpoint)
        seconds = time.monotonic() - started
        judged = renewed(trainer.average.network, trainer.images, side)
        logits = answers(judged, held_out, side, precision=trainer.precision)
        top1, top5 = accuracy(logits, held_out.targets)
        epochs = round(trainer.step / trainer.steps_per_epoch, 2)
        note = {"epochs": epochs, "side": side, "top1": round(top1, 2), "top5": round(top5, 2)}
        note["seconds"] = round(seconds, 1)
        log.info("epoch %s", json.dumps(note))
        with (out / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(note) + "\n")
        yield judged, fitted(logits.cpu().numpy(), held_out.targets.cpu().numpy()), note


def shown(steps: Iterable[Progress]) -> Iterator[Progress]:
    """Yields the steps and shows them: as a bar on a terminal, otherwise as a log line now and then."""
    return _with_bar(steps) if sys.stderr.isatty() else _with_lines(steps)


def _with_bar(steps: Iterable[Progress]) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns) as bar:
        task = bar.add_task("training", total=1.0)
        for progress in steps:
            text = f"epoch {progress.epoch + 1} at {progress.side} px, loss {progress.loss.item():.3f}"
            bar.update(task, completed=progress.share, description=text)
            yield progress


def _with_lines(steps: Iterable[Progress]) -> Iterator[Progress]:
    started, first = time.monotonic(), None
    for progress in steps:
        first = progress.step - 1 if first is None else first
        if progress.step % LOG_STEPS == 0:
            pace = (progress.step - first) / (time.monotonic() - started)
            log.info(
                "step %d (%.1f %%) epoch %d at %d px: loss %.3f, learning rate %.4f, %.2f steps/s",
                progress.step,
                100 * progress.share,
                progress.epoch + 1,
                progress.side,
                progress.loss.item(),
                progress.learning_rate,
                pace,
            )
        yield progress


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="tiny-imagenet-200.zip")
    parser.add_argument(
        "--out", type=Path, required=True, help="checkpoint, history and exported model go here"
    )
    parser.add_argument("--cache", type=Path, help="decoded images, 1.4 GB (default: OUT/cache)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, help="a checkpoint directory whose weights are refined")
    parser.add_argument("--minutes", type=float, help="end after so long, whatever was done by then")
    parser.add_argument("--teacher", action="store_true", help="learn from EfficientNet-Lite's answers too")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share every batch; on a CPU, one a core"
    )
    arguments = parser.parse_args()
    arguments.cache = arguments.cache or arguments.out / "cache"
    return arguments


if __name__ == "__main__":
    main()
