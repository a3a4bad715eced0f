"""The shape of a network as data: no tensor, no torch.

A configuration together with a state dict of the same keys is a model. Parameter names are torchvision's for every
configuration, so a state dict is read without knowing its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from service.errors import CheckpointError
from service.models import head as heads
from service.models.head import Layer, Pooling

#: How a VGG's head turns the last stage's map into logits, in the words of its origin.
#:
#:     adaptive        torchvision: averaged to 7x7 whatever its size, then three dense layers
#:     sliding         timm: the first layer slides as a 7x7 convolution (a smaller map is brought to 7x7),
#:                     the hidden maps are pooled, then the last dense layer
#:     valid           KerasHub since 0.27: as sliding, but a map below 7x7 is refused
#:     flatten         KerasHub and KerasCV: three dense layers on the flattened map, so only one image size
#:     legacy          KerasHub before 0.27: the 7x7 convolution is padded to "same", and ``head_activation``
#:                     follows both hidden layers
#:     legacy-flatten  KerasHub before 0.27, flattened: both convolutions, and three dense layers after them
Head = Literal["adaptive", "sliding", "valid", "flatten", "legacy", "legacy-flatten"]

Padding = Literal["symmetric", "same"]

#: Limits of a configuration, several times the largest published network of the two families. A configuration may
#: come from a stranger's file; one of a billion layers must be refused and not exhaust the host's memory.
_MAX_LAYERS = 1000
_MAX_WIDTH = 1 << 16
_MAX_CLASSES = 1 << 20


@dataclass(frozen=True)
class VGGConfig:
    """A VGG (Simonyan and Zisserman, "Very Deep Convolutional Networks", arXiv:1409.1556).

    ``stages`` holds, for each stage, the filters of each of its 3x3 convolutions; a 2x2 max-pool ends every stage.
    VGG16 is ``((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)``. ``hidden`` is the width of the head's
    second layer, ``hidden_first`` that of its first where it differs, ``hidden_dense`` that of the two layers which
    only a legacy flattened head has. The flattening heads fit one ``image_size`` (height, width). ``layers``
    describes any other head layer by layer (`service.models.head`); then the other head fields are ignored.
    ``num_classes`` 0 is a network without a head.
    """

    stages: tuple[tuple[int, ...], ...]
    batch_norm: bool = False
    hidden: int = 4096
    num_classes: int = 1000
    channels: int = 3
    head: Head = "adaptive"
    head_pooling: Pooling = "avg"
    head_activation: str = "relu"
    hidden_first: int | None = None
    hidden_dense: int | None = None
    image_size: tuple[int, int] | None = None
    layers: tuple[Layer, ...] = ()

    family: ClassVar[Literal["vgg"]] = "vgg"

    def __post_init__(self) -> None:
        widths = [width for stage in self.stages for width in stage]
        _count("number of layers", len(widths), most=_MAX_LAYERS)
        for width in (*widths, self.hidden, self.hidden_first or 1, self.hidden_dense or 1):
            _count("widths", width)
        _count("channels", self.channels)
        _count("num_classes", self.num_classes, least=0, most=_MAX_CLASSES)
        for side in self.image_size or ():
            _count("image_size", side)
        _choice("head", self.head, get_args(Head))
        _choice("head_pooling", self.head_pooling, get_args(Pooling))
        _check_head(self)

    @classmethod
    def from_stackwise(cls, repeats: Sequence[int], filters: Sequence[int], **others: Any) -> VGGConfig:
        """Makes a configuration from KerasHub's ``stackwise_num_repeats`` and ``stackwise_num_filters`` by stage."""
        _count("number of layers", sum(repeats), most=_MAX_LAYERS)
        stages = tuple((width,) * count for width, count in zip(filters, repeats, strict=True))
        return cls(stages=stages, **others)

    @property
    def width(self) -> int:
        """Channels of the last stage's map."""
        return next(stage[-1] for stage in reversed(self.stages) if stage)

    @property
    def pooled_hidden(self) -> int:
        """Number of values after the hidden maps of a sliding head are pooled."""
        return self.hidden * (2 if self.head_pooling.startswith("cat") else 1)

    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width of the last stage's map for an image of (height, width)."""
        height, width = image_size
        return height >> len(self.stages), width >> len(self.stages)


@dataclass(frozen=True)
class DenseNetConfig:
    """A DenseNet (Huang et al., "Densely Connected Convolutional Networks", arXiv:1608.06993), bottleneck form.

    ``blocks`` is the number of layers of each dense block, ``compression`` the share of channels that a transition
    keeps (rounded down). The stem is one convolution of ``stem_width`` filters and, with ``stem_pool``, a 3x3
    max-pool of stride 2.

    ``deep_stem`` puts two 3x3 convolutions of these widths before the stem's own, which then is 3x3 too; ``blur``
    puts an antialiased pool after it (timm's ``densenetblur121d``). ``padding`` ``"same"`` is TensorFlow's padding in
    the stem: where the total is odd, the end gets one pixel more. ``epsilon`` is that of every batch norm. ``layers``
    describes a head of more than pooling and one dense layer (`service.models.head`); then ``head_pooling`` is
    ignored. ``num_classes`` 0 is a network without a head.
    """

    blocks: tuple[int, ...]
    growth_rate: int = 32
    stem_width: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    num_classes: int = 1000
    channels: int = 3
    head_pooling: Pooling = "avg"
    padding: Padding = "symmetric"
    epsilon: float = 1e-5
    deep_stem: tuple[int, int] | None = None
    blur: bool = False
    layers: tuple[Layer, ...] = ()

    family: ClassVar[Literal["densenet"]] = "densenet"

    def __post_init__(self) -> None:
        _count("number of layers", sum(self.blocks), most=_MAX_LAYERS)
        widths = (self.growth_rate, self.stem_width, *(self.deep_stem or ()))
        for width in (*self.blocks, *widths, self.bottleneck, self.stem_kernel, self.stem_stride):
            _count("widths", width)
        _count("channels", self.channels)
        _count("num_classes", self.num_classes, least=0, most=_MAX_CLASSES)
        if not 0 < self.compression <= 1:
            raise CheckpointError("the configuration's compression must lie between 0 and 1")
        _choice("padding", self.padding, get_args(Padding))
        _choice("head_pooling", self.head_pooling, get_args(Pooling))
        _check_head(self)

    @property
    def width(self) -> int:
        """Channels of the last block's map."""
        width = self.stem_width
        for number, layers in enumerate(self.blocks, start=1):
            width += layers * self.growth_rate
            if number < len(self.blocks):
                width = int(width * self.compression)
        return width

    @property
    def pooled_width(self) -> int:
        """Number of values after the last block's map is pooled."""
        return self.width * (2 if self.head_pooling.startswith("cat") else 1)


Configuration = VGGConfig | DenseNetConfig

_FAMILIES: dict[str, type[VGGConfig] | type[DenseNetConfig]] = {"vgg": VGGConfig, "densenet": DenseNetConfig}


def to_json(configuration: Configuration) -> dict[str, Any]:
    """Returns the configuration as plain JSON values, with its family under ``"family"``."""
    document = {"family": configuration.family, **asdict(configuration)}
    return {**document, "layers": heads.to_json(configuration.layers)}


def from_json(document: dict[str, Any]) -> Configuration:
    """Reads a configuration that `to_json` wrote. Raises `CheckpointError` for anything else."""
    if not isinstance(document, dict):
        raise CheckpointError("the configuration must be a JSON object")
    fields = dict(document)
    layers = heads.from_json(fields.pop("layers", []))
    family = _FAMILIES.get(str(fields.pop("family", None)))
    if family is None:
        raise CheckpointError("the configuration's family must be 'vgg' or 'densenet'")
    try:
        return family(**{name: _tuples(value) for name, value in fields.items()}, layers=layers)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration does not fit the {family.family} family: {error}"
        ) from error


def _count(what: str, value: Any, *, least: int = 1, most: int = _MAX_WIDTH) -> None:
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(f"the configuration's {what} must be whole and from {least} to {most}")


def _check_head(configuration: Configuration) -> None:
    if configuration.layers:
        heads.check(configuration.layers, configuration.width, configuration.num_classes)


def _choice(what: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise CheckpointError(f"the configuration's {what} must be one of {', '.join(accepted)}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
