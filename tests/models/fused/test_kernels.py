"""The Triton kernels themselves, by Triton's interpreter: it needs no GPU. Triton comes with torch's CUDA build."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

_CODE = """
import torch
from service.models.fused import kernels, ops

torch.set_num_threads(1)
for dtype in (torch.float32, torch.float16):
    candidates = {"norm_relu": kernels.norm_relu, "norm_relu_conv": kernels.norm_relu_conv}
    found = ops.chosen(candidates, torch.device("cpu"), dtype)
    assert found.names == tuple(candidates), (dtype, found)
print("equal")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_say_what_torch_says() -> None:
    # Triton reads the variable when a kernel is declared: a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr
