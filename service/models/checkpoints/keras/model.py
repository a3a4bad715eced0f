"""Reads a Keras file into a checkpoint: a VGG or a DenseNet with its head and its preprocessing.

    [Rescaling, Normalization, Resizing]   preprocessing
    Conv2D, MaxPooling2D, ...              a VGG: 3x3 convolutions with "same" padding and ReLU, 2x2 pools
    ZeroPadding2D, Conv2D, ...             a DenseNet, as keras.applications lays it out
    Flatten or GlobalPooling, Dense, ...   the head; a refusal names the first unknown layer

The networks of `keras.applications` take pixels from its ``preprocess_input``: BGR less the mean for VGG, scaled and
normalised for DenseNet. A model with its own Rescaling does not need that.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.cache import file_sha256
from service.models.checkpoints.checkpoint import Activation, Checkpoint
from service.models.checkpoints.keras import layers as keras_layers
from service.models.checkpoints.keras.before import arithmetic, resized, scaled
from service.models.checkpoints.keras.body import configuration_of
from service.models.checkpoints.keras.files import KerasFile
from service.models.checkpoints.keras.files import read as read_file
from service.models.checkpoints.keras.graph import Leaf
from service.models.checkpoints.keras.head import KerasHead, pools_by_maximum, read_head
from service.models.checkpoints.pixels import with_pixels
from service.models.checkpoints.plain_head import with_head
from service.models.configuration import Configuration
from service.models.options import Options
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

Size = tuple[int, int]

#: Default image size of keras.applications' networks.
_USUAL = (224, 224)

#: Layers that do nothing once a network is trained.
_NOTHING = re.compile(
    r"InputLayer|Dropout|SpatialDropout2D|Gaussian\w+|AlphaDropout|ActivityRegularization|Identity|Random\w+"
)

_OPTIONS = ("preprocessing", "classifier_activation", "image_size", "pooling", "head_activation")


@dataclass
class _Parts:
    before: list[Leaf]
    body: list[Leaf]
    head: list[Leaf]


def read(path: Path, options: Options) -> Checkpoint:
    """Reads any Keras file but a preset. ``options`` may say what the file does not.

    Raises `CheckpointError` for any other network, and for weights alone that fit several networks.
    """
    options = options.only(*_OPTIONS)
    file = read_file(path)
    name = path.name
    parts = _split([leaf for leaf in file.leaves if not _NOTHING.fullmatch(leaf.kind)], file.complete, name)
    configuration = configuration_of(parts.body, file.complete, name)
    size = _size(file, parts, configuration, options, name)
    convolutions = [leaf.arrays for leaf in parts.body if leaf.kind == "Conv2D"]
    norms = [leaf.arrays for leaf in parts.body if leaf.kind == "BatchNormalization"]
    tensors = keras_layers.of_layers(convolutions, norms, configuration, name)
    head = read_head(parts.head, configuration, size, options, complete=file.complete, name=name)
    if head is not None:
        configuration, named = with_head(configuration, head.layers, head.tensors, size)
        tensors |= named
    return _checkpoint(path, file, parts, configuration, tensors, head, size, options)


def _checkpoint(
    path: Path,
    file: KerasFile,
    parts: _Parts,
    configuration: Configuration,
    tensors: dict[str, Tensor],
    head: KerasHead | None,
    size: Size,
    options: Options,
) -> Checkpoint:
    checkpoint = Checkpoint(
        configuration=configuration,
        state_dict=tensors,
        preprocessing=Preprocessing(crop=size, antialias=False, fit="crop-resize"),
        classes=None if head is None else default_classes(configuration.num_classes),
        activation=_scores(head, options),
        name=re.sub(r"(\.weights)?\.(h5|hdf5|keras)$", "", path.name),
        source=f"Keras file {path.name}",
        sha256=file_sha256(path),
        feature_pooling="max" if head is None and pools_by_maximum(parts.head) else "avg",
    )
    checkpoint = replace(checkpoint, preprocessing=resized(checkpoint.preprocessing, parts.before))
    if options.preprocessing is not None:
        return with_pixels(checkpoint, options.preprocessing)
    computed = arithmetic([leaf for leaf in parts.before if leaf.kind != "Resizing"])
    if computed is not None:
        return with_pixels(checkpoint, computed)
    normalised = scaled(parts.before, path.name)
    if normalised is not None:
        mean, std = normalised
        return replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, mean=mean, std=std))
    return with_pixels(checkpoint, _usual_pixels(file, configuration, path.name))


def _scores(head: KerasHead | None, options: Options) -> Activation:
    if options.classifier_activation is not None:
        return keras_layers.scores(options.classifier_activation)
    return "softmax" if head is None else head.activation


def _usual_pixels(file: KerasFile, configuration: Configuration, name: str) -> str:
    cv = file.document is not None and file.document.get("class_name") == "VGG16Backbone"
    pixels = (
        "raw"
        if cv or file.model_name == "VGG16"
        else "caffe"
        if configuration.family == "vgg"
        else "imagenet"
    )
    _log.warning(
        "%s says nothing of normalising: its model gets pixels as ?preprocessing=%s makes them. Add another "
        "?preprocessing= (raw, unit, tf, imagenet or caffe) to its name if it was trained on such",
        *(name, pixels),
    )
    return pixels


def _split(leaves: list[Leaf], complete: bool, name: str) -> _Parts:
    first = next(
        (number for number, leaf in enumerate(leaves) if leaf.kind in ("Conv2D", "ZeroPadding2D")), None
    )
    if first is None:
        raise CheckpointError(f"'{name}' holds no convolutions, and so neither a VGG nor a DenseNet")
    if not complete:
        return _split_unordered(leaves)
    body = leaves[first:]
    dense = any(leaf.kind == "Concatenate" for leaf in body)
    last = max(
        (
            number
            for number, leaf in enumerate(body)
            if leaf.kind == ("Concatenate" if dense else "MaxPooling2D")
        ),
        default=-1,
    )
    if dense:
        # Includes the last block's norm and its ReLU.
        last += 2
    return _Parts(leaves[:first], body[: last + 1], body[last + 1 :])


def _split_unordered(leaves: list[Leaf]) -> _Parts:
    """Splits layers of unknown order: the body's norms are as many as its convolutions need, the head has the rest."""
    convolutions = [leaf for leaf in leaves if leaf.kind == "Conv2D"]
    norms = [leaf for leaf in leaves if leaf.kind == "BatchNormalization"]
    dense = any(
        leaf.arrays.get(0) is not None and leaf.arrays[0].shape[:2] == (1, 1) for leaf in convolutions
    )
    own = norms[: len(convolutions) + 1] if dense else []
    known = {"Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Dense"}
    head = [leaf for leaf in leaves if leaf.kind in known]
    # Pooling comes first; HDF5 sorts the classes by name.
    head.sort(key=lambda leaf: leaf.kind == "Dense")
    before = [leaf for leaf in leaves if leaf.kind in ("Rescaling", "Normalization")]
    others = [leaf for leaf in leaves if leaf.kind == "ZeroPadding2D"]
    return _Parts(before, [*convolutions, *own, *others], [*head, *norms[len(own) :]])


def _size(file: KerasFile, parts: _Parts, configuration: Configuration, options: Options, name: str) -> Size:
    """Returns height and width of the images. Weights alone with a head may fit several sizes; then an option
    decides."""
    resizing = next((leaf.config or {} for leaf in parts.before if leaf.kind == "Resizing"), None)
    if resizing is not None:
        return int(resizing["height"]), int(resizing["width"])
    if options.image_size is not None:
        if file.size not in (None, options.image_size):
            raise CheckpointError(
                f"'{name}' is made for images of {_written(file.size or _USUAL)}; leave ?image_size= out"
            )
        return options.image_size
    if file.size is not None:
        return file.size
    first = next((leaf for leaf in parts.head if leaf.kind == "Dense" and 0 in leaf.arrays), None)
    if first is None or (file.complete and not any(leaf.kind == "Flatten" for leaf in parts.head)):
        return _USUAL
    pooled = any(leaf.kind.startswith("Global") for leaf in parts.head)
    if pooled and first.name in ("predictions", "fc1000"):
        return _USUAL
    side = math.isqrt(first.arrays[0].shape[0] // configuration.width)
    if not pooled and side == 7 and first.arrays[0].shape[0] == 49 * configuration.width:
        return _USUAL
    raise CheckpointError(
        f"'{name}' does not say what size of images its head was trained for; add ?image_size=HEIGHTxWIDTH, such as "
        "?image_size=224x224, or save the whole model: model.save('model.keras')"
    )


def _written(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
