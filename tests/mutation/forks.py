"""Forks of this process that run some tests each, in a copy of the checkout."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutation.mutants import Mutant

#: What the tests of these modules read.
_COPIED = ("service", "tests", "labels", "samples", "pyproject.toml")


class Room:
    """A copy of the checkout, and a folder beside it that every fork gets empty."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.copy = folder / "copy"
        self.scratch = folder / "scratch"
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in listed:
            if name.partition("/")[0] in _COPIED and (root / name).is_file():
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.copy / name)

    def fork(self) -> int:
        """0 in the child, which leads a group of its own, and writes to a file and counts in an empty folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        counters = self.scratch / "counters"
        counters.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            os.setsid()
            output = os.open(self.scratch / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counters)
        return child

    def wait(self, child: int) -> int:
        """The exit code of ``child``, of whose group nothing is left afterwards."""
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status)

    @contextmanager
    def changed(self, mutant: Mutant | None) -> Iterator[None]:
        """Lets the mutant's file have its fault, for what is imported meanwhile."""
        if mutant is None:
            yield
            return
        path = self.copy / mutant.file
        original = path.read_text()
        path.write_text(mutant.source)
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            cached.unlink()
        try:
            yield
        finally:
            path.write_text(original)

    def begins(self, test: str) -> None:
        """Notes which test runs."""
        (self.scratch / "now.txt").write_text(test)

    def last(self) -> str:
        """The test that began last."""
        now = self.scratch / "now.txt"
        return now.read_text() if now.exists() else "the import"
