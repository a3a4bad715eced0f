"""Test files run in a copy of the checkout, each in a fork of this process, which has imported what takes long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import coverage
import fastapi.testclient  # noqa: F401 - what every fork would import itself
import httpx  # noqa: F401
import hypothesis.stateful  # noqa: F401
import numpy as np  # noqa: F401
import PIL.Image  # noqa: F401
import pytest
import uvicorn  # noqa: F401

from tests.mutation.mutants import Mutant

#: A mutant may take this many times what its tests took, and so many seconds more, before it counts as hung.
_TIMES, _MORE = 6.0, 60.0


#: What the tests of these modules read.
_COPIED = ("service", "tests", "labels", "samples", "pyproject.toml")
#: anyio's plugin, which no test here uses, is imported already, and could not be rewritten.
_OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio"]
_OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


@dataclass(frozen=True)
class Seen:
    """What one test file takes, in seconds, and which lines of each module it runs."""

    tests: str
    seconds: float
    lines: dict[str, frozenset[int]]


def copy(root: Path, target: Path) -> Path:
    """The checkout's files, as git knows them and as they are now, in a folder of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if name.partition("/")[0] in _COPIED and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def learn(copy: Path, tests: Sequence[str], modules: Sequence[str]) -> list[Seen]:
    """Runs each of ``tests`` once, the quickest first. Raises `AssertionError` for one that fails as it is."""
    found = []
    for name in tests:
        data = copy / "coverage.data"
        began = time.monotonic()
        code = _fork(copy, [name], 3600.0, data)
        assert code == 0, f"{name} fails without any fault"
        read = coverage.CoverageData(str(data))
        read.read()
        lines = {module: frozenset(read.lines(str(copy / module)) or ()) for module in modules}
        found.append(Seen(name, time.monotonic() - began, lines))
        data.unlink()
        print(f"{found[-1].seconds:6.1f} s  {name}", flush=True)
    return sorted(found, key=lambda seen: seen.seconds)


def fails(copy: Path, mutant: Mutant, seen: Sequence[Seen]) -> bool:
    """Whether a test finds the fault. A test that hangs has found it."""
    path = copy / mutant.file
    original = path.read_text()
    mine = [one for one in seen if mutant.line in one.lines[mutant.file] or _runs_at_import(mutant)]
    try:
        path.write_text(mutant.source)
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            cached.unlink()
        patience = _TIMES * sum(one.seconds for one in mine) + _MORE
        return bool(mine) and _fork(copy, [one.tests for one in mine], patience) != 0
    finally:
        path.write_text(original)


def _runs_at_import(mutant: Mutant) -> bool:
    return not mutant.before.startswith((" ", "\t")) and mutant.before.split(" ")[0].isupper()


def _fork(copy: Path, tests: list[str], patience: float, data: Path | None = None) -> int:
    """pytest's exit code, -1 for one that took too long."""
    child = os.fork()
    if child == 0:
        os._exit(_guarded(lambda: _run(copy, tests, data)))
    until = time.monotonic() + patience
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _guarded(run: Callable[[], int]) -> int:
    try:
        return run()
    except BaseException as error:
        print(repr(error))
        return 99


def _run(copy: Path, tests: list[str], data: Path | None) -> int:
    os.setsid()
    os.chdir(copy)
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.dont_write_bytecode = data is None
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "service")]:
        del sys.modules[name]
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    measured = None
    if data is not None:
        measured = coverage.Coverage(data_file=str(data), include=[f"{copy}/service/*"])
        measured.start()
    code = int(pytest.main([*_OPTIONS, *tests]))
    if measured is not None:
        measured.stop()
        measured.save()
    return code
