"""Scales of pixels before a network, by the names that an operator gives them."""

from __future__ import annotations

from dataclasses import replace

from service.models.checkpoints.checkpoint import Checkpoint
from service.preprocess import IMAGENET_MEAN, IMAGENET_STD

#: `keras.applications.imagenet_utils.preprocess_input`, mode "caffe": BGR less the training set's mean. The mean here
#: is red, green, blue, since the first convolution is reversed instead of the image.
_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)

#: Mean and standard deviation of pixels scaled to [0, 1], by name.
NORMALISING: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "raw": ((0.0,) * 3, (1 / 255,) * 3),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "tf": ((0.5,) * 3, (0.5,) * 3),
    "caffe": (_CAFFE_MEAN, (1 / 255,) * 3),
}


def with_pixels(checkpoint: Checkpoint, name: str | None) -> Checkpoint:
    """Returns the same network for pixels of the scale ``name``; unchanged for None."""
    if name is None:
        return checkpoint
    mean, std = NORMALISING[name]
    state_dict = dict(checkpoint.state_dict)
    if name == "caffe" and checkpoint.configuration.channels == 3:
        first = (
            "features.conv0.weight" if checkpoint.configuration.family == "densenet" else "features.0.weight"
        )
        state_dict[first] = state_dict[first].flip(1)
    preprocessing = replace(checkpoint.preprocessing, mean=mean, std=std)
    return replace(checkpoint, state_dict=state_dict, preprocessing=preprocessing)
