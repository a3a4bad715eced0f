"""The model alone, in every runtime: images a second at each batch size, without server and decoding.

    python -m benchmarks.raw [--seconds 15] [--batches 1 4 8 16] [--models densenet121=random:0 ...]

What is served is measured through its door, `ModelRunner.run`: uint8 slots in, logits in the slots' rows out. The
others get what a program of their own would give them, float NCHW that is normalised already, in a static
shape. All take turns, so that a neighbour on the machine meets all of them. In a turn one batch follows the other, as
in a server that has work; the first, which finds threads asleep and caches full of others' weights, does not
count. Figures are medians of turns.
onnxruntime and int8 are in it where onnxruntime with onnx, and nncf, are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.jit._trace import TracerWarning

from benchmarks import report
from service.models import loader
from service.models.building import describe
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, resolve
from service.models.openvino_import import openvino
from service.models.runner import ModelRunner
from service.models.runtimes import Runtime, conversion, converting, int8
from service.models.runtimes.artifact import Converted, Graph
from service.models.runtimes.eager import Eager
from service.models.runtimes.openvino import OpenVino, runtime
from service.settings import available_cores
from service.shared.outputs import OutputKind

#: Seconds between two contestants: idle worker threads spin for a while before they sleep.
_PAUSE = 0.05
#: Least seconds of a turn.
_TURN = 0.2
_FEWEST_ROUNDS = 5
#: Contestants that the served default has to match or beat.
_RIVALS = ("OpenVINO raw", "ONNX Runtime raw")
_OURS = "ours"

#: A run of one batch of the size that it was made for.
Run = Callable[[], object]
#: Makes a run, given the batch size.
Make = Callable[[int], Run]


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Silences warnings of torch.jit.trace, whose output OpenVINO's frontend still reads."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        # It warns of shapes that become constants, which is wanted: an image has one size here.
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield


class Model:
    """One checkpoint and all contestants that can run it."""

    def __init__(self, name: str, weights: str, largest: int) -> None:
        self.name = name
        self.checkpoint: Checkpoint = resolve(weights, name if name in VARIANTS else "densenet121")
        self._image = self.checkpoint.preprocessing.shape
        self._largest = largest
        self._pixels = np.random.default_rng(0).integers(0, 256, (largest, *self._image), np.uint8)
        self._floats = self._load().normalise(torch.from_numpy(self._pixels)).contiguous()
        self._converted = conversion.convert(self._load(), self._image)

    def _load(self) -> loader.Uint8Model:
        return loader.load(self.checkpoint)

    def _prepared(self) -> Converted:
        model = self._load()
        return converting.convert(model, self.checkpoint, describe(self.checkpoint, model), "fp32")

    def contestants(self) -> dict[str, Make]:
        cores = available_cores()
        served: dict[str, Callable[[], Runtime]] = {
            "torch eager, folded": lambda: Eager(self._load(), "fp32"),
            _OURS: lambda: runtime(self._prepared(), "fp32", cores, self._image),
        }
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            served["ours, bf16"] = lambda: OpenVino(Graph(None, self._converted), "bf16", cores)
        if find_spec("nncf"):
            served["ours, int8"] = lambda: OpenVino(Graph(None, self._int8()), "int8", cores)
        found: dict[str, Make] = {
            "torch eager": self._torch(torch.contiguous_format),
            "torch eager, channels-last": self._torch(torch.channels_last),
            "OpenVINO raw": self._openvino(),
        }
        if find_spec("onnxruntime") and find_spec("onnx"):
            found["ONNX Runtime raw"] = self._onnxruntime()
        return found | {name: self._served(runtime()) for name, runtime in served.items()}

    def _torch(self, layout: torch.memory_format) -> Make:
        network = self._load().network.to(memory_format=layout)  # type: ignore[call-overload]
        floats = self._floats.contiguous(memory_format=layout)

        def make(batch: int) -> Run:
            def run() -> object:
                with torch.inference_mode():
                    return network(floats[:batch])

            return run

        return make

    def _openvino(self) -> Make:
        """Makes OpenVINO as in its documentation: converted, reshaped to the batch, compiled for latency."""
        network = self._load().network
        with tracing():
            traced = torch.jit.trace(network, self._floats[:1], check_trace=False)
            converted = openvino.convert_model(traced, example_input=self._floats[:1])

        def make(batch: int) -> Run:
            model = converted.clone()
            model.reshape(list(self._floats[:batch].shape))
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
            floats = openvino.Tensor(self._floats[:batch].numpy(), shared_memory=True)

            def run() -> object:
                request.set_input_tensor(floats)
                return request.infer()

            return run

        return make

    def _onnxruntime(self) -> Make:
        import onnxruntime

        def make(batch: int) -> Run:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = available_cores()
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = str(Path(folder) / "model.onnx")
                torch.onnx.export(
                    *(self._load().network, (self._floats[:batch],), path),
                    input_names=["x"],
                    dynamo=False,
                )
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            floats = {"x": self._floats[:batch].numpy()}
            return lambda: session.run(None, floats)

        return make

    def _served(self, runtime: Runtime) -> Make:
        runner = ModelRunner(runtime, self._image, self._largest)
        runner.warm_up()
        results = np.empty((self._largest, runner.results), np.float32)

        def make(batch: int) -> Run:
            slots, tasks = list(range(batch)), [OutputKind.CLASSIFY] * batch
            return lambda: runner.run(self._pixels, slots, tasks, results)

        return make

    def _int8(self) -> Any:
        """Quantises by the second recipe, which the demo model needs; random pixels cannot choose a recipe."""
        folded = int8.prepared(self._converted)
        _, recipe, *_ = int8.recipes(folded)
        with contextlib.redirect_stdout(sys.stderr):
            return int8.quantised(folded, list(self._pixels), recipe)


def measure(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Returns the median seconds of a batch of each run, in turns for about ``seconds``."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    chance, order = random.Random(0), list(runs)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[order[0]]) < _FEWEST_ROUNDS:
        chance.shuffle(order)  # so that the order differs each time
        for name in order:
            time.sleep(_PAUSE)
            times[name].append(turn(runs[name]))
    return {name: median(taken) for name, taken in times.items()}


def turn(run: Run) -> float:
    """Returns the mean seconds of a batch in an unbroken series."""
    run()
    began = ended = time.perf_counter()
    batches = 0
    while ended < began + _TURN:
        run()
        batches += 1
        ended = time.perf_counter()
    return (ended - began) / batches


def rows(model: Model, batches: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Yields images a second of every contestant, one row a batch size."""
    contestants = model.contestants()
    for batch in batches:
        runs = {name: make(batch) for name, make in contestants.items()}
        rates = {name: batch / taken for name, taken in measure(runs, seconds).items()}
        best = max(rates[name] for name in _RIVALS if name in rates)
        yield {"model": model.name, "batch": batch, **rates, "ours / best raw": round(rates[_OURS] / best, 3)}
        print(f"{model.name} at batch {batch}: {rates}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["densenet121=random:0", "vgg16=random:0", "demo=demo"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=15, help="for each model and batch size")
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    table: list[dict[str, Any]] = []
    for item in arguments.models:
        name, _, weights = item.partition("=")
        table += rows(Model(name, weights, max(arguments.batches)), arguments.batches, arguments.seconds)
        gc.collect()
    notes = [
        f"images a second; medians of turns of {_TURN:g} s, for {arguments.seconds:g} s a row",
        "ours: uint8 in the arena's slots to logits in their rows, normalising included; fp32 is the served default",
        "raw: float NCHW, normalised beforehand and not timed, static shape",
    ]
    report.publish("raw", "The model alone", {"Images a second": table}, notes)


if __name__ == "__main__":
    main()
