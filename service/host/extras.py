"""The extras of pyproject.toml, and the command that installs one into the running environment."""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """The shell command that installs the extra ``extra``.

    In a clone it installs the clone again, with the extra. Elsewhere it names the extra's packages, since
    imagenet-serve itself may not be on the index that pip asks.
    """
    is_clone = (_ROOT / "pyproject.toml").is_file()
    what = ["--editable", f"{_near(_ROOT)}[{extra}]"] if is_clone else _packages(extra)
    return shlex.join([_near(Path(sys.executable)), "-m", "pip", "install", *what])


def _packages(extra: str) -> list[str]:
    """The requirements of ``extra``, those of the extras that it includes among them."""
    marker = re.compile(rf"""extra == ['"]{re.escape(extra)}['"]""")
    lines = [line.split(";") for line in metadata.requires("imagenet-serve") or []]
    wanted = [line[0].strip() for line in lines if len(line) > 1 and marker.search(line[1])]
    nested = [match[1] for line in wanted if (match := re.match(r"imagenet-serve\[([\w,]+)\]", line))]
    taken_in = [package for names in nested for name in names.split(",") for package in _packages(name)]
    return taken_in + [line for line in wanted if not line.startswith("imagenet-serve")]


def _near(path: Path) -> str:
    """The path as a user would type it: relative to the current directory if that is shorter."""
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len)
