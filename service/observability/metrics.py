"""The declarations of all metrics.

Counters and histograms live in prometheus_client's multi-process files, one set for each process, so that a scrape of
any front-end shows the whole service. The first import of prometheus_client chooses that mode, and `prepare` has to run
before it; therefore no import of it stands at the head of this module. `Snapshot` has the values that are read at the
moment of a scrape.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from service.errors import ConfigurationError
from service.host.leftovers import remove
from service.observability.counters import merge_dead, reading
from service.observability.snapshot import Snapshot
from service.shared.buckets import SIZES

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from prometheus_client.core import Metric

    from service.observability.exemplars import Exemplars

log = logging.getLogger(__name__)

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "imagenet-serve-metrics-"

#: Routes that probes and scrapers ask periodically; an error there is no user's. The alert rules of
#: k8s/overlays/monitoring exclude the same routes.
PROBES = re.compile(r"/(livez|readyz|healthz|metrics)|/v2/health/(live|ready)|/v2/models/.+/ready")

STAGES = ("receive", "decode", "queue", "inference", "respond")

#: The buckets of durations in seconds: from a stage below a millisecond to a request that waited for its deadline.
DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: The buckets of differences of probabilities: from another kernel's rounding to another answer.
DIFFERENCES = (1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
#: Bytes for the files of one process, which take 0.2 MiB when every route has answered with every status.
_ROOM = 1 << 20


def prepare(processes: int = 2) -> Path:
    """Makes the directory for the files and tells prometheus_client its path. The supervisor calls it first.

    ``processes`` is the number of processes that will count at the same time. Raises `ConfigurationError` if the disk
    is too full, since a write to a mapped file without a free block kills the process.
    """
    remove(_PREFIX)
    try:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        needed = _ROOM * (processes + 1)
        if (free := shutil.disk_usage(directory).free) < needed:
            directory.rmdir()
            raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free, and {needed >> 20} MiB are needed")
    except OSError as error:
        raise ConfigurationError(
            f"no room for the counters in {tempfile.gettempdir()}: {error.strerror}; make some there, or name "
            "another folder with TMPDIR"
        ) from error
    os.environ[_DIRECTORY] = str(directory)
    return directory


def clean_up(directory: Path) -> None:
    """Removes the directory that `prepare` made."""
    shutil.rmtree(directory, ignore_errors=True)


Family = TypeVar("Family", "Counter", "Histogram")


class Labelled(Generic[Family]):
    """A family of metrics that caches its children, since the library's own ``labels`` checks and locks every time."""

    def __init__(self, family: Family) -> None:
        self._family: Family = family
        self._children: dict[tuple[str, ...], Family] = {}

    def labels(self, *values: str) -> Family:
        """The child with these label values, made when it is first asked for."""
        try:
            return self._children[values]
        except KeyError:
            child: Family = self._family.labels(*values)
            self._children[values] = child
            return child


@dataclass(frozen=True)
class Metrics:
    """The counters and histograms of this process."""

    requests: Labelled[Counter]
    request_duration: Labelled[Histogram]
    stage_duration: Labelled[Histogram]
    batch_size: Histogram
    batch_duration: Labelled[Histogram]
    padding_rows: Counter
    resubmitted: Counter
    canary_checks: Counter
    canary_mismatch: Counter
    batches: Counter
    images: Counter
    rejected: Labelled[Counter]
    cancelled: Counter
    expired: Counter
    late_work: Counter
    nan_outputs: Counter
    decodes_killed: Labelled[Counter]
    shadow_images: Labelled[Counter]
    shadow_difference: Histogram
    shadow_inference: Histogram

    @classmethod
    def declare(cls) -> Metrics:
        """Declares the metrics. Call it once in each process, after `prepare` in the process or its parent."""
        from prometheus_client import CollectorRegistry, Counter, Histogram

        # This registry is never scraped: in multi-process mode the values are in the files.
        registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"imagenet_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = DURATIONS) -> Histogram:
            return Histogram(f"imagenet_{name}", text, registry=registry, buckets=buckets)

        def labelled_counter(name: str, text: str, *labels: str) -> Labelled[Counter]:
            return Labelled(Counter(f"imagenet_{name}", text, labels, registry=registry))

        def labelled_histogram(name: str, text: str, label: str) -> Labelled[Histogram]:
            return Labelled(
                Histogram(f"imagenet_{name}", text, (label,), registry=registry, buckets=DURATIONS)
            )

        metrics = cls(
            requests=labelled_counter("requests", "Requests answered.", "route", "status"),
            request_duration=labelled_histogram("request_duration_seconds", "First byte to last.", "route"),
            stage_duration=labelled_histogram(
                "stage_duration_seconds", "Where an image's time went.", "stage"
            ),
            batch_size=histogram("batch_size", "Images in a forward pass.", SIZES),
            batch_duration=labelled_histogram(
                "batch_duration_seconds", "From the start of a batch to its answers.", "bucket"
            ),
            padding_rows=counter("padding_rows", "Rows of batches that held no image."),
            resubmitted=counter("resubmitted", "Images that were given to another engine since theirs died."),
            canary_checks=counter(
                "canary_checks", "Answers to a known image that were compared with the right one."
            ),
            canary_mismatch=counter("canary_mismatch", "Wrong answers of the device to a known image."),
            batches=counter("batches", "Forward passes."),
            images=counter("images", "Images that went through the model."),
            rejected=labelled_counter("rejected", "Requests refused before any work, by reason.", "reason"),
            cancelled=counter("cancelled", "Images whose client went away before the model ran."),
            expired=counter("expired", "Requests answered 504."),
            late_work=counter("late_work", "Images that the model ran after their deadline; stays 0."),
            nan_outputs=counter("nan_outputs", "Images that the model answered with NaN or infinity."),
            shadow_images=labelled_counter(
                "shadow_images", "Images that the shadow was shown, by what came of it.", "outcome"
            ),
            shadow_difference=histogram(
                "shadow_probability_difference",
                "The largest difference of any class's probability between the two models.",
                DIFFERENCES,
            ),
            shadow_inference=histogram("shadow_inference_seconds", "What the shadow took for a batch."),
            decodes_killed=labelled_counter(
                "decodes_killed", "Decodes that were ended, by format and reason.", "format", "reason"
            ),
        )
        for stage in STAGES:
            metrics.stage_duration.labels(stage)
        return metrics


def forget(process: int) -> None:
    """Merges the counts of an ended process into the file of all ended ones."""
    directory = Path(os.environ[_DIRECTORY])
    try:
        merge_dead(directory, process)
    except FileNotFoundError:
        # A cleaner of temporary folders may cost the counts, but not the service: its next process needs the folder.
        log.error("the counters' folder %s was removed, and the counts in it are lost", directory)
        directory.mkdir(exist_ok=True)


class _WithExemplars:
    """The metrics of all processes with the exemplars of this one; a prometheus_client collector."""

    def __init__(self, collector: Any, exemplars: Exemplars) -> None:
        self._collector = collector
        self._exemplars = exemplars

    def collect(self) -> Iterable[Metric]:
        return self._exemplars.with_exemplars(self._collector.collect())


def exposition(snapshot: Snapshot, accept: str = "", exemplars: Exemplars | None = None) -> tuple[bytes, str]:
    """The metrics of the whole service and their content type, which is OpenMetrics if ``accept`` asks for it.

    Only OpenMetrics shows ``exemplars``.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector

    registry, everything = CollectorRegistry(), CollectorRegistry()
    collector = MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
    registry.register(collector if exemplars is None else _WithExemplars(collector, exemplars))
    registry.register(snapshot)
    encode, content_type = choose_encoder(accept)
    with reading(Path(os.environ[_DIRECTORY])):
        return encode(registry), content_type
