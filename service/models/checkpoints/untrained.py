"""Builds networks without weights, with torchvision's initialisation: one of the twelve, or a configuration's.

A configuration is one of: a directory or ``config.json`` of this project, of KerasHub or of timm, whose weights are
not read; the arguments of a KerasHub backbone alone, as its documentation shows them; the ``architecture`` of this
project's format.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.catalog import VARIANTS
from service.models.checkpoints import directory
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.folder import Folder, local
from service.models.checkpoints.keras import hub
from service.models.configuration import Configuration, VGGConfig, from_json
from service.models.network import build
from service.preprocess import Preprocessing


def untrained(model: str, seed: int, configuration: Path | None = None) -> Checkpoint:
    """Builds the network that ``torchvision.models.<model>()`` makes after ``torch.manual_seed(seed)``, bit-exact.

    With ``configuration``, a directory or a JSON file, it builds the network described there. The process's random
    state is unchanged. Raises `CheckpointError`.
    """
    plain = VARIANTS[model].configuration
    described = _Described(plain, Preprocessing()) if configuration is None else _described(configuration)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would initialise the GPU's as well.
        torch.default_generator.manual_seed(seed)
        network = build(described.configuration)
    count = described.configuration.num_classes
    return Checkpoint(
        configuration=described.configuration,
        state_dict=network.state_dict(),
        preprocessing=described.preprocessing,
        classes=default_classes(count) if count else None,
        activation="softmax",
        name=f"random:{seed}",
        source=f"untrained, torchvision's initialisation from seed {seed}",
        sha256=None,
    )


class _Described:
    def __init__(self, configuration: Configuration, preprocessing: Preprocessing) -> None:
        self.configuration, self.preprocessing = configuration, preprocessing


def _described(path: Path) -> _Described:
    folder = local(path if path.is_dir() else path.parent)
    document = folder.json("config.json" if path.is_dir() else path.name)
    if document is None:
        raise CheckpointError(f"'{path.name}' holds no config.json; give a directory or a file that is one")
    try:
        return _of_document(folder, document, path.name)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{path.name}' describes no VGG and no DenseNet ({error}); mend it") from error


def _of_document(folder: Folder, document: dict[str, Any], name: str) -> _Described:
    if document.get("format") == directory.FORMAT:
        return _Described(
            from_json(document["architecture"]), Preprocessing.from_json(document.get("preprocessing", {}))
        )
    if "family" in document:
        return _sized(from_json(document))
    if "registered_name" in document:
        return _sized(hub.described(folder, document))
    if "stackwise_num_repeats" in document:
        kind = "VGGBackbone" if "stackwise_num_filters" in document else "DenseNetBackbone"
        return _sized(hub.described(folder, {"registered_name": f"keras_hub>{kind}", "config": document}))
    if "architecture" in document:
        return _sized(_of_timm(document, name))
    raise CheckpointError(
        f"'{name}' is no configuration of this format, of KerasHub or of timm, nor the arguments of a KerasHub backbone"
    )


def _sized(configuration: Configuration) -> _Described:
    size = configuration.image_size if isinstance(configuration, VGGConfig) else None
    return _Described(configuration, Preprocessing(crop=size) if size else Preprocessing())


def _of_timm(document: dict[str, Any], name: str) -> Configuration:
    """Returns the configuration of one of the twelve by timm's name, with its number of classes."""
    architecture = re.sub(r"\..*$", "", str(document["architecture"])).removeprefix("tv_")
    arguments = document.get("model_args") or {}
    others = set(arguments) - {"num_classes", "in_chans", "global_pool", "drop_rate", "pretrained"}
    if architecture not in VARIANTS or others:
        raise CheckpointError(
            f"'{name}' describes a {architecture}{f' with {sorted(others)[0]}' if others else ''}; without weights "
            f"only the plain {', '.join(VARIANTS)} of timm can be built"
        )
    classes = int(arguments.get("num_classes", document.get("num_classes", 1000)))
    channels = int(arguments.get("in_chans", 3))
    configuration = replace(VARIANTS[architecture].configuration, num_classes=classes, channels=channels)
    return replace(configuration, head="sliding") if isinstance(configuration, VGGConfig) else configuration
