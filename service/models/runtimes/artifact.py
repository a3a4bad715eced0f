"""A converted model on disk with everything that serving needs. The cache holds such artifacts; `quantize` makes
them.

about.json      see `service.models.runtimes.manifest`; "precision" is "fp32" or "int8", "check" the cost of int8,
                "card" the model card, "head" the layers behind the features and their places
model.xml       OpenVINO's graph: uint8 [N, H, W, C] → features [N, C', h, w], logits [N, classes]
winograd.xml    the same answers by Winograd's convolutions (winograd.py), if these may be faster
model.bin       the weights of both graphs, each once
head.bin        arrays of the head that are not in model.bin
canary-….bin    the network's answers to the canaries (canary.py), float32 [images, outputs]. The digest of these
                images is in the name, so answers to other images, of another version, are never compared with
machines/       measured times, for each kind of processor (machine.py)

Reading an artifact needs no torch.
"""

from __future__ import annotations

import logging
import mmap
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import ConfigurationError
from service.models import cache, canary
from service.models.canary import Logits
from service.models.gradients import Head
from service.models.head import from_json, to_json
from service.models.runtimes import manifest, merging
from service.observability.card import ModelCard

if TYPE_CHECKING:
    import openvino

    from service.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

KIND = manifest.OPENVINO
DIRECT, WINOGRAD = "model.xml", "winograd.xml"
_WEIGHTS, _HEAD = "model.bin", "head.bin"

#: Conversions that the cache keeps, the last used first: enough for a host that changes between a few models. A
#: VGG16's takes 0.7 GB of disk.
_KEPT = 4


class Graph:
    """One of an artifact's graphs, or a model in memory. ``nbytes`` is the size of its weights."""

    def __init__(self, path: Path | None, model: openvino.Model | None = None) -> None:
        self._path, self._model = path, model
        self._lock = threading.Lock()
        self._mapped: mmap.mmap | None = None
        self.nbytes = path.with_name(_WEIGHTS).stat().st_size if path else _weight_bytes(model)

    def model(self) -> openvino.Model:
        """Returns the model; its weights are pages of the file. Raises `ConfigurationError` if OpenVINO cannot read
        it."""
        with self._lock:
            self._model = self._model or self._read()
            return self._model

    def _read(self) -> openvino.Model:
        from service.models.openvino_import import openvino

        assert self._path is not None
        # Mapped once and kept: models compiled from it go on reading there, and OpenVINO does not keep it alive.
        self._mapped = self._mapped or mapped(self._path.with_name(_WEIGHTS))
        weights = openvino.Tensor(np.frombuffer(self._mapped, np.uint8), shared_memory=True)
        try:
            return openvino.Core().read_model(self._path.read_bytes(), weights)
        except RuntimeError as error:
            raise manifest.unreadable(KIND, self._path.parent, error) from error

    def let_go(self) -> None:
        """Releases the model and the file's pages once nothing is compiled from it any more."""
        if self._mapped is not None:
            self._model = None
            forget(self._mapped)


def mapped(path: Path) -> mmap.mmap:
    """Maps a file into memory. OpenVINO's tensors demand writable memory, so pages are private copies; nobody writes
    them."""
    with path.open("rb") as file:
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        return mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def forget(memory: mmap.mmap) -> None:
    """Lets the kernel reclaim a mapped file's pages; a later access reads them from the file again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


def _weight_bytes(model: Any) -> int:
    constants = (operation for operation in model.get_ops() if operation.get_type_name() == "Constant")
    return sum(operation.get_byte_size() for operation in constants)


@dataclass(frozen=True)
class Converted:
    """A converted model with everything that serving needs. ``directory`` is None if it could not be written."""

    graphs: Mapping[str, Graph]
    """Graphs by name: `DIRECT`, and `WINOGRAD` if there is one."""
    head: Head | None
    card: ModelCard
    """The model card, without the fields that a start decides."""
    precision: str
    expected: Logits | None = None
    """The answers to the canaries, ``[images, outputs]``, if they are known."""
    directory: Path | None = None


@dataclass(frozen=True)
class Artifact:
    """A converted model in a directory."""

    directory: Path
    about: Mapping[str, Any]

    @property
    def precision(self) -> str:
        return str(self.about["precision"])

    @property
    def fingerprint(self) -> str:
        return str(self.about["fingerprint"])

    @property
    def answers_known(self) -> bool:
        """True if it holds the answers to the present canaries."""
        return _canary_file(tuple(self.about["image"])) in self.about["files"]

    def open(self) -> Converted:
        """Opens the artifact. Large files are read only when they are used."""
        names = [name for name in (DIRECT, WINOGRAD) if name in self.about["files"]]
        graphs = {name: Graph(self.directory / name) for name in names}
        card = ModelCard.from_json(self.about["card"])
        return Converted(graphs, self._head(), card, self.precision, self._expected(), self.directory)

    def _expected(self) -> Logits | None:
        if not self.answers_known:
            return None
        file = self.directory / _canary_file(tuple(self.about["image"]))
        return np.fromfile(file, np.float32).reshape(canary.IMAGES, -1)

    def _head(self) -> Head | None:
        """Returns the layers behind the features, their arrays mapped from files; None for a network without a head."""
        document = self.about["head"]
        layers = from_json(document["layers"])
        arrays = {
            name: np.memmap(
                self.directory / place["file"], np.float32, "r", place["offset"], tuple(place["shape"])
            )
            for name, place in document["arrays"].items()
        }
        return Head(layers, arrays) if layers else None


def write(
    directory: Path,
    model: openvino.Model,
    checkpoint: Checkpoint,
    card: ModelCard,
    head: Head | None,
    precision: str,
    *,
    winograd: openvino.Model | None = None,
    expected: Logits | None = None,
    **more: Any,
) -> None:
    """Writes an artifact that `read` accepts: completely or not at all. Replaces an existing one.

    ``more`` goes into ``about.json``. Raises `OSError`.
    """
    places: dict[str, Any] = {}

    def save(folder: Path) -> Sequence[str]:
        names = [DIRECT, _WEIGHTS]
        _save(model, folder / DIRECT)
        if winograd is not None:
            _save(winograd, folder / WINOGRAD)
            merging.join(folder / WINOGRAD, folder / DIRECT)
            names.append(WINOGRAD)
        if head is not None:
            places.update(merging.place(head.arrays, folder / DIRECT, folder / _HEAD))
            names.append(_HEAD)
        if expected is not None:
            name = _canary_file(checkpoint.preprocessing.shape)
            expected.astype(np.float32).tofile(folder / name)
            names.append(name)
        return names

    described = {
        "libraries": manifest.libraries("openvino", "torch"),
        "card": card.to_json(),
        "head": {"layers": to_json(head.layers if head else ()), "arrays": places},
        **more,
    }
    manifest.write(KIND, directory, save, checkpoint, precision, **described)


def _canary_file(image: tuple[int, int, int]) -> str:
    return f"canary-{canary.digest(image)}.bin"


def _save(model: openvino.Model, path: Path) -> None:
    from service.models.openvino_import import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO has no error class for a full disk, and its message has five lines.
        raise OSError(str(error).splitlines()[-1]) from error


def read(directory: Path) -> Artifact:
    """Reads the artifact in a directory. Raises `ConfigurationError` for anything else, or if it is damaged."""
    about = manifest.read(KIND, directory)
    try:
        found = Artifact(directory, about)
        found.open()
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise manifest.unreadable(KIND, directory, error) from error
    return found


def is_one(path: Path) -> bool:
    """Returns True if this is a directory of this kind, complete or not."""
    return path.is_dir() and manifest.format_of(path) == KIND.format


def cache_directory() -> Path:
    """Returns the folder of cached conversions."""
    return cache.root() / "openvino"


def cached(fingerprint: str, precision: str) -> Path:
    """Returns the path of the conversion of these weights, by the present versions of libraries and code.

    ``fingerprint`` is from `manifest.fingerprint`. ``precision`` is the precision of serving, which may decide how
    the same numbers are best arranged.
    """
    key = {
        "precision": precision,
        "fingerprint": fingerprint,
        "libraries": manifest.libraries("openvino", "torch", "torchvision"),
        "code": manifest.code_hash(),
    }
    return cache_directory() / cache.digest(key)


def from_cache(directory: Path) -> Artifact | None:
    """Returns the artifact in a folder of the cache; None if there is none that can be used."""
    if not directory.is_dir():
        return None
    try:
        found = read(directory)
        if not found.answers_known:
            raise ConfigurationError("its answers to the known images are those of another version")
    except (ConfigurationError, OSError) as error:
        log.warning("the cached conversion cannot be used and is made again: %s", error)
        return None
    try:
        directory.touch()  # `prune` goes by the time of modification
    except OSError:
        log.debug("%s is read-only", directory)
    log.info("converted model from the cache, %s", directory)
    return found


def prune() -> None:
    """Deletes all but the conversions that were used last. (`write` removes what killed processes left behind.)"""
    entries = [path for path in cache_directory().iterdir() if path.is_dir()]
    whole = [path for path in entries if not path.name.endswith(".partial")]
    whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in whole[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
