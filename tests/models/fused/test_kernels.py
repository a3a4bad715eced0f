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
    (cudnn,) = faster.pop("conv_relu")
    faster["first_conv"] = [version for version in faster["first_conv"] if version is not cudnn]
    found = ops.chosen(faster, torch.device("cpu"), dtype)
    assert found.names == tuple(faster), (dtype, found, missing)
    assert found.refused == (), found.refused
x = torch.full((1, 16, 4, 4), float("nan")).to(memory_format=torch.channels_last)
out = torch.zeros(1, 16, 2, 2).to(memory_format=torch.channels_last)
norm = Norm(torch.nn.BatchNorm2d(16).eval().requires_grad_(False))
faster["max_pool"][0](x, 2, 2, 0, out)
assert out.isnan().all()
for operation in ("norm_relu", "norm_relu_pool"):
    assert faster[operation][0](x, norm).isnan().all(), operation
assert faster["norm_relu_conv"][0](x, norm, torch.ones(16, 16), torch.ones(16)).isnan().all()
print("equal")
"""


_RESIZE = """
import random
import numpy, torch
from service.models.cuda.resize import PassCache, by_torch
from service.models.cuda.resize_kernel import by_triton
from service.preprocess import Preprocessing

torch.set_num_threads(1)
chance = random.Random(1)
def photo(channels):
    shape = chance.randint(1, 30), chance.randint(4, 30), channels
    seed = chance.randrange(1000)
    return torch.from_numpy(numpy.random.default_rng(seed).integers(0, 256, shape, numpy.uint8))
for number in range(8):
    pair = chance.randint(2, 16), chance.randint(2, 16)
    resize = chance.choice([None, pair[0], pair])
    crop = chance.randint(1, 12), chance.randint(1, 12)
    how = ("nearest", "bilinear", "bicubic", "lanczos")[number % 4]
    spec = Preprocessing(resize=resize, crop=crop, interpolation=how)
    # Grey ones repeat a channel, and a decoder's rows may be longer than a photo's.
    photos = [photo(3), photo(3), photo(1).expand(-1, -1, 3), photo(3)[:, :-3] if number else photo(3)]
    photos = [each for each in photos if each.shape[1]]
    cache = PassCache(spec, torch.device("cpu"))
    passes = [cache.of(each.shape[0], each.shape[1]) for each in photos]
    assert torch.equal(by_triton(photos, passes, spec.shape), by_torch(photos, passes, spec.shape)), spec
print("equal")
"""


@pytest.mark.parametrize("code", [_CODE, _RESIZE])
def test_the_kernels_say_what_torch_says_and_keep_nan(code: str) -> None:
    import triton

    if triton.__version__ < "3.7":
        pytest.skip("Triton's interpreter before 3.7 cannot work with NumPy 2.4 and later")
    # Triton reads the variable when a kernel is declared: a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_triton_s_front_end_takes_every_kernel_as_the_networks_launch_it(precision: str) -> None:
    from benchmarks.paper.kernels import front_end, specialised
    from benchmarks.paper.trace import Paper, resizing
    from service.models.catalog import VARIANTS

    launches = []
    for model in ("densenet161", "vgg11_bn"):
        paper = Paper(VARIANTS[model].configuration, precision, fuse=True)
        launches += [launch for images in (1, 64) for launch in paper.run(images, (224, 224, 3)).launches]
    found = specialised([*launches, resizing(2, (224, 224, 3))])
    assert {kernel.name for kernel in found} == {
        "_normalise", "_norm_relu", "_norm_relu_pool", "_max_pool", "_norm_relu_matmul", "_conv3x3",
        "_first_conv", "resize",
    }  # fmt: skip
    for kernel in found:
        assert "tt.store" in front_end(kernel), kernel.name
