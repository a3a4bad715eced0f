"""The peers' common work on a JPEG: torchvision's preset and network. Needs torch, torchvision and Pillow only."""

from __future__ import annotations

import io

import torch
from PIL import Image

try:
    from torchvision import models, transforms
except RuntimeError:  # torchvision of PyPI beside a CPU build of torch: two operators are declared, none used
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models, transforms

#: torchvision's ``ImageClassification`` preset, spelled out.
TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)
#: Most images in a forward pass, for all servers with batching.
BATCH = 8
#: Seconds that a server with batching may wait for more images.
WAIT = 0.01


def network() -> torch.nn.Module:
    """Returns densenet121 with the weights of ``random:0``."""
    torch.manual_seed(0)
    return models.densenet121(weights=None).eval()


def pixels(jpeg: bytes) -> torch.Tensor:
    """Returns float32 ``[3, 224, 224]``."""
    return TRANSFORM(Image.open(io.BytesIO(jpeg)).convert("RGB"))


@torch.inference_mode()
def classify(model: torch.nn.Module, batch: torch.Tensor) -> list[list[dict[str, float]]]:
    """Returns the five best classes of each image of float32 ``[N, 3, 224, 224]``."""
    return best(model(batch))


def best(logits: torch.Tensor) -> list[list[dict[str, float]]]:
    """Returns the five best classes of each row."""
    probabilities, indices = logits.softmax(1).topk(5)
    return [
        [
            {"class_id": index, "probability": value}
            for index, value in zip(row.tolist(), scores.tolist(), strict=True)
        ]
        for row, scores in zip(indices, probabilities, strict=True)
    ]
