"""Makes a CUDA runner of a loaded model, by the placement's runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from service.models import canary, fused, loader
from service.models.checkpoints import Checkpoint
from service.models.cuda.pipeline import CudaRunner
from service.models.cuda.program import Choice, Program
from service.models.cuda.torch_device import CudaDevice
from service.models.explain import Explainer
from service.models.placement import Placement
from service.models.runtimes import compiled, package
from service.models.runtimes.whole import DTYPES, Whole, whole
from service.shared.fallback import Fallbacks

log = logging.getLogger(__name__)


def start(
    checkpoint: Checkpoint,
    placement: Placement,
    largest: int | None,
    explainer: Explainer | None,
    report: Callable[[str], object],
    fallbacks: Fallbacks | None = None,
    given_up: Sequence[str] = (),
) -> CudaRunner:
    """Returns a runner of the checkpoint's model on its device, not yet warmed up. Raises `StartError`.

    ``fallbacks`` records what cannot be used. Each reason in ``given_up`` leaves out one way to run the model, but
    never the last.
    """
    fallbacks = fallbacks or Fallbacks()
    device = CudaDevice(placement.device)
    torch.cuda.set_device(device.device)
    settle_numerics()
    found = leave_out(choices(checkpoint, placement, device.device, report, fallbacks), given_up, fallbacks)
    log.info("%s in %s, on %s", placement.runtime, placement.precision, device.device)
    return CudaRunner(found, device, checkpoint.preprocessing.shape, largest, explainer, fallbacks)


def leave_out(found: Sequence[Choice], given_up: Sequence[str], fallbacks: Fallbacks) -> list[Choice]:
    """Returns ``found`` without its first choices, one for each reason, but never without its last."""
    left = list(found)
    for reason in given_up[: len(found) - 1]:
        fallbacks.add(left.pop(0).without, f"the device failed with it: {reason}")
    return left


def settle_numerics() -> None:
    """Makes fp32 convolutions exact (torch's default is TF32), and lets half precision add up in fp32."""
    # Not torch's newer `fp32_precision`: the compiler still reads the older names, and torch refuses a mixture
    # (pytorch issue 166387). Matrix products are exact by default.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # Shapes are few and fixed, so trying cuDNN's kernels once for each pays.
    torch.backends.cudnn.benchmark = True


def expected_of(checkpoint: Checkpoint) -> canary.Logits:
    """Returns the answers of the checkpoint's network to the canaries, ``[images, length]``."""
    has_head = checkpoint.classes is not None
    return canary.expected(loader.load(checkpoint), checkpoint.preprocessing.shape, has_head=has_head)


def choices(
    checkpoint: Checkpoint,
    placement: Placement,
    device: torch.device,
    report: Callable[[str], object],
    fallbacks: Fallbacks,
) -> list[Choice]:
    """Returns the ways to run the model: the decided one first, the one that always works last.

    An optimisation must not keep the service from serving: this project's kernels give way to torch's, graphs to
    single kernels, and half precision to fp32.
    """
    make = _Programs(checkpoint, device, report, fallbacks)
    precision = placement.precision
    found = []
    if placement.artifact is not None:
        artifact = placement.artifact
        return [
            Choice("graphs", lambda: make.package(artifact, graphs=True)),
            Choice("package", lambda: make.package(artifact, graphs=False)),
        ]
    if placement.runtime == "cudagraph":
        found.append(Choice("fused", lambda: make.fused(precision)))
        found.append(Choice("graphs", lambda: make.plain("cudagraph", precision, graphs=True)))
    if placement.runtime == "compile":
        found.append(Choice("compile", lambda: make.compiled(precision)))
    found.append(Choice(precision, lambda: make.plain("eager", precision, graphs=False)))
    if precision != "fp32":
        found.append(Choice("fp32", lambda: make.plain("eager", "fp32", graphs=False)))
    return found


class _Programs:
    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        report: Callable[[str], object],
        fallbacks: Fallbacks,
    ) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._report, self._fallbacks = report, fallbacks
        self._image, self._has_head = checkpoint.preprocessing.shape, checkpoint.classes is not None

    @cached_property
    def _expected(self) -> canary.Logits:
        return expected_of(self._checkpoint)

    def package(self, artifact: Path, *, graphs: bool) -> Program:
        found = package.open_artifact(artifact, self._checkpoint, self._device)
        return Program(
            "package", found.precision, found.forward, graphs, self._expected, found.max_batch_size
        )

    def fused(self, precision: str) -> Program:
        compiled.keep_kernels()
        dtype = DTYPES[precision]
        ops = fused.best(self._device, dtype)
        for told in ops.refused:
            self._fallbacks.add(*told)
        log.info("faster than torch's own here: %s", ", ".join(ops.names) or "nothing")
        network = fused.fuse(loader.load(self._checkpoint), ops, self._device, dtype, has_head=self._has_head)
        return Program("cudagraph", precision, network, True, self._expected)

    def plain(self, name: str, precision: str, *, graphs: bool) -> Program:
        return Program(name, precision, self._whole(precision), graphs, self._expected)

    def compiled(self, precision: str) -> Program:
        network = self._whole(precision)
        self._report("compiling the model; the next start finds the kernels in the cache")
        forward = compiled.compiled(network, self._image, self._device)
        return Program("compile", precision, forward, True, self._expected)

    def _whole(self, precision: str) -> Whole:
        return whole(loader.load(self._checkpoint), self._device, precision, has_head=self._has_head)
