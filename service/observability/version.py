"""The running version, for `GET /version` and `imagenet_build_info`."""

from __future__ import annotations

import os
import platform

from service import __version__

#: The variable with the source's revision, as in the image's label ``org.opencontainers.image.revision``.
_REVISION = "BUILD_REVISION"


def build_information() -> dict[str, str]:
    """The service's version, the source's revision (empty unless the build set it), and Python's version."""
    return {
        "version": __version__,
        "revision": os.environ.get(_REVISION, ""),
        "python": platform.python_version(),
    }
