"""State dicts in ``.pth`` and ``.safetensors`` files: read without running anything, brought to one form."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from service.errors import CheckpointError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

#: Where training scripts put the state dict. The averaged weights first: they are what gets evaluated.
_WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model")

#: What `DataParallel` and `torch.compile` put before every key.
_PREFIXES = ("module.", "_orig_mod.")

#: torchvision before 0.3 wrote ``denselayer1.norm.1.weight`` for ``denselayer1.norm1.weight``, and its
#: published DenseNet files still do (``torchvision.models.densenet._load_state_dict``).
_OLD_DENSENET_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under torchvision's (or timm's) key names, on the CPU.

    Always read with ``weights_only``: a pickle that would run code is refused. Wrappers and prefixes of
    training scripts are taken off and old DenseNet names renewed. Raises `CheckpointError`.
    """
    document = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state_dict = _without_prefixes(_unwrapped(document, path.name))
    renewed = {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in state_dict.items()}
    return _with_batch_counters(_checked(renewed, path.name))


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path.name}' is no safetensors file, or a damaged one; fetch it again"
        ) from error


#: What the restricted unpickler meets on bytes that are no pickle of ``torch.save``'s.
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def _read_pickle(path: Path) -> Any:
    try:
        # torchvision's own training script keeps its arguments beside the weights.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # A word about pickle protocols; the file is judged by what it holds.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path.name}' is damaged, or holds more than tensors and was not run; "
            "save model.state_dict() with torch.save and give that file"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"'{path.name}' is no file of torch.save's, or a damaged one; fetch it again"
        ) from error


def _unwrapped(document: Any, name: str) -> dict[str, Any]:
    while isinstance(document, dict):
        wrapper = next((key for key in _WRAPPERS if isinstance(document.get(key), dict)), None)
        if wrapper is None:
            return document
        document = document[wrapper]
    raise CheckpointError(f"'{name}' holds no state dict; save model.state_dict() and give that file")


def _without_prefixes(state_dict: dict[str, Any]) -> dict[str, Any]:
    for prefix in _PREFIXES * 2:
        if state_dict and all(str(key).startswith(prefix) for key in state_dict):
            state_dict = {str(key).removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def _checked(state_dict: dict[str, Any], name: str) -> dict[str, Tensor]:
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"'{name}' holds '{key}', which is no tensor; save model.state_dict() alone"
            )
        if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"'{name}' holds '{key}' as {value.dtype}; only float weights can be served"
            )
    return state_dict


def _with_batch_counters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old files lack the counter that batch norm keeps while it trains; evaluation never reads it."""
    for key in [key for key in state_dict if key.endswith("running_mean")]:
        counter = key.removesuffix("running_mean") + "num_batches_tracked"
        state_dict.setdefault(counter, torch.zeros((), dtype=torch.long))
    return state_dict
