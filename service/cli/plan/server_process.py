"""Server processes of `plan` and the benchmarks: start, end, and the CPU and memory of their tree, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.host.usage import CLOCK_TICKS, memory_bytes, stat_fields, tree

#: Seconds for a start, which imports torch and warms up a VGG on a busy machine, and for an end.
_START, _END = 180.0, 30.0


class DidNotStart(RuntimeError):
    """The command ended, or did not answer in time. The message holds the end of its log."""


class ServerProcess:
    """A server process that runs for a block: ``with ServerProcess([...], port, ready="/readyz") as server``.

    The block begins when ``ready`` answers 200. Raises `DidNotStart`, with the end of the output, if it does not.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ready: str = "/readyz",
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command)
        self._ready = ready
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
            give_up = time.monotonic() + _START
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > give_up:
                    self.__exit__()
                    log.seek(0)
                    said = log.read().decode(errors="replace")
                    raise DidNotStart(f"{self._command} does not answer:\n{said[-2000:]}")
                time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        with contextlib.suppress(ProcessLookupError):  # ends the rest of the session that this process began
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pids(self) -> list[int]:
        """The process and all its descendants."""
        assert self._process is not None
        return tree(self._process.pid)

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree so far."""
        return sum(_cpu(pid) for pid in self.pids)

    def memory_mib(self) -> float:
        """The proportional set size of the whole tree: shared pages count once."""
        assert self._process is not None
        return memory_mib(self._process.pid)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._ready, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def memory_mib(pid: int) -> float:
    """The proportional set size of ``pid`` and its descendants: shared pages count once."""
    return sum(memory_bytes(one) for one in tree(pid)) / 2**20


def _cpu(pid: int) -> float:
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS if fields else 0.0
