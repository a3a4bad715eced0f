"""KerasCV's ``VGG16Backbone``, which has no presets: files of ``model.save`` and ``model.save_weights``.

NAME.keras         a zip: config.json with the model's arguments, model.weights.h5
NAME.weights.h5    the weights alone; what layers there are says most of the arguments
NAME.h5            Keras 2's format: model_weights/<layer>/..., arguments in an attribute
"""

from __future__ import annotations

import io
import json
import logging
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.cache import file_sha256
from service.models.checkpoints import keras_layers
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.hdf5 import MOST_BYTES, Array, has_group, open_file, read_arrays
from service.models.checkpoints.keras_layers import dense
from service.models.checkpoints.pixels import NORMALISING
from service.models.configuration import VGGConfig
from service.models.options import Options
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

SUFFIXES = (".keras", ".h5")

_REPEATS = (2, 2, 3, 3, 3)
_LAYER_NAMES = [
    f"block{stage}_conv{n}" for stage, count in enumerate(_REPEATS, 1) for n in range(1, count + 1)
]
_HEAD_NAMES = ["fc1", "fc2", "predictions"]


@dataclass(frozen=True)
class _File:
    """What any of the three files comes down to: arrays under today's names, and the model's arguments."""

    arrays: dict[str, Array]
    include_rescaling: bool
    input_size: tuple[int, int] | None
    classifier_activation: str


def read(path: Path, options: Options) -> Checkpoint:
    """The checkpoint of a KerasCV VGG16. ``options`` may say what its file does not.

    Raises `CheckpointError` for anything else in such a file.
    """
    file = _read_file(path)
    if keras_layers.layers(file.arrays, "batch_normalization"):
        raise CheckpointError(f"'{path.name}' is no VGG16; give a DenseNet as its whole preset directory")
    convolutions = keras_layers.layers(file.arrays, "conv2d")
    if len(convolutions) != sum(_REPEATS):
        raise CheckpointError(f"'{path.name}' has {len(convolutions)} convolutions, and a VGG16 has 13")
    head = keras_layers.layers(file.arrays, "dense")
    size = options.image_size or file.input_size or _square(head, convolutions, path.name)
    configuration = _configuration(convolutions, size)
    state_dict = keras_layers.backbone(file.arrays, configuration, path.name)
    if head:
        configuration, tensors = _head(head, configuration, size, path.name)
        state_dict |= tensors
    normalising = options.preprocessing or _normalising(file, path.name)
    if normalising == "caffe":
        state_dict["features.0.weight"] = state_dict["features.0.weight"].flip(1)
    return Checkpoint(
        configuration=configuration,
        state_dict=state_dict,
        preprocessing=_preprocessing(size, normalising),
        classes=default_classes(configuration.num_classes) if head else None,
        activation=keras_layers.scores(options.classifier_activation or file.classifier_activation),
        name=path.name.removesuffix(".h5").removesuffix(".weights").removesuffix(".keras"),
        source=f"KerasCV file {path.name}",
        sha256=file_sha256(path),
    )


def _read_file(path: Path) -> _File:
    if path.suffix == ".keras":
        return _read_keras(path)
    if path.name.endswith(".weights.h5"):
        rescaling = has_group(path, path.name, "layers/rescaling")
        return _File(read_arrays(path, path.name, keras_layers.is_weight), rescaling, None, "softmax")
    return _read_legacy(path)


def _read_keras(path: Path) -> _File:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(_member(archive, "config.json").read())
            weights = _member(archive, "model.weights.h5")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"'{path.name}' is no .keras file, or a damaged one; save it again") from error
    return _file(read_arrays(weights, path.name, keras_layers.is_weight), config, path.name)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise CheckpointError(f"{name} in the .keras file announces more than a VGG holds and is refused")
    return io.BytesIO(archive.read(name))


def _read_legacy(path: Path) -> _File:
    numbered = {
        f"model_weights/{name}/{name}/{part}{suffix}": f"layers/{kind}_{number}/vars/{variable}"
        for kind, names in (("conv2d", _LAYER_NAMES), ("dense", _HEAD_NAMES))
        for number, name in enumerate(names)
        for variable, part in enumerate(("kernel", "bias"))
        for suffix in ("", ":0")
    }
    with open_file(path, path.name) as file:
        config = json.loads(file.attrs.get("model_config", "null"))
    arrays = read_arrays(path, path.name, numbered.__contains__)
    return _file({numbered[name]: array for name, array in arrays.items()}, config, path.name)


def _file(arrays: dict[str, Array], document: Any, name: str) -> _File:
    kind = document.get("class_name") if isinstance(document, dict) else None
    if kind != "VGG16Backbone" or not isinstance(document["config"], dict):
        raise CheckpointError(f"'{name}' holds a {kind}; of KerasCV only VGG16Backbone can be served")
    config = document["config"]
    if bool(config.get("include_top")) != bool(keras_layers.layers(arrays, "dense")):
        raise CheckpointError(f"'{name}' contradicts itself: include_top is {config.get('include_top')}")
    height, width = (config.get("input_shape") or (None, None))[:2]
    size = None if height is None or width is None else (int(height), int(width))
    activation = config.get("classifier_activation") or "linear"
    return _File(arrays, bool(config.get("include_rescaling")), size, str(activation))


def _square(
    head: list[keras_layers.Layer], convolutions: list[keras_layers.Layer], name: str
) -> tuple[int, int]:
    """The image size where nothing says it: for a flattened map the square one that fits, else the usual."""
    if not head:
        return 224, 224
    cells = head[0][0].shape[0] // convolutions[-1][0].shape[3]
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(f"the head of '{name}' is for images that are not square; add ?image_size=HxW")
    return side * 32, side * 32


def _configuration(convolutions: list[keras_layers.Layer], size: tuple[int, int]) -> VGGConfig:
    widths = iter(layer[0].shape[-1] for layer in convolutions)
    stages = tuple(tuple(next(widths) for _ in range(count)) for count in _REPEATS)
    channels = convolutions[0][0].shape[-2]
    return VGGConfig(stages=stages, num_classes=0, channels=channels, head="flatten", image_size=size)


def _head(
    head: list[keras_layers.Layer], configuration: VGGConfig, size: tuple[int, int], name: str
) -> tuple[VGGConfig, dict[str, Tensor]]:
    if len(head) != len(_HEAD_NAMES):
        raise CheckpointError(f"the head of '{name}' has {len(head)} dense layers and not three")
    first, *others = head
    weights = [(dense(first, name, configuration.map_size(size)), first)]
    return keras_layers.head(configuration, weights + [(dense(layer, name), layer) for layer in others])


def _normalising(file: _File, name: str) -> str:
    if file.include_rescaling:
        return "unit"
    _log.warning(
        "%s says nothing of normalising: its model gets pixels from 0 to 255. Add ?preprocessing=unit, "
        "imagenet or caffe to its name if it was trained on such",
        name,
    )
    return "raw"


def _preprocessing(size: tuple[int, int], normalising: str) -> Preprocessing:
    mean, std = NORMALISING[normalising]
    return Preprocessing(crop=size, antialias=False, fit="crop-resize", mean=mean, std=std)
