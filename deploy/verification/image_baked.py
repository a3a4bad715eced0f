"""The other images: a model baked in, without torch; and the one for GPUs, as far as it can be tried without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from verification.image import (
    IMAGE,
    build,
    cpu_builds,
    exists,
    inside,
    need_image,
    prepare,
    request,
    running,
    size,
    wait_ready,
)
from verification.steps import ROOT, Failure, Skip, output, step

BAKED = "localhost/imagenet-serve:verify-baked"
GPU = "localhost/imagenet-serve:verify-gpu"

#: The demo model as somebody's own weights: a folder beside the Dockerfile.
OWN = ROOT / "deploy" / "weights" / "verify"
PHOTO, ANSWER = "red-panda.jpg", "lesser panda"


@step
def baked_image() -> str:
    """Dockerfile with WEIGHTS → an image of this one model, without torch."""
    prepare()
    with _own_weights() as weights:
        return build(BAKED, "cpu", torch_index=cpu_builds(), WEIGHTS=weights)


@step
def baked_container() -> str:
    """Run restricted: no torch inside, the right answer to a photo, and a clear word for other weights."""
    prepare()
    need_image(BAKED)
    started = time.monotonic()
    with running(BAKED) as name:
        wait_ready(name)
        seconds = time.monotonic() - started
        facts = inside(name)
        heavy = output(
            ["podman", "exec", name, "sh", "-c", "ls /opt/venv/lib/python3*/site-packages"]
        ).split()
        model = json.loads(request("GET", "/model")[1])
        status, body = request("POST", "/predict", (ROOT / "samples" / PHOTO).read_bytes(), "image/jpeg")
    if found := [package for package in heavy if package.startswith(("torch", "safetensors", "h5py"))]:
        raise Failure(f"in an image without torch there are {', '.join(found)}")
    best = json.loads(body)["predictions"][0] if status == 200 else {}
    if best.get("label") != ANSWER:
        raise Failure(f"POST /predict with {PHOTO}: {status} {body[:500]!r}")
    refused = _ending_of(BAKED, WEIGHTS="pretrained", MODEL="vgg16")
    if "weights=/opt/model" not in refused:
        raise Failure(f"with other weights it says\n{refused}")
    smaller = f", {size(IMAGE) - size(BAKED):.2f} GB less than with torch" if exists(IMAGE) else ""
    return (
        f"{facts}; {PHOTO}: {best['label']} ({best['probability']:.2f}) by {model['weights']}; ready after "
        f"{seconds:.1f} s, its first start on this processor{smaller}"
    )


@step
def gpu_image() -> str:
    """`--target gpu` with CUDA from PyPI: it imports, the kernels' compiler works, and a missing GPU is said."""
    if not os.environ.get("VERIFY_GPU_IMAGE"):
        raise Skip(
            "NOT RUN: 3 GB to download and some 20 GB of disk while it is built: VERIFY_GPU_IMAGE=1 deploy/verify "
            "gpu-image"
        )
    prepare()
    # A base of Debian's own Python has the headers in a package; the official image has them anyway.
    told = build(GPU, "gpu", GPU_APT_PACKAGES="g++ libc6-dev python3-dev")
    versions = (
        'import torch, torchvision, triton as t; print("torch", torch.__version__, "triton", t.__version__)'
    )
    headers = "import sysconfig; print(sysconfig.get_path('include'))"
    script = f"""
        set -eu
        python -c '{versions}'
        echo '#include <Python.h>' | g++ -x c++ -fsyntax-only -I "$(python -c "{headers}")" -
    """
    command = ["podman", "run", "--rm", "--network", "host", "--entrypoint", "sh", GPU, "-c", script]
    seen = output(command).strip()
    refused = _ending_of(GPU, WEIGHTS="random")
    if "device=cuda" not in refused:
        raise Failure(f"without a GPU it says\n{refused}")
    return f"{told}; {seen}; without a GPU the start says so. NOT RUN: anything on a device"


@contextmanager
def _own_weights() -> Iterator[str]:
    shutil.copytree(ROOT / "service" / "models" / "demo", OWN, dirs_exist_ok=True)
    try:
        yield str(OWN.relative_to(ROOT))
    finally:
        shutil.rmtree(OWN)


def _ending_of(image: str, **settings: object) -> str:
    """What a start says that cannot succeed; `Failure` when it does not end."""
    with running(image, **settings) as name:
        code = int(output(["podman", "wait", name], timeout=300))
        said = subprocess.run(["podman", "logs", name], capture_output=True, text=True, check=False)
    if not code:
        raise Failure("a start that cannot succeed ended with 0")
    return said.stdout + said.stderr
