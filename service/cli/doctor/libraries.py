"""Checks of torch, torchvision, OpenVINO and CUDA: installed, matching, and able to do what the settings ask for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

from service.cli.doctor.finding import Finding, failed, passed, warned
from service.host import machine as host
from service.host.extras import install_command
from service.settings import Settings
from service.shared.fallback import Fallback


def torch_pair(torch: str, torchvision: str, requires: Sequence[str]) -> Finding:
    """Checks that the versions match. ``requires`` are torchvision's requirements, which name its one torch."""
    found = f"torch {torch}, torchvision {torchvision}"
    wanted = next(
        (match[1] for line in requires if (match := re.match(r"torch\s*\(?==\s*([\d.]+)", line))), None
    )
    if wanted and wanted != torch.split("+")[0]:
        return failed(
            "torch",
            found,
            f"torchvision {torchvision} is built for torch {wanted}: pip install torch=={wanted}",
        )
    return passed("torch", found)


def installed() -> Finding:
    """Checks that torch and torchvision are installed, match and can be imported."""
    try:
        finding = torch_pair(
            metadata.version("torch"), metadata.version("torchvision"), metadata.requires("torchvision") or []
        )
        from service.models.torchvision_import import torchvision

        assert torchvision
    except metadata.PackageNotFoundError as error:
        return failed("torch", f"{error.name} is not installed", "install imagenet-serve again")
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return failed(
            "torch", f"import fails: {first}", "install torch and torchvision again, both from one index"
        )
    return finding


def torchvision_alone() -> Finding | None:
    """Checks that other programs of this environment can import torchvision; None where it is not installed.

    PyPI's torchvision for Linux is built for CUDA and cannot be imported beside torch's CPU build. The service works
    around that (`service.models.torchvision_import`); a notebook or a training script does not.
    """
    if find_spec("torchvision") is None:
        return None
    command = [sys.executable, "-P", "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return passed("torchvision", "can be imported in this environment")
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return warned(
        "torchvision",
        f"import fails: {reason}",
        "the service can do without it; for your own scripts install torchvision from the same index as torch",
    )


def cuda(settings: Settings) -> Finding:
    """Checks the driver, torch's build, and one operation on the GPU."""
    import torch

    driver, build = host.nvidia_driver(), torch.version.cuda
    return judge_cuda(settings.device, driver, build, _answering_gpu(settings.device))


def judge_cuda(device: str, driver: str | None, build: str | None, working: str) -> Finding:
    """The finding for a driver's version, torch's CUDA version, and the name of the GPU that ``working`` answered.

    ``driver`` and ``build`` are None, and ``working`` is empty, where there is none.
    """
    gpu = working or "none that answers"
    found = f"driver: {driver or 'none'}; torch built for CUDA {build or '(none)'}; GPU: {gpu}"
    asked = device.startswith("cuda")
    if working:
        return passed("cuda", found)
    if not driver:
        if asked:
            return failed(
                "cuda", found, f"device={device} needs a GPU and its driver here; use --device cpu or auto"
            )
        return passed("cuda", "no NVIDIA driver: the model runs on the CPU")
    report = failed if asked else warned
    if not build:
        return report(
            "cuda",
            found,
            "this torch is a CPU build; PyPI's has CUDA",
        )
    return report(
        "cuda",
        found,
        "nvidia-smi says whether the driver is older than torch wants, and whether a GPU is given to us",
    )


def _answering_gpu(device: str) -> str:
    """The name of the GPU that computes for the setting ``device``; empty where none does."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return ""
    try:
        place = torch.device(device if device.startswith("cuda") else "cuda")
        torch.ones(1, device=place).add_(1).item()
        return torch.cuda.get_device_name(place)
    except RuntimeError:
        return ""


def gpu_kernels(settings: Settings) -> Finding | None:
    """Checks which GPU kernels a start would have to replace by torch's; None if the model does not run on a GPU."""
    import torch

    if settings.runtime not in ("auto", "cudagraph", "compile") or not _answering_gpu(settings.device):
        return None
    from service.models import fused
    from service.models.runtimes import compiled
    from service.models.runtimes.whole import DTYPES

    device = torch.device(settings.device if settings.device.startswith("cuda") else "cuda")
    precision = "fp16" if settings.precision == "auto" else settings.precision
    if settings.runtime == "compile":
        return judge_gpu_kernels((), compiled.compiler())
    return judge_gpu_kernels(fused.best(device, DTYPES[precision]).refused, compiled.compiler())


def decoding(settings: Settings) -> Finding:
    """Checks that ``decode=gpu`` has a GPU and nvImageCodec. Only a start compares its pixels."""
    has_codec = find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") is not None
    return judge_decoding(bool(_answering_gpu(settings.device)), has_codec)


def judge_decoding(has_gpu: bool, has_codec: bool) -> Finding:
    name = "gpu decoding"
    if not has_gpu:
        return warned(name, "no GPU that answers", "the cores decode everything; use decode=exact or fast")
    if not has_codec:
        return warned(
            name, "nvImageCodec is not installed", f"{install_command('gpu')}; until then the cores decode"
        )
    return passed(name, "nvImageCodec is there; each start compares its pixels with the processor's")


def judge_gpu_kernels(refused: Sequence[Fallback], missing: str) -> Finding:
    """The finding for the kernels that were ``refused`` and what the compiler is ``missing`` (empty: nothing)."""
    if not refused and not missing:
        return passed("gpu kernels", "all of them compile here and agree with torch")
    found = "; ".join(f"without {what}: {why}" for what, why in refused) or "nothing new can be compiled"
    advice = (
        f"install {missing}" if missing else "the model runs, with more passes over memory; the log has more"
    )
    return warned("gpu kernels", found, advice)


def openvino(settings: Settings) -> Finding:
    """Checks OpenVINO, the fastest runtime on a CPU."""
    name = "openvino"
    if find_spec(name) is None:
        report = failed if settings.runtime == name else warned
        return report(
            name,
            "not installed",
            f"{install_command('cpu')}: torch alone is about half as fast on a CPU",
        )
    try:
        from service.models.openvino_import import openvino as library
    except (ImportError, OSError) as error:
        return failed(
            name, f"import fails: {str(error).splitlines()[0]}", "pip install --force-reinstall openvino"
        )
    return passed(name, f"{name} {library.__version__.split('-')[0]}")


def checks(settings: Settings) -> list[Finding]:
    """Runs the checks of this module that concern the settings."""
    findings = [installed()]
    if not findings[0].advice and (alone := torchvision_alone()) is not None:
        findings.append(alone)
    if find_spec("torch") is not None and not findings[0].advice:
        findings.append(cuda(settings))
        if settings.device != "cpu" and (finding := gpu_kernels(settings)) is not None:
            findings.append(finding)
        if settings.decode == "gpu":
            findings.append(decoding(settings))
    if settings.device in ("auto", "cpu"):
        findings.append(openvino(settings))
    return findings
