"""What is running: for `GET /version` and `imagenet_build_info`."""

from __future__ import annotations

import os
import platform

from service import __version__

#: Set by the image's build: the revision of the source, as in its label ``org.opencontainers.image.revision``.
_REVISION = "BUILD_REVISION"


def build_information() -> dict[str, str]:
    """The service's version, the source's revision where the build named it, and Python's version."""
    return {
        "version": __version__,
        "revision": os.environ.get(_REVISION, ""),
        "python": platform.python_version(),
    }
