"""From a loaded model to a runner on CUDA, by the runtime that was decided on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from service.models import fused, loader
from service.models.checkpoints import Checkpoint
from service.models.cuda import canary
from service.models.cuda.pipeline import StreamRunner
from service.models.cuda.program import Program
from service.models.cuda.torch_device import CudaDevice
from service.models.explain import Explainer
from service.models.placement import Placement
from service.models.runtimes import compiled, package
from service.models.runtimes.whole import DTYPES, Whole, whole

log = logging.getLogger(__name__)


def start(
    checkpoint: Checkpoint,
    placement: Placement,
    largest: int | None,
    explainer: Explainer | None,
    report: Callable[[str], object],
) -> StreamRunner:
    """The checkpoint's model on its device, not yet warmed up. Raises `StartError`."""
    device = CudaDevice(placement.device)
    torch.cuda.set_device(device.device)
    settle_numerics()
    programs = [program(checkpoint, placement, device.device, report)]
    if placement.chosen:
        log.info("runtime=auto: %s in %s, on %s", placement.runtime, placement.precision, device.device)
        # Layer by layer always works. It is made only if it is needed.
        plain = Placement(placement.device, placement.precision, "eager")
        programs.append(lambda: program(checkpoint, plain, device.device, report)())
    return StreamRunner(programs, device, checkpoint.preprocessing.shape, largest, explainer)


def settle_numerics() -> None:
    """fp32 means fp32, where torch's default is TF32 for convolutions; half precision adds up in fp32."""
    # Not by torch's newer `fp32_precision`: the compiler still asks by the older names, and torch refuses a mixture
    # (pytorch issue 166387). Products of matrices are fp32 by default.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # Shapes are few and fixed: trying cuDNN's kernels once for each pays.
    torch.backends.cudnn.benchmark = True


def expected_of(checkpoint: Checkpoint) -> canary.Logits:
    """What the network in fp32 on the CPU says to the canary; without a head, its features' mean."""
    pixels = torch.from_numpy(canary.image(checkpoint.preprocessing.shape))[None]
    network = Whole(loader.load(checkpoint), torch.float32, has_head=checkpoint.classes is not None)
    with torch.inference_mode():
        answer: canary.Logits = network(pixels)[1][0].numpy()
    return answer


def program(
    checkpoint: Checkpoint, placement: Placement, device: torch.device, report: Callable[[str], object]
) -> Callable[[], Program]:
    """What makes the program of ``placement``, when it is called: `StartError` comes from there."""

    def make() -> Program:
        expected = expected_of(checkpoint)
        image, has_head = checkpoint.preprocessing.shape, checkpoint.classes is not None
        if placement.artifact is not None:
            found = package.open_artifact(placement.artifact, checkpoint, device)
            return Program("package", found.precision, found.forward, True, expected, found.most)
        model, precision = loader.load(checkpoint), placement.precision
        if placement.runtime == "cudagraph":
            compiled.keep_kernels()
            dtype = DTYPES[precision]
            ops = fused.best(device, dtype)
            log.info("faster than torch's own here: %s", ", ".join(ops.names) or "nothing")
            network = fused.fuse(model, ops, device, dtype, has_head=has_head)
            return Program("cudagraph", precision, network, True, expected)
        plain = whole(model, device, precision, has_head=has_head)
        if placement.runtime == "compile":
            report("compiling the model; the next start finds the kernels in the cache")
            return Program("compile", precision, compiled.compiled(plain, image, device), True, expected)
        return Program("eager", precision, plain, False, expected)

    return make
