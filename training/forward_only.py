"""Runs a frozen network, or a part of one, forward only; on a CPU by OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn


def compiled(module: nn.Module, shape: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """Compiles ``module`` in evaluation mode, with its present weights, for float32 ``[N, *shape]`` on the CPU.

    It uses as many threads as torch has in this process.
    """
    from service.models.openvino_import import openvino

    with (
        warnings.catch_warnings()
    ):  # OpenVINO's frontend reads what torch.jit.trace writes, which torch deprecates
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        model = openvino.convert_model(module.eval(), example_input=torch.zeros(1, *shape))
    model.reshape([-1, *shape])
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    runnable = openvino.Core().compile_model(model, "CPU", options)
    return lambda inputs: torch.from_numpy(runnable(inputs.numpy())[0])


def evaluated(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Does the same with torch, for other devices."""
    module.eval()

    def run(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = module(inputs)
        return result.clone()

    return run
