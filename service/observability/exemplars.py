"""Exemplars: for each bucket of a histogram, the trace that it last counted."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Exemplars:
    """The last sampled request of each bucket of the duration histograms.

    prometheus_client's multi-process files have no room for exemplars. So each front-end keeps its own, and a scrape
    shows those of the front-end that answers it, beside the counts of the whole service. Only the OpenMetrics format,
    which Prometheus asks for, has exemplars; the text format has none.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds`` are the upper bounds of the histograms' buckets in seconds, ascending, without infinity."""
        self._bounds = bounds
        self._kept: dict[tuple[str, str, float], tuple[Mapping[str, str], float, float]] = {}

    def record(self, name: str, value: str, seconds: float, names: Mapping[str, str]) -> None:
        """Keeps an observation of ``seconds`` of the histogram ``name``, whose one label has this ``value``.

        ``names`` are the exemplar's own labels: trace_id and span_id.
        """
        position = bisect_left(self._bounds, seconds)
        bound = self._bounds[position] if position < len(self._bounds) else float("inf")
        self._kept[name, value, bound] = (names, seconds, time.time())

    def with_exemplars(self, metrics: Iterator[Metric] | Any) -> Iterator[Metric]:
        """Yields the metrics, with the exemplars added to their buckets."""
        for metric in metrics:
            for position, sample in enumerate(metric.samples):
                if not sample.name.endswith("_bucket"):
                    continue
                others = [value for name, value in sample.labels.items() if name != "le"]
                key = (metric.name, "".join(others), float(sample.labels["le"]))
                if key in self._kept:
                    metric.samples[position] = _with_exemplar(sample, *self._kept[key])
            yield metric


def _with_exemplar(sample: Any, names: Mapping[str, str], value: float, when: float) -> Any:
    from prometheus_client.samples import Exemplar

    return sample._replace(exemplar=Exemplar(dict(names), value, when))
