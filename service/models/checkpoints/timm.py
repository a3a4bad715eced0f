"""Reads timm's repositories, as on the Hugging Face Hub or saved by ``timm.models.save_for_hf``.

    config.json          architecture, model_args, label_names, and pretrained_cfg with the preprocessing
    model.safetensors    the weights (parts.py)

The network follows from the weights' shapes: a name like vgg11 says little where model_args change it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from service.errors import CheckpointError
from service.labels import ClassLabel, default_classes, imagenet_classes, named_classes
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.parts import read_parts
from service.models.checkpoints.tensors.state_dict import read_network
from service.models.configuration import Configuration, VGGConfig
from service.models.head import Pooling
from service.models.options import Options
from service.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

#: `timm.data.constants.DEFAULT_CROP_PCT`
_CROP_PCT = 0.875

#: Arguments that change what a network computes without changing its shapes, with the only values that are served.
_FIXED_ARGUMENTS = {
    "act_layer": ("relu",),
    "norm_layer": ("batchnorm2d",),
    "aa_stem_only": (True,),
    "output_stride": (32,),
}


#: timm's global poolings by its names; the "fast" ones compute the same.
_POOLINGS: dict[Any, Pooling] = {
    "avg": "avg",
    "fast": "avg",
    "fastavg": "avg",
    "max": "max",
    "fastmax": "max",
    "avgmax": "avgmax",
    "fastavgmax": "avgmax",
    "catavgmax": "catavgmax",
    "fastcatavgmax": "catavgmax",
}


def read(folder: Folder, document: dict[str, Any], *, test_size: bool = False) -> Checkpoint:
    """Reads a repository whose ``config.json`` is ``document``. Raises `CheckpointError`.

    ``test_size`` takes the larger images that some networks were also published for.
    """
    architecture = str(document["architecture"])
    # timm before 0.9 put the origin into the name, such as tv_densenet121.
    plain = architecture.removeprefix("tv_")
    if not plain.startswith(("vgg", "densenet")):
        raise CheckpointError(f"'{folder.name}' is a {architecture}; only VGGs and DenseNets can be served")
    settings, arguments = _settings(document), document.get("model_args") or {}
    _refuse_arguments(arguments, folder.name)
    values, sha256 = read_parts(folder)
    network = read_network(values, folder.name, Options(pooling=_wide_pooling(document, arguments)))
    configuration, state_dict = network.configuration, network.state_dict
    configuration = _as_timm_computes(configuration, architecture, _pooling(document, arguments, folder.name))
    return Checkpoint(
        configuration=configuration,
        state_dict=state_dict,
        preprocessing=_preprocessing(settings, folder.name, test_size=test_size),
        classes=_classes(document, configuration.num_classes, folder.name),
        activation="softmax",
        name=folder.name,
        source=f"timm {architecture}, {folder.source}",
        sha256=sha256,
    )


def _settings(document: dict[str, Any]) -> dict[str, Any]:
    """Returns ``pretrained_cfg``; for the oldest repositories the document itself."""
    settings = document.get("pretrained_cfg")
    return settings if isinstance(settings, dict) else document


def _refuse_arguments(arguments: dict[str, Any], name: str) -> None:
    for argument, accepted in _FIXED_ARGUMENTS.items():
        if argument in arguments and arguments[argument] not in accepted:
            raise CheckpointError(
                f"'{name}' was made with {argument}={arguments[argument]}, which cannot be served; "
                f"only {accepted[0]} can"
            )


def _pooling(document: dict[str, Any], arguments: dict[str, Any], name: str) -> Pooling:
    pooling = arguments.get("global_pool", document.get("global_pool", "avg"))
    if not isinstance(pooling, str) or pooling not in _POOLINGS:
        raise CheckpointError(
            f"'{name}' pools by '{pooling}', which cannot be served; {', '.join(_POOLINGS)} can"
        )
    return _POOLINGS[pooling]


def _wide_pooling(document: dict[str, Any], arguments: dict[str, Any]) -> Pooling | None:
    """Returns the pooling if it gives two values a channel, since the head's shapes cannot tell which comes first."""
    pooling = arguments.get("global_pool", document.get("global_pool", "avg"))
    return "catavgmax" if pooling == "catavgmax" else None


def _as_timm_computes(configuration: Configuration, architecture: str, pooling: Pooling) -> Configuration:
    if isinstance(configuration, VGGConfig):
        return replace(configuration, head="sliding", head_pooling=pooling)
    # The blur's filter is a constant that no file holds, so only the name tells it.
    return replace(configuration, head_pooling=pooling, blur=architecture.startswith("densenetblur"))


def _preprocessing(settings: dict[str, Any], name: str, *, test_size: bool) -> Preprocessing:
    """Returns the preprocessing of `timm.data.resolve_data_config` and `timm.data.transforms_imagenet_eval`."""

    def setting(key: str, default: Any) -> Any:
        return (settings.get(f"test_{key}") if test_size else None) or settings.get(key) or default

    try:
        _, height, width = (int(side) for side in setting("input_size", (3, 224, 224)))
        crop_pct = float(setting("crop_pct", _CROP_PCT))
        resize = math.floor(height / crop_pct), math.floor(width / crop_pct)
        mode = settings.get("crop_mode") or "center"
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise CheckpointError(f"'{name}' crops by '{mode}' to {height}x{width}, which cannot be served")
        return Preprocessing(
            resize=resize if mode == "squash" else resize[0],
            crop=(height, width),
            interpolation=settings.get("interpolation") or "bicubic",
            mean=_triple(settings.get("mean") or IMAGENET_MEAN),
            std=_triple(settings.get("std") or IMAGENET_STD),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the pretrained_cfg of '{name}' is not as timm writes it; save it again"
        ) from error


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in (values if len(values) == 3 else list(values) * 3))
    return red, green, blue


def _classes(document: dict[str, Any], count: int, name: str) -> tuple[ClassLabel, ...] | None:
    if count == 0:
        return None
    labels = document.get("label_names") or document.get("labels") or document.get("id2label")
    if not labels:
        return default_classes(count)
    if len(labels) != count:
        raise CheckpointError(
            f"config.json of '{name}' names {len(labels)} labels for {count} classes; mend it"
        )
    if isinstance(labels, dict):
        numbered = all(str(key).isdecimal() for key in labels)
        labels = [labels[key] for key in (sorted(labels, key=int) if numbered else labels)]
    names = [str(label) for label in labels]
    # Some repositories name ImageNet's classes by their WordNet ids.
    if names == [entry.wnid for entry in imagenet_classes()]:
        return imagenet_classes()
    return named_classes(names)
