"""`imagenet-serve evaluate`: its flags. `run` is the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.flags import (
    FILE,
    MODEL_SETTINGS,
    checked,
    concurrency_flag,
    form_flag,
    from_flags,
    key_flag,
    overwrite_flag,
    refuse_model_flags,
    settings_flags,
    url_flag,
)
from service.cli.progress import may_write

if TYPE_CHECKING:
    from service.cli import tables


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--ground-truth", type=FILE, help="The file with the classes of photos that lie in FOLDER itself."
)
@click.option(
    "--class-list",
    type=FILE,
    help="The development kit's map_clsloc.txt or meta.mat, for its ground truth. [default: the one beside it]",
)
@click.option("--limit", type=click.IntRange(1), help="Take only so many images, evenly spread over all.")
@click.option(
    "--confusions",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="The number of most frequent confusions to list.",
)
@click.option(
    "--all", "every", is_flag=True, help="Evaluate the twelve pretrained variants, one after the other."
)
@url_flag
@key_flag
@concurrency_flag
@click.option(
    "--calibrate",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path, file_okay=False),
    help="Fit a temperature on these photos and write a checkpoint with it; serve it with --weights DIRECTORY.",
)
@overwrite_flag
@settings_flags([*MODEL_SETTINGS, "max_batch_size"], server=False)
@form_flag
def evaluate(
    folder: Path,
    ground_truth: Path | None,
    class_list: Path | None,
    limit: int | None,
    confusions: int,
    every: bool,
    url: str | None,
    api_key: str | None,
    concurrency: int,
    calibrate: Path | None,
    overwrite: bool,
    form: tables.Form,
    **given: Any,
) -> None:
    """Measure top-1 and top-5 accuracy on labelled photos, and compare them with the published figures.

    The calibration error is the difference between the model's probabilities and its share of right answers.
    --calibrate reduces it. Fit it on photos that were not used for training, and judge the model by other photos.

    FOLDER has one sub-folder for each class, named by WordNet id, label or class_id. Or it is ImageNet's flat
    validation set; its ground truth then lies in FOLDER or beside it, or --ground-truth names it. Photos of classes
    that the model does not know are left out. The exit code is 1 if an image could not be judged.
    """
    from service.cli.evaluate import run

    if url:
        refuse_model_flags(given, *(["--all"] if every else []))
    if every and (given["model"] or given["weights"]):
        raise click.UsageError("--all takes the twelve pretrained variants; leave out --model and --weights")
    if calibrate and (url or every):
        raise click.UsageError("--calibrate is for one model in this process; leave out --url and --all")
    if calibrate:
        may_write(calibrate, overwrite=overwrite)
    task = run.EvaluationOptions(folder, ground_truth, class_list, limit, confusions, form, calibrate)
    if url:
        sys.exit(run.over_http(task, url, api_key, concurrency))
    settings = checked(from_flags(given))
    sys.exit(run.in_process(task, run.all_variants(settings) if every else [settings]))
