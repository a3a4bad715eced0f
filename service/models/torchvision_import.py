"""Imports torchvision where its compiled operators may be missing.

PyPI's Linux torchvision is built for CUDA. Beside a CPU-only torch its operator library does not load, and ``import
torchvision`` ends with ``operator torchvision::nms does not exist``, because it registers fake kernels for two
operators that were never declared. This project runs no operator of torchvision's, so declaring the two schemas is
enough, and only where the library does not load.

Every module imports torchvision from here: ``from service.models.torchvision_import import torchvision``.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; install imagenet-serve again")
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def _declare_missing_operators() -> torch.library.Library | None:
    if _operators_load() or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


#: Kept alive: a `torch.library.Library` withdraws its declarations when it is collected.
_library = _declare_missing_operators()

import torchvision  # noqa: E402  # after the declarations that it needs
import torchvision.models  # noqa: E402

__all__ = ["torchvision"]
