"""Notes of a converted model's measured times on this kind of processor, so that the next start need not measure.

    machines/<digest>/plan.json                    times of each executor, the faster graph, number of measurements
    machines/<digest>/<executor>.<sha256>.blob     the model as OpenVINO compiled it for this processor, which loads in
                                                   half the time; ignored unless its hash is that of its name

The digest is over everything that the figures depend on and that the artifact does not fix: the processor's model and
extensions, the number of cores, the versions of OpenVINO and ONNX Runtime, this project's code, the precision, and
the requested largest batch. So nodes of several kinds may share one volume. For an artifact outside the cache, which
may be read-only, new notes lie in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from service.host import machine as host
from service.models import cache
from service.models.runtimes import manifest

log = logging.getLogger(__name__)

_FOLDER, _PLAN = "machines", "plan.json"
#: Hex digits of the hash in a file's name.
_DIGITS = 16


@dataclass(frozen=True)
class Measured:
    """Seconds of a pass, by executor and number of images: the least of ``rounds`` measurements."""

    times: Mapping[str, Mapping[int, float]]
    rounds: int = 1
    graph: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measured:
        """Reads what `to_json` wrote. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        times = {
            str(way): {int(images): float(took) for images, took in sizes.items()}
            for way, sizes in document["times"].items()
        }
        if not all(sizes and min(sizes) > 0 and min(sizes.values()) > 0 for sizes in times.values()):
            raise ValueError("a time that is not positive")
        return cls(times, int(document["rounds"]), str(document["graph"]))

    def merged(self, other: Measured) -> Measured:
        """Returns the least of both measurements, since every disturbance makes one longer."""
        times = {way: dict(sizes) for way, sizes in self.times.items()}
        for way, sizes in other.times.items():
            mine = times.setdefault(way, {})
            for images, took in sizes.items():
                mine[images] = min(took, mine.get(images, took))
        return Measured(times, self.rounds + other.rounds, other.graph or self.graph)


@dataclass
class Notes:
    """Notes on one artifact, one processor and one set of options. Without ``folders`` nothing is kept.

    ``folders`` are searched in order; new notes go into the last one.
    """

    folders: tuple[Path, ...] = ()
    graph: str = field(default="", init=False)
    """The graph of the artifact that these notes are about."""

    def read(self) -> Measured | None:
        """Returns the measurements; None if there are none, or none that are valid."""
        for folder in self.folders:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                return Measured.from_json(json.loads((folder / _PLAN).read_text("utf-8")))
        return None

    def write(self, measured: Measured) -> None:
        """Replaces earlier measurements. If the folder cannot be written, the next start measures again."""
        if self.folders:
            try:
                cache.write(self.folders[-1] / _PLAN, measured.to_json())
            except OSError as error:
                log.warning("measured times are not kept, so every start measures again: %s", error)

    def blob(self, way: str) -> Path | None:
        """Returns the file with an executor's compiled model; None if there is none or it is damaged."""
        for path in self._blobs(way):
            with contextlib.suppress(OSError):
                if cache.file_sha256(path).startswith(path.name.split(".")[1]):
                    return path
                log.warning("the compiled model %s is damaged and is made again", path.name)
        return None

    def _blobs(self, way: str) -> list[Path]:
        return [path for folder in self.folders for path in sorted(folder.glob(f"{way}.*.blob"))]

    def keep(self, way: str, compiled: bytes) -> Path | None:
        """Writes the compiled model of an executor; returns None if that is impossible."""
        if not self.folders:
            return None
        path = self.folders[-1] / f"{way}.{hashlib.sha256(compiled).hexdigest()[:_DIGITS]}.blob"
        try:
            for old in path.parent.glob(f"{way}.*.blob"):
                old.unlink()
            cache.write_bytes(path, compiled)
        except OSError as error:
            log.warning("the compiled model is not kept: %s", error)
            return None
        return path


def notes(directory: Path, cores: int, precision: str, largest: int | None) -> Notes:
    """Returns the notes on the artifact in ``directory``, for batches of up to ``largest`` images (None: auto)."""
    digest = cache.digest(
        {
            "processor": processor(),
            "cores": cores,
            "libraries": manifest.libraries("openvino", "onnxruntime"),
            "precision": precision,
            "largest": largest,
            "code": manifest.code_hash(),
        }
    )
    own = directory / _FOLDER / digest
    if directory.is_relative_to(cache.root()):
        return Notes((own,))
    about = cache.digest((directory / "about.json").read_text("utf-8"))
    return Notes((own, cache.root() / _FOLDER / about / digest))


def processor() -> dict[str, str]:
    """Returns what decides a model's speed beside the number of cores: model, extensions, and limits on their use."""
    return {
        "machine": platform.machine(),
        "model": host.cpu_model(),
        "flags": cache.digest(host.cpu_flags()),
        # Limits of OpenVINO and oneDNN on the extensions that they use.
        "limits": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    }
