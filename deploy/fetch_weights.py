"""Fetch the weights that the service is going to want, by its own code, and check them.

    python fetch_weights.py densenet121     torchvision's, for an image with baked weights (Dockerfile, WEIGHTS)
    python fetch_weights.py                 for an init container: what IMAGENET_MODEL and IMAGENET_WEIGHTS say

The service would do the same at its start; here no probe counts the time. What was cut off is gone on with.
"""

import os
import sys
import time
from collections.abc import Callable

from service.errors import StartError
from service.models import serving
from service.models.catalog import DEFAULT, VARIANTS
from service.models.checkpoints import resolve

#: Seconds between two lines about how far it is.
EVERY = 5.0


def main(arguments: list[str]) -> None:
    weights = "pretrained" if arguments else os.environ.get("IMAGENET_WEIGHTS", "pretrained")
    named = arguments[0] if arguments else os.environ.get("IMAGENET_MODEL")
    model = named or DEFAULT
    if arguments and model not in VARIANTS:
        sys.exit(
            f"WEIGHTS={model}: an image with torch takes the published weights of a variant alone, one of "
            f"{', '.join(VARIANTS)}; mount others, or build --target cpu, which converts any"
        )
    if weights == "demo" or weights.startswith("random") or os.path.exists(weights.partition("?")[0]):
        print(f"nothing to fetch for weights={weights}", file=sys.stderr)
        return
    if serving.converted_weights(weights, model) is not None:
        print(f"nothing to fetch: {model} is in this image, converted", file=sys.stderr)
        return
    try:
        serving.refuse_without_torch(weights)
        checkpoint = resolve(weights, named, progress=progress())
    except StartError as error:
        sys.exit(f"{model}: {error}")
    print(f"{checkpoint.source}, SHA-256 {checkpoint.sha256}", file=sys.stderr)


def progress() -> Callable[[int, int | None], None]:
    told = time.monotonic()

    def tell(done: int, total: int | None) -> None:
        nonlocal told
        if time.monotonic() - told >= EVERY:
            told = time.monotonic()
            print(f"{done / 1e6:.0f} of {total / 1e6 if total else 0:.0f} MB", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    main(sys.argv[1:])
