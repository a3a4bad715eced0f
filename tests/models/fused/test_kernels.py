"""The Triton kernels, without a GPU: what they compute by Triton's interpreter, and that its compiler takes them.

The compiler comes with the triton package: everything but the last step, a GPU's machine code, which `make verify-gpu`
makes. The interpreter does not look at what the compiler refuses (annotations, names): neither replaces the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

_CODE = """
import torch
from service.models.fused.norm import Norm
from service.models.fused import ops

torch.set_num_threads(1)
for dtype in (torch.float32, torch.float16):
    faster, missing = ops.candidates()
    del faster["conv_relu"]  # cuDNN's
    found = ops.chosen(faster, torch.device("cpu"), dtype)
    assert found.names == tuple(faster), (dtype, found, missing)
x = torch.full((1, 16, 4, 4), float("nan")).to(memory_format=torch.channels_last)
out = torch.zeros(1, 16, 2, 2).to(memory_format=torch.channels_last)
norm = Norm(torch.nn.BatchNorm2d(16).eval().requires_grad_(False))
faster["max_pool"](x, 2, 2, 0, out)
assert out.isnan().all()
for operation in ("norm_relu", "norm_relu_pool"):
    assert faster[operation](x, norm).isnan().all(), operation
assert faster["norm_relu_conv"](x, norm, torch.ones(16, 16), torch.ones(16)).isnan().all()
print("equal")
"""


def test_the_kernels_say_what_torch_says_and_keep_nan() -> None:
    import triton

    if triton.__version__ < "3.7":
        pytest.skip("Triton's interpreter before 3.7 cannot work with NumPy 2.4 and later")
    # Triton reads the variable when a kernel is declared: a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_triton_s_front_end_takes_every_kernel_as_the_networks_launch_it(precision: str) -> None:
    from benchmarks.paper.kernels import front_end, specialised
    from benchmarks.paper.trace import Paper
    from service.models.catalog import VARIANTS

    launches = []
    for model in ("densenet161", "vgg11_bn"):
        paper = Paper(VARIANTS[model].configuration, precision, fuse=True)
        launches += [launch for images in (1, 64) for launch in paper.run(images, (224, 224, 3)).launches]
    found = specialised(launches)
    assert {kernel.name for kernel in found} == {
        "_normalise", "_norm_relu", "_norm_relu_pool", "_max_pool", "_norm_relu_matmul", "_conv3x3",
    }  # fmt: skip
    for kernel in found:
        assert "tt.store" in front_end(kernel), kernel.name
