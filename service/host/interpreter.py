"""Commands that run a module of this package in a new process, independent of the working directory."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

#: The folder that holds this package: a checkout, or site-packages.
_ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command for ``python -m MODULE``.

    ``-P`` keeps the working directory off the child's path: a ``service.py`` there, which is BentoML's usual file
    name, would be imported in place of this package.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for `module_command`: ``given``, by default this process's own.

    If this package is not installed but runs from a folder, the folder is added to ``PYTHONPATH``.
    """
    environment = dict(os.environ if given is None else given)
    if str(_ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
