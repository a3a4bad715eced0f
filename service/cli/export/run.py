"""`imagenet-serve export`: prepares a model ahead of time, so that a start needs neither a compiler nor minutes.

    runtime=openvino     converted for any CPU; serving it needs OpenVINO, but neither torch nor the weights
    runtime=compile      compiled by torch for this platform, and checked before it is written

The check compares the compiled model with the plain fp32 network on the CPU, on images and batch sizes that were not
used to compile it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from service.cli import tables
from service.cli.progress import check_artifact_directory, read_checkpoint, working
from service.errors import ConfigurationError
from service.settings import Settings, available_cores

#: The artifact's largest batch, unless max_batch_size gives another.
_MAX_BATCH_SIZE = 256
#: The number of images that the two models are compared on, and the sizes of the batches.
_IMAGES, _BATCHES = 21, (1, 2, 5, 13)


def run(settings: Settings, out: Path) -> int:
    """Writes the settings' model as an artifact into the directory ``out`` and returns the exit code.

    Returns 1, and writes nothing, if the compiled model's answers differ too much from the plain one's. Raises
    `StartError` if the model cannot be loaded or there is no compiler.
    """
    check_artifact_directory(out)
    if settings.runtime == "openvino":
        from service.models import building

        with working(f"converting {settings.weights} for OpenVINO"):
            building.export(settings, out)
        print(f"serve it with: --weights {out}", file=sys.stderr)
        return 0
    if settings.runtime not in ("auto", "compile"):
        raise ConfigurationError("export: --runtime must be openvino, or compile (which auto means here)")
    return _compile(settings, out)


def _compile(settings: Settings, out: Path) -> int:
    import torch

    from service.models import loader
    from service.models.placement import place
    from service.models.runtimes import package
    from service.models.runtimes.whole import whole

    torch.set_num_threads(available_cores())
    placement = place(settings.device, settings.precision, "compile")
    device = torch.device(placement.device)
    checkpoint = read_checkpoint(settings, "reading the weights")
    image, has_head = checkpoint.preprocessing.shape, checkpoint.classes is not None
    max_batch_size = _MAX_BATCH_SIZE if settings.max_batch_size == "auto" else settings.max_batch_size
    with tempfile.TemporaryDirectory(prefix="imagenet-serve-") as folder:
        path = Path(folder) / "model.pt2"
        with working(
            f"compiling {checkpoint.name} for {package.platform_of(device)}, which takes minutes"
        ) as work:
            network = whole(loader.load(checkpoint), device, placement.precision, has_head=has_head)
            package.build(network, image, device, max_batch_size, path)
            work.say("comparing it with the plain model")
            plain = whole(loader.load(checkpoint), torch.device("cpu"), "fp32", has_head=has_head)
            check = _compare(package.load(path, device), plain, image, device, max_batch_size)
        tables.show([check], "table")
        if not check["distance"] <= _limit(placement.precision):
            print(
                f"nothing was written: the compiled model is {check['distance']:.2g} off the plain one, and "
                f"{placement.precision} allows {_limit(placement.precision):g}",
                file=sys.stderr,
            )
            return 1
        package.write(out, path, checkpoint, placement.precision, device, most=max_batch_size, check=check)
    print(f"serve it with: --runtime {out}", file=sys.stderr)
    return 0


def _limit(precision: str) -> float:
    from service.models.canary import LIMITS

    return LIMITS[precision]


def _compare(
    forward: Any, plain: Any, image: tuple[int, int, int], device: Any, max_batch_size: int
) -> dict[str, Any]:
    """Compares the logits on images of noise: the largest ``‖out - ref‖ / ‖ref‖``, and the number of equal top classes.

    ``forward`` and ``plain`` map uint8 ``[N, *image]`` to (features, logits ``[N, classes]``).
    """
    import torch

    from service.models.canary import distance

    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (_IMAGES, *image), dtype=torch.uint8, generator=chance)
    start, away, same = 0, 0.0, 0
    with torch.inference_mode():
        for count in (min(size, max_batch_size) for size in _BATCHES):
            batch = pixels[start : start + count]
            got = forward(batch.to(device))[1].float().cpu().numpy()
            wanted = plain(batch)[1].numpy()
            away = max(away, *(distance(*rows) for rows in zip(got, wanted, strict=True)))
            same += int((got.argmax(1) == wanted.argmax(1)).sum())
            start += count
    return {"images": start, "same top class": same, "distance": away}
