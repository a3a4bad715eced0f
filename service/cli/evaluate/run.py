"""`imagenet-serve evaluate`: top-1 and top-5 accuracy on labelled photos, beside the published figures.

dataset                   folder → photos with their classes' names
score                     (true class, ranked classes, probability) → figures
temperature, calibrate    (true class, logits) → a checkpoint with calibrated probabilities
report                    figures → table, JSON or CSV
this module               photos through a `Classifier`, with a progress bar
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.classifier import Classifier
from service.classifier.local import LocalClassifier
from service.classifier.remote import RemoteClassifier
from service.cli.bar import Bar
from service.cli.evaluate import calibrate, dataset, report
from service.cli.evaluate.calibrate import Calibration
from service.cli.evaluate.dataset import Names, Photo
from service.cli.evaluate.report import Evaluation, LeftOut
from service.cli.evaluate.score import TOP, Score
from service.cli.tables import Form
from service.errors import ConfigurationError
from service.models.catalog import VARIANTS
from service.settings import Settings


@dataclass(frozen=True)
class EvaluationOptions:
    """The photos of an evaluation, and the form of its report."""

    folder: Path
    ground_truth: Path | None = None
    class_list: Path | None = None
    limit: int | None = None
    confusions: int = 10
    form: Form = "table"
    calibrate: Path | None = None
    """The directory for a checkpoint with a temperature that is fitted on these photos."""


def over_http(task: EvaluationOptions, url: str, key: str | None, concurrency: int) -> int:
    """Evaluates the model of a running server. Returns the exit code."""
    photos = dataset.read(task.folder, task.ground_truth, task.class_list)
    with RemoteClassifier(url, key=key, top_k=TOP, concurrency=concurrency) as classifier:
        return _finish(task, [_evaluate(classifier, photos, task.limit)])


def in_process(task: EvaluationOptions, several: Iterable[Settings]) -> int:
    """Evaluates one model after the other, each in this process. Returns the exit code."""
    photos = dataset.read(task.folder, task.ground_truth, task.class_list)

    # A function, so that each model is freed before the next is loaded.
    def one(settings: Settings) -> Evaluation:
        checkpoint = calibrate.ready(settings) if task.calibrate else None
        classifier = LocalClassifier(
            settings.model_copy(update={"top_k": TOP}), warm=True, keep_logits=checkpoint is not None
        )
        evaluation = _evaluate(classifier, photos, task.limit)
        if checkpoint and task.calibrate and isinstance(evaluation.calibration, Calibration):
            calibrate.write(checkpoint, evaluation.calibration, task.calibrate)
            print(f"serve it with: --weights {task.calibrate}", file=sys.stderr)
        return evaluation

    return _finish(task, [one(settings) for settings in several])


def all_variants(settings: Settings) -> Iterator[Settings]:
    """Yields the settings of each of the twelve pretrained variants."""
    for name in VARIANTS:
        yield settings.model_copy(update={"model": name, "weights": "pretrained"})


def _finish(task: EvaluationOptions, evaluations: Sequence[Evaluation]) -> int:
    """Prints the results. Returns 1 if an image could not be judged or a temperature not be fitted, else 0."""
    report.show(evaluations, task.form, task.confusions)
    for evaluation in evaluations:
        for sentence in report.remarks(evaluation):
            print(sentence, file=sys.stderr)
    return int(any(entry.errors or isinstance(entry.calibration, str) for entry in evaluations))


def _evaluate(classifier: Classifier, photos: Sequence[Photo], limit: int | None) -> Evaluation:
    known, left_out = _split(photos, Names(classifier.identity.classes))
    if not known:
        raise ConfigurationError(
            f"the model {classifier.identity.model} knows none of the classes of this data set, such as "
            f"'{photos[0].answer}': they have to be called by WordNet id, label or class_id"
        )
    chosen = dataset.spread(known, limit)
    score, errors = Score(), []
    logits, columns = [], []
    column = {entry.class_id: number for number, entry in enumerate(classifier.identity.classes)}
    began = time.monotonic()
    with Bar(classifier.identity.model, len(chosen)) as bar:
        results = classifier.classify(photo.path for photo, _ in chosen)
        for (photo, truth), seen in zip(chosen, results, strict=True):
            if seen.error:
                errors.append((photo.path, seen.error))
                bar.print(f"{photo.path}: {seen.error}")
            else:
                named = [prediction["class_id"] for prediction in seen.predictions]
                score.add(truth, named, seen.predictions[0]["probability"])
                if seen.logits is not None:
                    logits.append(seen.logits)
                    columns.append(column[truth])
            bar.step(f"top-1 {score.top1:5.2f} %  top-5 {score.top5:5.2f} %")
    seconds = time.monotonic() - began
    calibration = _calibration(logits, columns) if logits else None
    return Evaluation(classifier.identity, score, errors, left_out, seconds, calibration)


def _calibration(logits: Sequence[NDArray[np.float32]], columns: Sequence[int]) -> Calibration | str:
    """The calibration, or the sentence that says why there is none, so that the figures are shown anyway."""
    try:
        return calibrate.calibrated(logits, columns)
    except ConfigurationError as error:
        return str(error)


def _split(photos: Sequence[Photo], names: Names) -> tuple[list[tuple[Photo, int]], LeftOut]:
    """The photos whose class the model knows, with its class_id, and the number of those that are left out."""
    found = {answer: names.find(answer) for answer in {photo.answer for photo in photos}}
    known = [(photo, class_id) for photo in photos if (class_id := found[photo.answer]) is not None]
    unknown = sum(class_id is None for class_id in found.values())
    return known, LeftOut(classes=unknown, of=len(found), images=len(photos) - len(known))
