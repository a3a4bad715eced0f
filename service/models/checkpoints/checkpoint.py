"""What every origin of weights is turned into."""

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
    """Weights together with what they were trained with, so that none of it can drift apart.

    ``state_dict`` has torchvision's key names and floats as they were stored. ``classes`` is None for a
    network without a head: it has features, and nothing to classify with. ``activation`` is what turns
    logits into scores. ``name`` is what answers call the weights, ``source`` says where they came from
    without naming a folder of this host, ``sha256`` is that of the file that holds them. ``feature_pooling`` is how
    the model itself ended in features, the default of `/features`. ``files`` are those that
    reading it looked for, by name, None where there was none; empty for weights that come from no file.
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
