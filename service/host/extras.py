"""The extras of pyproject.toml, and how to add one to the environment that runs this."""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """A command that adds ``extra``, to be typed as it is.

    From a clone it installs the clone again with the extra. Elsewhere it names the packages themselves, since
    this one may not be on the index that pip asks.
    """
    is_clone = (_ROOT / "pyproject.toml").is_file()
    what = ["--editable", f"{_near(_ROOT)}[{extra}]"] if is_clone else _packages(extra)
    return shlex.join([_near(Path(sys.executable)), "-m", "pip", "install", *what])


def _packages(extra: str) -> list[str]:
    """The requirements of ``extra``, and of the extras that it takes in."""
    marker = re.compile(rf"""extra == ['"]{re.escape(extra)}['"]""")
    lines = [line.split(";") for line in metadata.requires("imagenet-serve") or []]
    wanted = [line[0].strip() for line in lines if len(line) > 1 and marker.search(line[1])]
    nested = [match[1] for line in wanted if (match := re.match(r"imagenet-serve\[([\w,]+)\]", line))]
    taken_in = [package for names in nested for name in names.split(",") for package in _packages(name)]
    return taken_in + [line for line in wanted if not line.startswith("imagenet-serve")]


def _near(path: Path) -> str:
    """As one would type it from here: relative where that is shorter."""
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len)
