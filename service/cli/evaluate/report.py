"""The report of an evaluation: a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.classifier import Identity
from service.cli import tables
from service.cli.evaluate.calibrate import Calibration
from service.cli.evaluate.score import BINS, Score

#: Decimal places of the figures, as many as the published ones have.
_DIGITS = 3


@dataclass(frozen=True)
class LeftOut:
    """The number of the data set's classes that the model does not know, ``of`` all its classes, and their images."""

    classes: int
    of: int
    images: int


@dataclass(frozen=True)
class Evaluation:
    """The results of one model on one data set. ``errors`` are the images that could not be judged, with the reason."""

    identity: Identity
    score: Score
    errors: list[tuple[Path, str]]
    left_out: LeftOut
    seconds: float
    calibration: Calibration | str | None = None
    """The calibration, or the sentence that says why there is none; None without ``--calibrate``."""


def show(evaluations: Sequence[Evaluation], form: tables.Form, confusions: int) -> None:
    """Prints the figures, and in a table and in JSON the most frequent ``confusions`` as well."""
    if form == "json":
        tables.show([_document(evaluation, confusions) for evaluation in evaluations], form)
    elif form == "csv":
        tables.show([_figures(evaluation) for evaluation in evaluations], form)
    else:
        published = any(evaluation.identity.top1 is not None for evaluation in evaluations)
        tables.show([row for evaluation in evaluations for row in _lines(evaluation, published)], form)
        for evaluation in evaluations:
            if worst := _worst(evaluation, confusions):
                title = f"What {evaluation.identity.model} mistakes most often"
                tables.show([_confusion_line(entry) for entry in worst], form, title=title)


def remarks(evaluation: Evaluation) -> Iterator[str]:
    """Yields the sentences that a reader needs to understand the figures."""
    score, left_out = evaluation.score, evaluation.left_out
    rate = score.images / evaluation.seconds if evaluation.seconds else 0.0
    yield f"{evaluation.identity.model}: {score.images:,} images in {evaluation.seconds:.1f} s, {rate:,.1f} a second"
    if left_out.classes:
        yield (
            f"left out: {left_out.classes:,} of {left_out.of:,} classes ({left_out.images:,} images), "
            "which the model does not know"
        )
    if evaluation.errors:
        yield f"not counted: {len(evaluation.errors):,} images that could not be judged, named above"
    if isinstance(found := evaluation.calibration, str):
        yield f"no checkpoint was written: {found}"
    elif found:
        yield (
            f"temperature {found.temperature:.3f}: a calibration error of {found.ece_after:.2f} % in place of "
            f"{found.ece_before:.2f} %, on the half of the images that had no part in the fit"
        )


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of one evaluation as a flat row, in percent; None for a published figure that does not exist."""
    identity, score = evaluation.identity, evaluation.score
    figures: dict[str, Any] = {
        "model": identity.model,
        "weights": identity.weights,
        "images": score.images,
        "errors": len(evaluation.errors),
        "left_out_classes": evaluation.left_out.classes,
        "left_out_images": evaluation.left_out.images,
    }
    for name, own, published in _pairs(evaluation):
        figures[name] = round(own, _DIGITS)
        figures[f"{name}_error"] = round(100 - own, _DIGITS)
        figures[f"{name}_uncertainty"] = round(score.uncertainty(own), _DIGITS)
        figures[f"published_{name}"] = published
        figures[f"published_{name}_error"] = None if published is None else round(100 - published, _DIGITS)
    figures["calibration_error"] = round(score.reliability.error, _DIGITS)
    figures["mean_probability"] = round(score.reliability.confidence, _DIGITS)
    figures["seconds"] = round(evaluation.seconds, 3)
    return figures


def _document(evaluation: Evaluation, confusions: int) -> dict[str, Any]:
    unusable = [{"file": str(path), "error": reason} for path, reason in evaluation.errors]
    document = {**_figures(evaluation), "errors": unusable, "confusions": _worst(evaluation, confusions)}
    if isinstance(evaluation.calibration, Calibration):
        document["calibration"] = asdict(evaluation.calibration)
    return document


def _pairs(evaluation: Evaluation) -> list[tuple[str, float, float | None]]:
    """Rows (figure, measured value, published value or None), in percent."""
    identity, score = evaluation.identity, evaluation.score
    return [("top1", score.top1, identity.top1), ("top5", score.top5, identity.top5)]


def _lines(evaluation: Evaluation, published: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows of the table: one a figure, with the accuracy and, as on torch hub's page, the error."""
    identity, score = evaluation.identity, evaluation.score
    for name, own, theirs in _pairs(evaluation):
        first = name == "top1"
        line = {
            "model": f"{identity.model} ({identity.weights})" if first else "",
            "images": f"{score.images:,}" if first else "",
            "": name.replace("top", "top-"),
            "accuracy %": f"{own:6.2f} ± {score.uncertainty(own):.2f}",
            "error %": f"{100 - own:6.2f}",
        }
        if published:
            line["published accuracy"] = _percent(theirs)
            line["published error"] = _percent(None if theirs is None else 100 - theirs)
        yield line
    calibration = {"": f"calibration ({BINS} bins)", "error %": f"{score.reliability.error:6.2f}"}
    yield {**dict.fromkeys(line, ""), **calibration}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:6.2f}"


def _worst(evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The most frequent confusions; ties stand in the order of the classes."""
    classes = {entry.class_id: entry for entry in evaluation.identity.classes}
    ordered = sorted(evaluation.score.confusions.items(), key=lambda entry: (-entry[1], entry[0]))
    return [
        {
            "class_id": truth,
            "label": classes[truth].label,
            "predicted_class_id": predicted,
            "predicted_label": classes[predicted].label,
            "images": images,
        }
        for (truth, predicted), images in ordered[:count]
    ]


def _confusion_line(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "true class": f"{entry['label']} ({entry['class_id']})",
        "taken for": f"{entry['predicted_label']} ({entry['predicted_class_id']})",
        "images": entry["images"],
    }
