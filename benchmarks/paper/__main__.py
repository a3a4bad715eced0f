"""Tables of the GPU path without a GPU: compiled kernels, bytes moved by networks, and expected times.

    python -m benchmarks.paper [--models ...] [--precisions fp16 ...] [--architectures 80 ... 100] [--arithmetic]

Exit code 1 when a kernel does not compile, or spills more than a few registers. ``make verify-gpu`` runs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from benchmarks import report
from benchmarks.paper import expected
from benchmarks.paper.trace import Launch, Paper, Trace, resizing
from service.models.catalog import VARIANTS
from service.shared.buckets import SIZES

Row = dict[str, Any]

_IMAGE = (224, 224, 3)


#: Most bytes of a thread's registers that may spill to memory. ptxas trades a few for room for another block,
#: differently in each version and architecture: at most 56 with Triton 3.6 to 3.9 on sm_80 to sm_89.
_SPILLED = 64


def networks(models: Iterable[str], precisions: Iterable[str]) -> tuple[list[Row], list[Trace], list[Launch]]:
    """Returns the bytes and launches of each network, the traces of the largest bucket, and the launches of all
    buckets."""
    rows, traces, launches = [], [], []
    for model in models:
        for precision in precisions:
            paper = Paper(VARIANTS[model].configuration, precision, fuse=True)
            found = [paper.run(images, _IMAGE) for images in SIZES]
            largest = found[-1]
            small = Paper(VARIANTS[model].configuration, precision, fuse=True, version=1).run(1, _IMAGE)
            own = [launch for trace in (*found, small) for launch in trace.launches]
            rows.append(
                {
                    "network": model,
                    "precision": precision,
                    "kernels": len(largest.operations),
                    "MB an image": round((largest.bytes - largest.weight_bytes) / largest.images / 1e6, 1),
                    "weights MB": round(largest.weight_bytes / 1e6),
                    "GFLOP": round(largest.flops / largest.images / 1e9, 2),
                    **{
                        f"{gpu.name} images/s": round(expected.images_a_second(largest, gpu, precision))
                        for gpu in expected.GPUS
                    },
                }
            )
            traces.append(largest)
            launches += own
    return rows, traces, launches


def compilations(launches: Iterable[Launch], architectures: Iterable[int]) -> list[Row]:
    """Returns a line for each kernel, type and tile; figures are the largest of its specialisations and
    architectures."""
    from benchmarks.paper.kernels import compiled, specialised

    rows: dict[tuple[Any, ...], Row] = {}
    for kernel in specialised(launches):
        element = dict(kernel.signature)["out"].strip("*")
        tile = " ".join(f"{name}={value}" for name, value in (*kernel.constants, *kernel.options))
        row = rows.setdefault(
            (kernel.name, element, tile),
            {"kernel": kernel.name.strip("_"), "type": element, "tile": tile, "compiled": 0, "registers": 0}
            | {"spilled": 0, "shared KB": 0.0, "blocks each SM (sm_90)": "", "error": ""},
        )
        for architecture in architectures:
            try:
                made = compiled(kernel, architecture)
            except Exception as error:
                # A failed compilation is a line of the table; the others still run.
                row["error"] = f"sm_{architecture}: {type(error).__name__}: {str(error).splitlines()[-1:]}"
                continue
            row["compiled"] += 1
            row["registers"] = max(row["registers"], made.registers)
            row["spilled"] = max(row["spilled"], made.spilled)
            row["shared KB"] = max(row["shared KB"], round(made.shared / 1024, 1))
            if architecture == 90:
                row["blocks each SM (sm_90)"] = min(
                    65536 // (made.registers * made.threads),
                    2048 // made.threads,
                    227 * 1024 // max(1, made.shared),
                )
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16", "fp32"])
    parser.add_argument("--architectures", nargs="+", type=int, default=[80, 86, 89, 90, 100])
    parser.add_argument("--arithmetic", action="store_true", help="what each figure is made of")
    arguments = parser.parse_args()
    if find_spec("triton") is None:
        print("benchmarks.paper: Triton is not installed, so nothing was compiled", file=sys.stderr)
        return 1
    rows, traces, launches = networks(arguments.models, arguments.precisions)
    table = compilations([*launches, resizing(1, _IMAGE)], arguments.architectures)
    lines = [
        line
        for row, trace in zip(rows, traces, strict=True)
        for gpu in expected.GPUS
        if arguments.arithmetic and gpu.name in ("H100", "H200")
        for line in (row["network"], *expected.arithmetic(trace, gpu, row["precision"]))
    ]
    notes = [
        "No GPU was there: bytes and kernels are those of fake tensors, images/s are arithmetic (--arithmetic).",
        f"Compiled for sm_{', sm_'.join(map(str, arguments.architectures))} by Triton's compiler and ptxas.",
    ]
    print(*lines, sep="\n")
    report.publish("paper", "The GPU path on paper", {"networks": rows, "kernels": table}, notes)
    bad = [row for row in table if row["error"] or row["spilled"] > _SPILLED]
    for row in bad:
        print(
            f"{row['kernel']} {row['type']} {row['tile']}: {row['error'] or 'spills much'}", file=sys.stderr
        )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
