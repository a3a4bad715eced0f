"""Winograd's convolutions beside direct ones, for each layer of VGG: the cases in which they are faster.

    python -m benchmarks.winograd [--batches 1 4 8] [--seconds 4]

Two equal layers in a row, each with its bias and ReLU, as OpenVINO runs them in fp32 on all cores; in turns, as in
``benchmarks.raw``. `service.models.runtimes.winograd` has its limits from here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import raw, report
from service.models.openvino_import import openvino
from service.models.runtimes import winograd
from service.settings import available_cores

#: Channels and side of the maps in each stage of a VGG, for images of 224 x 224.
LAYERS = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))


def run_of(layers: nn.Module, images: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Returns a function that runs the layers."""
    with raw.tracing():
        traced = torch.jit.trace(layers.requires_grad_(False), images, check_trace=False)
        model = openvino.convert_model(traced, example_input=images)
    model.reshape(list(images.shape))
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": available_cores(),
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    pixels = openvino.Tensor(images.numpy(), shared_memory=True)

    def run() -> NDArray[np.float32]:
        request.set_input_tensor(pixels)
        request.infer()
        answer: NDArray[np.float32] = request.get_output_tensor().data
        return answer

    return run


def row(channels: int, side: int, batch: int, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    direct = nn.Sequential(*(nn.Sequential(each, nn.ReLU()) for each in convolutions))
    fewer = nn.Sequential(
        *(nn.Sequential(winograd.WinogradConv2d(each, side, side), nn.ReLU()) for each in convolutions)
    )
    images = torch.randn(batch, channels, side, side).relu()
    first, second = run_of(direct, images), run_of(fewer, images.permute(2, 3, 0, 1).contiguous())
    taken = raw.measure({"direct": first, "winograd": second}, seconds)
    wanted, got = first(), second().transpose(2, 3, 0, 1)
    return {
        "channels": channels,
        "map": f"{side} x {side}",
        "batch": batch,
        "direct, ms": round(1000 * taken["direct"] / 2, 2),
        "Winograd, ms": round(1000 * taken["winograd"] / 2, 2),
        "direct / Winograd": round(taken["direct"] / taken["winograd"], 2),
        "used": "yes" if winograd.suits(convolutions[0], side, side) else "no",
        "difference / largest": f"{np.abs(wanted - got).max() / np.abs(wanted).max():.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row")
    given = parser.parse_args()
    rows = []
    for channels, side in LAYERS:
        for batch in given.batches:
            rows.append(row(channels, side, batch, given.seconds))
            print(rows[-1], file=sys.stderr)
    notes = ["milliseconds of one layer; two in a row are timed"]
    report.publish("winograd", "Convolutions of 3 x 3, direct and Winograd's", {"Layers of VGG": rows}, notes)


if __name__ == "__main__":
    main()
