"""Compiles the Triton kernels that a network launches, for GPUs that are not present.

Triton's own front end, its passes and NVIDIA's assembler (ptxas comes with Triton) run as at a first start on that
GPU. A kernel is compiled once for each combination of argument types, of arguments that are divisible by 16, and of
constants: `specialised` takes these from the arguments of real launches, by the rules of Triton's launcher.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.paper.trace import Access, Launch
from service.models.fused.kernels import OPTIONS

#: Compute capabilities: A100 · RTX 30 and A10 · L4, L40S and RTX 40 · H100 and H200 · B200.
ARCHITECTURES = (80, 86, 89, 90, 100)

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
#: The divisor that the launcher looks for in addresses and integers.
_DIVISOR = 16
_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Specialised:
    """One compilation. ``divisible`` are the positions of arguments that 16 divides, ``ones`` of those equal to 1."""

    name: str
    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    divisible: tuple[int, ...]
    ones: tuple[int, ...]
    options: tuple[tuple[str, int | bool], ...]

    def source(self) -> ASTSource:
        """Returns the source for Triton's compiler."""
        names = self.kernel.arg_names
        constants = {(names.index(name),): value for name, value in self.constants}
        constants |= {(place,): 1 for place in self.ones}
        divisible = {(place,): [["tt.divisibility", _DIVISOR]] for place in self.divisible}
        return ASTSource(self.kernel, dict(self.signature), constants, divisible)


def specialised(launches: Iterable[Launch]) -> dict[Specialised, Launch]:
    """Returns the compilations that these launches need, each with its first launch."""
    found: dict[Specialised, Launch] = {}
    for launch in launches:
        found.setdefault(_specialise(launch), launch)
    return found


def _specialise(launch: Launch) -> Specialised:
    names = launch.kernel.arg_names
    signature, divisible, ones = {}, [], []
    for place, argument in enumerate(launch.arguments):
        if isinstance(argument, Access):
            signature[names[place]] = _TYPES[argument.dtype]
            # The allocator's blocks begin at multiples of 512 bytes.
            number = argument.offset * argument.dtype.itemsize
        else:
            number = argument
            signature[names[place]] = "constexpr" if number == 1 else "i32" if abs(number) < 2**31 else "i64"
        if not isinstance(argument, Access) and number == 1:
            ones.append(place)
        elif number % _DIVISOR == 0:
            divisible.append(place)
    constants = {name: value for name, value in launch.constants.items() if name not in _OPTIONS}
    signature |= dict.fromkeys(constants, "constexpr")
    return Specialised(
        launch.kernel.__name__,
        launch.kernel,
        tuple((name, signature[name]) for name in names),
        tuple(sorted(constants.items())),
        tuple(divisible),
        tuple(ones),
        (
            *OPTIONS.items(),
            *((name, launch.constants[name]) for name in _OPTIONS if name in launch.constants),
        ),
    )


@dataclass(frozen=True)
class Compiled:
    """The figures of one compiled kernel, by ptxas."""

    registers: int
    spilled: int
    """Bytes of registers that did not fit, stored and loaded."""
    shared: int
    """Bytes of shared memory for one block."""
    threads: int


def front_end(kernel: Specialised) -> str:
    """Returns Triton's first intermediate form, so the front end accepts the kernel. Needs only the package."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    backend = make_backend(GPUTarget("cuda", 90, 32))
    options = backend.parse_options(dict(kernel.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    arguments = (options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    source = kernel.source()
    try:
        module = source.make_ir(GPUTarget("cuda", 90, 32), *arguments)
    except TypeError:  # before Triton 3.7 it did not take the target
        module = source.make_ir(*arguments)
    return str(module)


def compiled(kernel: Specialised, architecture: int) -> Compiled:
    """Compiles for compute capability ``architecture`` (90 for 9.0). Raises any error of Triton and ptxas."""
    done = triton.compile(
        kernel.source(), target=GPUTarget("cuda", architecture, 32), options=dict(kernel.options)
    )
    registers, spilled = _assembled(done.asm["ptx"], architecture)
    return Compiled(registers, spilled, done.metadata.shared, 32 * done.metadata.num_warps)


def _assembled(ptx: str, architecture: int) -> tuple[int, int]:
    """Returns registers a thread and spilled bytes, from ptxas's verbose output."""
    from triton.backends.nvidia import compiler

    ptxas = compiler.get_ptxas(architecture)
    suffix = "a" if architecture >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        said = subprocess.run(
            [ptxas.path, "-v", f"--gpu-name=sm_{architecture}{suffix}", str(source), "-o", f"{folder}/cubin"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    used = re.search(r"Used (\d+) registers", said)
    spills = [int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", said)]
    assert used is not None, said
    return int(used[1]), sum(spills)
