"""Keras layers one behind the other → a VGG or a DenseNet with its head, and what pixels go through before it.

    [Rescaling, Normalization, Resizing]   preprocessing
    Conv2D, MaxPooling2D, ...              a VGG: 3x3 convolutions with "same" padding and ReLU, 2x2 pools
    ZeroPadding2D, Conv2D, ...             a DenseNet, as keras.applications lays it out
    Flatten or GlobalPooling, Dense, ...   the head; a layer that is not known there is named in the refusal

`keras.applications`' own networks take pixels as its ``preprocess_input`` makes them: BGR less the mean for VGG,
scaled and normalised for DenseNet. Whoever has a Rescaling in the model has no need of that.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.cache import file_sha256
from service.models.checkpoints.checkpoint import Activation, Checkpoint
from service.models.checkpoints.keras import layers as keras_layers
from service.models.checkpoints.keras.files import KerasFile
from service.models.checkpoints.keras.files import read as read_file
from service.models.checkpoints.keras.graph import Leaf
from service.models.checkpoints.keras.head import Head, pools_by_maximum, read_head
from service.models.checkpoints.pixels import with_pixels
from service.models.checkpoints.tensors.shapes import compression
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig
from service.models.head import Activate, Flatten, Linear
from service.models.options import Options
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

Size = tuple[int, int]
Triple = tuple[float, float, float]

#: `keras.layers.BatchNormalization` in keras.applications' and KerasHub's DenseNets.
EPSILON = 1.001e-5

#: What keras.applications' networks are made for unless told otherwise.
_USUAL = (224, 224)

#: Layers that do nothing once a network is trained.
_NOTHING = re.compile(
    r"InputLayer|Dropout|SpatialDropout2D|Gaussian\w+|AlphaDropout|ActivityRegularization|Identity|Random\w+"
)

_BODY = (
    "Conv2D",
    "MaxPooling2D",
    "BatchNormalization",
    "Activation",
    "ReLU",
    "ZeroPadding2D",
    "Concatenate",
    "AveragePooling2D",
)

_OPTIONS = ("preprocessing", "classifier_activation", "image_size", "pooling", "head_activation")


@dataclass
class _Parts:
    before: list[Leaf]
    body: list[Leaf]
    head: list[Leaf]


def read(path: Path, options: Options) -> Checkpoint:
    """The checkpoint of any file of Keras's but a preset. ``options`` may say what it does not.

    Raises `CheckpointError` for anything else in such a file, and for weights alone that fit several networks.
    """
    options = options.only(*_OPTIONS)
    file = read_file(path)
    name = path.name
    parts = _split([leaf for leaf in file.leaves if not _NOTHING.fullmatch(leaf.kind)], file.complete, name)
    configuration = _configuration(parts.body, file.complete, name)
    size = _size(file, parts, configuration, options, name)
    convolutions = [leaf.arrays for leaf in parts.body if leaf.kind == "Conv2D"]
    norms = [leaf.arrays for leaf in parts.body if leaf.kind == "BatchNormalization"]
    tensors = keras_layers.of_layers(convolutions, norms, configuration, name)
    head = read_head(parts.head, configuration, size, options, complete=file.complete, name=name)
    if head is not None:
        configuration = _with_head(configuration, head, size)
        tensors |= _renamed(head.tensors, configuration)
    return _checkpoint(path, file, parts, configuration, tensors, head, size, options)


def _checkpoint(
    path: Path,
    file: KerasFile,
    parts: _Parts,
    configuration: Configuration,
    tensors: dict[str, Tensor],
    head: Head | None,
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
    checkpoint = replace(checkpoint, preprocessing=_resized(checkpoint.preprocessing, parts.before))
    if options.preprocessing is not None:
        return with_pixels(checkpoint, options.preprocessing)
    arithmetic = _arithmetic([leaf for leaf in parts.before if leaf.kind != "Resizing"])
    if arithmetic is not None:
        return with_pixels(checkpoint, arithmetic)
    scaled = _scaled(parts.before, path.name)
    if scaled is not None:
        mean, std = scaled
        return replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, mean=mean, std=std))
    return with_pixels(checkpoint, _usual_pixels(file, configuration, path.name))


def _scores(head: Head | None, options: Options) -> Activation:
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
        # The last block's norm and its ReLU.
        last += 2
    return _Parts(leaves[:first], body[: last + 1], body[last + 1 :])


def _split_unordered(leaves: list[Leaf]) -> _Parts:
    """The body's norms are as many as its convolutions have (and one at the end); what is left is the head's."""
    convolutions = [leaf for leaf in leaves if leaf.kind == "Conv2D"]
    norms = [leaf for leaf in leaves if leaf.kind == "BatchNormalization"]
    dense = any(
        leaf.arrays.get(0) is not None and leaf.arrays[0].shape[:2] == (1, 1) for leaf in convolutions
    )
    own = norms[: len(convolutions) + 1] if dense else []
    known = {"Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Dense"}
    head = [leaf for leaf in leaves if leaf.kind in known]
    # Pooling first: HDF5 sorts the classes by name.
    head.sort(key=lambda leaf: leaf.kind == "Dense")
    before = [leaf for leaf in leaves if leaf.kind in ("Rescaling", "Normalization")]
    others = [leaf for leaf in leaves if leaf.kind == "ZeroPadding2D"]
    return _Parts(before, [*convolutions, *own, *others], [*head, *norms[len(own) :]])


def _configuration(body: list[Leaf], complete: bool, name: str) -> Configuration:
    for leaf in body:
        if leaf.kind not in _BODY:
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) that no VGG or DenseNet has"
            )
    kernels = [leaf.arrays[0] for leaf in body if leaf.kind == "Conv2D" and 0 in leaf.arrays]
    if len(kernels) != sum(leaf.kind == "Conv2D" for leaf in body) or any(
        kernel.ndim != 4 for kernel in kernels
    ):
        raise CheckpointError(f"'{name}' lacks an array of one of its layers; fetch it again")
    if any(kernel.shape[:2] == (1, 1) for kernel in kernels):
        return _densenet(body, kernels, complete, name)
    return _vgg(body, kernels, complete, name)


def _vgg(body: list[Leaf], kernels: list[Any], complete: bool, name: str) -> VGGConfig:
    if any(kernel.shape[:2] != (3, 3) for kernel in kernels):
        raise CheckpointError(
            f"'{name}' holds neither a VGG nor a DenseNet: its convolutions have other sizes"
        )
    channels = kernels[0].shape[2]
    if complete:
        _check_vgg(body, name)
        stages: list[tuple[int, ...]] = [()]
        widths = iter(kernel.shape[3] for kernel in kernels)
        for leaf in body:
            if leaf.kind == "Conv2D":
                stages[-1] = (*stages[-1], next(widths))
            elif leaf.kind == "MaxPooling2D":
                stages.append(())
        return VGGConfig(stages=tuple(stages[:-1]), num_classes=0, channels=channels)
    counts = {8: (1, 1, 2, 2, 2), 10: (2,) * 5, 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}.get(len(kernels))
    if counts is None:
        raise CheckpointError(
            f"'{name}' has {len(kernels)} convolutions, and no VGG has; weights alone do not say where its pools are, "
            "so save the whole model: model.save('model.keras')"
        )
    widths = iter(kernel.shape[3] for kernel in kernels)
    stages = [tuple(next(widths) for _ in range(count)) for count in counts]
    return VGGConfig(stages=tuple(stages), num_classes=0, channels=channels)


def _check_vgg(body: list[Leaf], name: str) -> None:
    usual: dict[str, dict[str, Any]] = {
        "Conv2D": {"strides": (1, 1), "padding": "same", "dilation_rate": (1, 1), "groups": 1},
        "MaxPooling2D": {"pool_size": (2, 2), "strides": (2, 2), "padding": "valid"},
    }
    for number, leaf in enumerate(body):
        _refuse_unusual(leaf, usual.get(leaf.kind, {}), name)
        if leaf.kind == "Conv2D" and _activation_of(leaf) != "relu":
            following = body[number + 1] if number + 1 < len(body) else leaf
            if _activation_of(leaf) != "linear" or not _is_relu(following):
                raise CheckpointError(
                    f"the layer '{leaf.name}' of '{name}' is followed by no ReLU, and in a VGG it is"
                )
        if leaf.kind not in ("Conv2D", "MaxPooling2D") and not _is_relu(leaf):
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) that no VGG of Keras's has"
            )


def _refuse_unusual(leaf: Leaf, usual: dict[str, Any], name: str) -> None:
    config = leaf.config or {}
    if config.get("data_format") == "channels_first":
        raise CheckpointError(f"'{name}' was made for channels_first; save it from a model of channels_last")
    for argument, wanted in usual.items():
        value = config.get(argument, wanted)
        value = tuple(value) if isinstance(value, list) else value
        if value != wanted:
            raise CheckpointError(
                f"the layer '{leaf.name}' of '{name}' has {argument} {value}, which cannot be served; only {wanted} can"
            )


def _activation_of(leaf: Leaf) -> str:
    value = (leaf.config or {}).get("activation", "linear")
    return str(value.get("config") if isinstance(value, dict) else value or "linear")


def _is_relu(leaf: Leaf) -> bool:
    return leaf.kind == "ReLU" or (leaf.kind == "Activation" and _activation_of(leaf) == "relu")


def _densenet(body: list[Leaf], kernels: list[Any], complete: bool, name: str) -> DenseNetConfig:
    try:
        stem, *others = kernels
        growth, bottleneck = others[1].shape[3], others[0].shape[3]
        blocks, transitions = [0], []
        position = 0
        while position < len(others):
            if position + 1 < len(others) and others[position + 1].shape[:2] == (3, 3):
                blocks[-1] += 1
                position += 2
            else:
                transitions.append((others[position].shape[3], others[position].shape[2]))
                blocks.append(0)
                position += 1
        if stem.shape[:2] != (7, 7) or bottleneck % growth:
            raise ValueError("its stem or its layers are others")
        configuration = DenseNetConfig(
            blocks=tuple(blocks),
            growth_rate=growth,
            stem_width=stem.shape[3],
            bottleneck=bottleneck // growth,
            compression=compression(transitions),
            channels=stem.shape[2],
            num_classes=0,
            # keras.applications pads by layers of its own, KerasHub by "same".
            padding="symmetric"
            if any(leaf.kind == "ZeroPadding2D" for leaf in body) or not complete
            else "same",
            epsilon=EPSILON,
        )
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"'{name}' is no whole DenseNet: {error}") from error
    if complete:
        configuration = replace(configuration, epsilon=_epsilon(body, name))
        _check_densenet(body, configuration, name)
    return configuration


def _epsilon(body: list[Leaf], name: str) -> float:
    found = {
        float((leaf.config or {}).get("epsilon", 1e-3)) for leaf in body if leaf.kind == "BatchNormalization"
    }
    if len(found) != 1:
        raise CheckpointError(
            f"the batch norms of '{name}' have several epsilons, and those of a DenseNet have one"
        )
    return found.pop()


def _check_densenet(body: list[Leaf], configuration: DenseNetConfig, name: str) -> None:
    """Its layers' classes in the order of keras.applications."""
    relu = ["BatchNormalization", "Activation"]
    layer = [*relu, "Conv2D", *relu, "Conv2D", "Concatenate"]
    wanted = ["ZeroPadding2D", "Conv2D", *relu, "ZeroPadding2D", "MaxPooling2D"]
    for number, count in enumerate(configuration.blocks):
        wanted += layer * count
        wanted += [*relu, "Conv2D", "AveragePooling2D"] if number + 1 < len(configuration.blocks) else relu
    kinds = ["Activation" if leaf.kind == "ReLU" else leaf.kind for leaf in body]
    for leaf, kind, other in zip(body, kinds, wanted, strict=False):
        if kind != other or (kind == "Activation" and not _is_relu(leaf)):
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) where a DenseNet of keras.applications has none"
            )
        _refuse_unusual(leaf, {}, name)
    if len(kinds) != len(wanted):
        raise CheckpointError(
            f"'{name}' has {len(kinds)} layers where a DenseNet of its shapes has {len(wanted)}"
        )


def _size(file: KerasFile, parts: _Parts, configuration: Configuration, options: Options, name: str) -> Size:
    """Height and width of the images. Weights alone with a head fit several, so the operator says it."""
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


def _with_head(configuration: Configuration, head: Head, size: Size) -> Configuration:
    if isinstance(configuration, VGGConfig):
        kinds = [type(layer) for layer in head.layers]
        usual = kinds == [Flatten, Linear, Activate, Linear, Activate, Linear]
        if usual and all(
            layer in (Activate(), Flatten()) or (isinstance(layer, Linear) and layer.bias)
            for layer in head.layers
        ):
            first, hidden, last = (layer.outputs for layer in head.layers if isinstance(layer, Linear))
            other = None if first == hidden else first
            return replace(
                configuration,
                head="flatten",
                hidden=hidden,
                hidden_first=other,
                num_classes=last,
                image_size=size,
            )
    elif (
        len(head.layers) == 2 and isinstance(head.layers[1], Linear) and head.layers[1].bias and head.pooling
    ):
        return replace(configuration, num_classes=head.classes, head_pooling=head.pooling)
    return replace(configuration, num_classes=head.classes, layers=head.layers)


def _renamed(tensors: dict[str, Tensor], configuration: Configuration) -> dict[str, Tensor]:
    """Where the configuration has a named head: under its names."""
    if configuration.layers:
        return tensors
    if isinstance(configuration, DenseNetConfig):
        return {key.replace(".0.", "."): tensor for key, tensor in tensors.items()}
    renamed = {}
    for key, tensor in tensors.items():
        name, number, part = key.split(".")
        renamed[f"{name}.{3 * int(number)}.{part}"] = tensor
    return renamed


#: `keras.applications.*.preprocess_input` within a model, by the classes of its operations in Keras 3 and 2 and by
#: numbers among what they are called with.
_ARITHMETIC: tuple[tuple[str, tuple[list[str], ...], tuple[str, ...]], ...] = (
    ("caffe", (["GetItem"] * 3 + ["Stack", "Add"], ["SlicingOpLambda", "TFOpLambda"]), ("-103.93",)),
    ("imagenet", (["TrueDivide", "Add", "TrueDivide"], ["TFOpLambda"] * 3), ("255", "-0.485", "0.229")),
    ("tf", (["TrueDivide", "Subtract"], ["TFOpLambda"] * 2), ("127.5", "1.0")),
)


def _arithmetic(before: list[Leaf]) -> str | None:
    kinds, calls = [leaf.kind for leaf in before], " ".join(leaf.call for leaf in before)
    for name, orders, numbers in _ARITHMETIC:
        if kinds in orders and all(number in calls for number in numbers):
            return name
    return None


def _resized(preprocessing: Preprocessing, before: list[Leaf]) -> Preprocessing:
    resizing = next((leaf.config or {} for leaf in before if leaf.kind == "Resizing"), None)
    if resizing is None:
        return preprocessing
    if resizing.get("crop_to_aspect_ratio"):
        return preprocessing
    fit = "pad-resize" if resizing.get("pad_to_aspect_ratio") else "stretch"
    interpolation = str(resizing.get("interpolation", "bilinear"))
    return replace(
        preprocessing, fit=fit, interpolation=interpolation, antialias=bool(resizing.get("antialias", False))
    )


def _scaled(before: list[Leaf], name: str) -> tuple[Triple, Triple] | None:
    """Mean and deviation of pixels in [0, 1] by the layers before the network, None where there are none."""
    scale, offset, any_scale = [1.0] * 3, [0.0] * 3, False
    for leaf in before:
        config = leaf.config
        if leaf.kind == "Resizing":
            continue
        if leaf.kind == "Rescaling":
            if config is None:
                factor, shift = [1 / 255] * 3, [0.0] * 3
            else:
                factor, shift = (
                    _triple(config.get("scale", 1.0), name),
                    _triple(config.get("offset", 0.0), name),
                )
        elif leaf.kind == "Normalization" and config is not None:
            factor, shift = _normalization(leaf, name)
        else:
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) before its network that is not known here; save the "
                "model without it and say with ?preprocessing= what it did (raw, unit, tf, imagenet or caffe)"
            )
        any_scale = True
        scale = [a * b for a, b in zip(scale, factor, strict=True)]
        offset = [a * b + c for a, b, c in zip(offset, factor, shift, strict=True)]
    if not any_scale:
        return None
    if min(scale) <= 0:
        raise CheckpointError(f"'{name}' turns its pixels round before its network, which cannot be served")
    # x * scale + offset = (x / 255 - mean) / std
    std = [1 / (255 * value) for value in scale]
    mean = [-shift * deviation for shift, deviation in zip(offset, std, strict=True)]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _triple(value: Any, name: str) -> list[float]:
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [float(number) for number in (values * 3 if len(values) == 1 else values)]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"'{name}' scales its pixels by what is no number") from error
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise CheckpointError(f"'{name}' scales its pixels by {len(numbers)} numbers and not by one or three")
    return numbers


def _normalization(leaf: Leaf, name: str) -> tuple[list[float], list[float]]:
    """`keras.layers.Normalization`: ``(x - mean) / max(sqrt(variance), epsilon)``, given or adapted."""
    config = leaf.config or {}
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None and 0 in leaf.arrays and 1 in leaf.arrays:
        mean, variance = (leaf.arrays[number].reshape(-1).tolist() for number in (0, 1))
    if mean is None or variance is None or config.get("invert"):
        raise CheckpointError(
            f"the layer '{leaf.name}' of '{name}' has no statistics; save the model after adapt()"
        )
    factor = [1 / max(math.sqrt(value), 1e-7) for value in _triple(variance, name)]
    return factor, [-value * one for value, one in zip(_triple(mean, name), factor, strict=True)]
