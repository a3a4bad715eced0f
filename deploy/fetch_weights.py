"""Fill $TORCH_HOME with torchvision's published weights, by the service's own downloader (hash-checked).

    python fetch_weights.py densenet121     for an image with baked weights (Dockerfile, WEIGHTS)
    python fetch_weights.py                 for an init container: what IMAGENET_MODEL and IMAGENET_WEIGHTS say

The service would do the same at its start; here the download is outside of its startup probe.
"""

import os
import sys

from service.errors import CheckpointError
from service.models.checkpoints.torch_hub import pretrained


def main(arguments: list[str]) -> None:
    weights = os.environ.get("IMAGENET_WEIGHTS", "pretrained")
    if not arguments and weights != "pretrained":
        print(f"nothing to fetch for weights={weights}", file=sys.stderr)
        return
    model = arguments[0] if arguments else os.environ.get("IMAGENET_MODEL", "densenet121")
    try:
        checkpoint = pretrained(model)
    except CheckpointError as error:
        sys.exit(f"{model}: {error}")
    print(f"{model}: {checkpoint.source}, SHA-256 {checkpoint.sha256}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
