"""The twelve variants as data: the configuration of each, and its published figures.

The figures are torchvision's own (``<Name>_Weights.IMAGENET1K_V1.meta``): accuracy on ImageNet's validation set with
one centre crop of 224x224, operations as 10^9 multiply-adds for one image. A test compares each figure with the
installed torchvision. This module imports no torch, since front-ends read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.models.configuration import Configuration, DenseNetConfig, VGGConfig

#: torchvision's name of these weights; each network here has one set.
WEIGHTS_NAME = "IMAGENET1K_V1"


@dataclass(frozen=True)
class Variant:
    """One network by its torchvision name, with the published figures of its pretrained weights.

    ``gflops`` counts 10^9 multiply-adds an image, ``top1`` and ``top5`` are percent,
    ``download_mb`` is 2^20 bytes, ``weights_file`` ends in the first hex digits of its SHA-256.
    """

    name: str
    configuration: Configuration
    parameters: int
    gflops: float
    top1: float
    top5: float
    download_mb: float
    weights_file: str
    weights_name: str = WEIGHTS_NAME


def _vgg(repeats: tuple[int, ...], batch_norm: bool = False) -> VGGConfig:
    filters = (64, 128, 256, 512, 512)
    return VGGConfig(
        stages=tuple((width,) * count for width, count in zip(filters, repeats, strict=True)),
        batch_norm=batch_norm,
    )


_DENSENET121, _DENSENET169 = DenseNetConfig((6, 12, 24, 16)), DenseNetConfig((6, 12, 32, 32))
_DENSENET161 = DenseNetConfig((6, 12, 36, 24), growth_rate=48, stem_width=96)
_DENSENET201 = DenseNetConfig((6, 12, 48, 32))
_VGG11, _VGG13, _VGG16, _VGG19 = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)

_ALL = (
    Variant("vgg11", _vgg(_VGG11), 132_863_336, 7.609, 69.02, 88.628, 506.84, "vgg11-8a719046.pth"),
    Variant("vgg11_bn", _vgg(_VGG11, True), 132_868_840, 7.609, 70.37, 89.81, 506.881, "vgg11_bn-6002323d.pth"),
    Variant("vgg13", _vgg(_VGG13), 133_047_848, 11.308, 69.928, 89.246, 507.545, "vgg13-19584684.pth"),
    Variant("vgg13_bn", _vgg(_VGG13, True), 133_053_736, 11.308, 71.586, 90.374, 507.59, "vgg13_bn-abd245e5.pth"),
    Variant("vgg16", _vgg(_VGG16), 138_357_544, 15.47, 71.592, 90.382, 527.796, "vgg16-397923af.pth"),
    Variant("vgg16_bn", _vgg(_VGG16, True), 138_365_992, 15.47, 73.36, 91.516, 527.866, "vgg16_bn-6c64b313.pth"),
    Variant("vgg19", _vgg(_VGG19), 143_667_240, 19.632, 72.376, 90.876, 548.051, "vgg19-dcbb9e9d.pth"),
    Variant("vgg19_bn", _vgg(_VGG19, True), 143_678_248, 19.632, 74.218, 91.842, 548.143, "vgg19_bn-c79401a0.pth"),
    Variant("densenet121", _DENSENET121, 7_978_856, 2.834, 74.434, 91.972, 30.845, "densenet121-a639ec97.pth"),
    Variant("densenet161", _DENSENET161, 28_681_000, 7.728, 77.138, 93.56, 110.369, "densenet161-8d451a50.pth"),
    Variant("densenet169", _DENSENET169, 14_149_480, 3.36, 75.6, 92.806, 54.708, "densenet169-b2777c0a.pth"),
    Variant("densenet201", _DENSENET201, 20_013_928, 4.291, 76.896, 93.37, 77.373, "densenet201-c1103571.pth"),
)  # fmt: skip

#: Variants by name, in the contract's order.
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}

#: The variant if neither a setting nor the weights name one.
DEFAULT = "densenet121"
