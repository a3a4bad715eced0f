"""The checkpoint: the result of reading any source of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from service.labels import ClassLabel
from service.models.configuration import Configuration
from service.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights together with everything that they were trained with.

    ``state_dict`` has torchvision's key names and floats as they were stored. ``classes`` is None for a network
    without a head, which has features and no logits. ``activation`` turns logits into scores. ``name`` is the
    weights' name in answers, ``source`` says where they came from without naming a folder of this host, and
    ``sha256`` is the hash of the file that holds them. ``feature_pooling`` is how the model itself pooled its
    features, the default of `/features`. ``files`` maps each file name that the reading looked for to its path, or to
    None if it was absent; it is empty for weights that come from no file.
    """

    configuration: Configuration
    state_dict: dict[str, Tensor]
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...] | None
    activation: Activation
    name: str
    source: str
    sha256: str | None
    feature_pooling: Literal["avg", "max"] = "avg"
    files: Mapping[str, Path | None] = field(default_factory=dict, compare=False)
