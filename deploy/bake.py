"""Convert the weights that the CPU image is built with (Dockerfile, WEIGHTS), where torch is at hand.

    python bake.py DIRECTORY densenet121                        a variant: its published weights
    python bake.py DIRECTORY deploy/weights/my_vgg.pth          anything else that the setting weights takes
    python bake.py DIRECTORY hf://owner/repo --labels FILE      further flags are those of `imagenet-serve export`

The directory is then weights of its own, which are served without torch. What `export` or `quantize` has converted is
taken as it is. Figures for this builder's processor are not made: a start measures its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from service.models.catalog import VARIANTS
from service.models.runtimes import artifact


def main(arguments: list[str]) -> int:
    directory, weights, *flags = arguments
    if artifact.is_one(Path(weights)):
        if flags:
            print(f"{weights} is converted already; give {' '.join(flags)} to `export`", file=sys.stderr)
            return 2
        shutil.copytree(weights, directory)
        return 0
    return subprocess.run(command(directory, weights, *flags), check=False).returncode


def command(directory: str, weights: str, *flags: str) -> list[str]:
    origin = (
        ["--model", weights, "--weights", "pretrained"] if weights in VARIANTS else ["--weights", weights]
    )
    export = [
        sys.executable,
        "-m",
        "service",
        "export",
        directory,
        "--device",
        "cpu",
        "--runtime",
        "openvino",
    ]
    return [*export, *origin, *flags]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
