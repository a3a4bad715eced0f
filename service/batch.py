"""Offline classification of many images: a class for `ray.data.Dataset.map_batches`, or any loop over batches of rows.

    import ray
    from service.batch import Classifier

    (ray.data.read_binary_files("s3://…", include_paths=True)
        .map_batches(Classifier, fn_constructor_kwargs={"model": "densenet121"}, batch_size=64,
                     concurrency=4, num_gpus=1)
        .write_parquet("…"))

Ray does object storage, retries and many machines. The model, the preprocessing and the labels are those of
`imagenet-serve classify`. This module does not import Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.classifier import Classification, Image
from service.classifier.local import LocalClassifier
from service.errors import ConfigurationError
from service.settings import load

#: The columns that may hold the image: encoded bytes, or else a path that this machine can read.
_BYTES, _PATH = "bytes", "path"
#: Images in a forward pass on a CPU, unless ``max_batch_size`` is given; larger batches gain nothing there.
_BATCH = 8


class Classifier:
    """A model that is loaded once and then called with batches of rows.

    The arguments are settings of the service (``model``, ``weights``, ``top_k``, ``device``, …). ``device=auto`` takes
    the GPU that Ray gives to the actor (``num_gpus``), or else the CPU. Raises `StartError` if the model cannot be
    loaded.
    """

    def __init__(self, **settings: Any) -> None:
        loaded = load(**settings)
        if loaded.max_batch_size == "auto" and loaded.device == "cpu":
            loaded = loaded.model_copy(update={"max_batch_size": _BATCH})
        self._classifier = LocalClassifier(loaded)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Classifies N rows and returns columns of N rows, in the same order.

        ``batch`` has a column ``bytes`` (encoded images) or ``path`` (files). All columns but ``bytes`` are passed on.
        The added ones are ``class_ids``, ``labels`` and ``probabilities``, lists of the best classes, best first, and
        ``error``, which is "" for a classified row. A row whose image is damaged or missing has empty lists and its
        error, and does not affect the others. Raises `ConfigurationError` if there is neither column.
        """
        results = list(self._classifier.classify(_images(batch)))
        kept = {name: column for name, column in batch.items() if name != _BYTES}
        return {**kept, **_columns(results)}


def _images(batch: Mapping[str, Any]) -> Iterator[Image]:
    if _BYTES in batch:
        return (bytes(value) for value in batch[_BYTES])
    if _PATH in batch:
        return (Path(value) for value in batch[_PATH])
    raise ConfigurationError(
        f"the rows have neither a column {_BYTES!r} nor {_PATH!r}; they have {', '.join(batch) or 'none'}"
    )


def _columns(results: list[Classification]) -> dict[str, Any]:
    def lists(key: str) -> Any:
        column = np.empty(len(results), dtype=object)
        for row, seen in enumerate(results):
            column[row] = [prediction[key] for prediction in seen.predictions]
        return column

    return {
        "class_ids": lists("class_id"),
        "labels": lists("label"),
        "probabilities": lists("probability"),
        "error": np.array([seen.error for seen in results], dtype=object),
    }
