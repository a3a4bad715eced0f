"""Builds a network in evaluation mode from a configuration and weights; it takes uint8 images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.errors import CheckpointError
from service.models import gradients
from service.models.checkpoints import Checkpoint
from service.models.gradients import Head
from service.models.named_heads import layers_of
from service.models.network import Network, build

#: Weights of red, green and blue in Pillow's ``convert("L")``: ITU-R 601-2 luma in units of 2^-16, rounded.
LUMA = (19595, 38470, 7471)
LUMA_HALF, LUMA_BITS = 1 << 15, 16


class Uint8Model(nn.Module):
    """A network whose first layer normalises: uint8 ``[N, H, W, 3]`` → float32 logits ``[N, classes]``.

    So pixels cross processes and buses as bytes, and no caller can forget to normalise. A network of one channel sees
    the grey levels of its RGB images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: Network, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean[:channels]), persistent=False)
        self.register_buffer("std", torch.tensor(std[:channels]), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits, float ``[N, classes]``, of uint8 ``[N, H, W, 3]``.

        Raises `CheckpointError` for a checkpoint without a head.
        """
        return self.forward_head(self.forward_features(pixels))

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Returns the last block's output, float ``[N, C, h, w]``, of uint8 ``[N, H, W, 3]``."""
        return self.network.forward_features(self.normalise(pixels))

    def forward_head(self, features: Tensor) -> Tensor:
        """Returns logits, float ``[N, classes]``, of the output of `forward_features`."""
        return self.network.forward_head(features)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Returns float ``[N, C, H, W]`` of uint8 ``[N, H, W, 3]``; each channel is ``(pixel / 255 - mean) / std``.

        The operations are those of torchvision's preset in its order (``pil_to_tensor``, ``convert_image_dtype``,
        ``normalize``), so fp32 gives the same bits. Any regrouping, a multiply-add for instance, would round
        differently. The memory layout stays channels last.
        """
        if self.channels == 1 and pixels.shape[-1] == 3:
            pixels = grey(pixels)
        if pixels.shape[-1] != self.channels:
            raise CheckpointError(
                f"the network takes images of {self.channels} channels; only one or three can be served"
            )
        width = pixels.shape[2]
        lines = pixels.flatten(2).to(self.mean.dtype)  # vectors need a longer axis than the channels
        normalised = lines.div(255).sub(self.mean.repeat(width)).div(self.std.repeat(width))
        return normalised.view(*pixels.shape).permute(0, 3, 1, 2)


def load(checkpoint: Checkpoint) -> Uint8Model:
    """Loads the checkpoint's network on the CPU in fp32, in evaluation mode and without gradients.

    The network is built without memory and takes the checkpoint's tensors: initialising a VGG would cost seconds.
    Raises `CheckpointError` unless the tensors' names and shapes are exactly the network's.
    """
    configuration, preprocessing = checkpoint.configuration, checkpoint.preprocessing
    with torch.device("meta"):
        network = build(configuration)
    tensors = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in checkpoint.state_dict.items()
    }
    _refuse_misfit(network.state_dict(), tensors, checkpoint.name)
    network.load_state_dict(tensors, strict=True, assign=True)
    model = Uint8Model(network, configuration.channels, preprocessing.mean, preprocessing.std)
    return model.eval().requires_grad_(False)


def grey(pixels: Tensor) -> Tensor:
    """Converts uint8 ``[N, H, W, 3]`` to Pillow's ``convert("L")``, int32 ``[N, H, W, 1]``."""
    red, green, blue = pixels.int().unbind(-1)
    luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return ((luma + LUMA_HALF) >> LUMA_BITS).unsqueeze(-1)


def _refuse_misfit(wanted: dict[str, Tensor], given: dict[str, Tensor], name: str) -> None:
    for key in [*wanted, *given]:
        if key not in given:
            raise CheckpointError(f"the weights '{name}' lack {key}; give a whole checkpoint")
        if key not in wanted:
            raise CheckpointError(f"the weights '{name}' hold {key}; their network has no such tensor")
        if given[key].shape != wanted[key].shape:
            raise CheckpointError(
                f"the weights '{name}' hold {key} as {list(given[key].shape)} and their network needs "
                f"{list(wanted[key].shape)}"
            )


def head_of(model: Uint8Model, checkpoint: Checkpoint) -> Head | None:
    """Returns the layers behind the features with the network's arrays; None without a head."""
    if checkpoint.classes is None:
        return None
    layers = layers_of(checkpoint.configuration)
    state = model.network.state_dict()
    arrays: dict[str, NDArray[np.float32]] = {
        name: state[name].detach().cpu().float().numpy() for name in gradients.array_names(layers)
    }
    return Head(layers, arrays)
