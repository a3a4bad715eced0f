"""The real service, started as a user starts it: `python -m service serve`, on a free port."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from service.host import usage

#: A new connection for every request, and no certificates to load for it.
HTTP = httpx.Client(verify=False, timeout=60, headers={"connection": "close"})

#: Seconds: a start on a busy machine, and an end.
_START, _END = 240.0, 60.0
#: TCP_LISTEN and TCP_ESTABLISHED in /proc/net/tcp.
_LISTENING, _ESTABLISHED = "0A", "01"


@contextlib.contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program that ends with the block: a test that fails meanwhile does not wait for what it never told to end."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Server:
    """``with Server(weights=..., frontends=2) as server: httpx.get(server.url + "/readyz")``.

    Settings are those of ``imagenet-serve serve``. The log is collected and shown when a start fails.
    Without ``access_log`` its lines are not kept.
    ``module`` may name another program with that command line, ``environment`` adds to this process's, and
    ``descriptors`` is how many it may open.
    """

    def __init__(
        self,
        *,
        wait: bool = True,
        module: str = "service",
        access_log: bool = True,
        environment: dict[str, str] | None = None,
        descriptors: int | None = None,
        **settings: Any,
    ) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors else []
        self._process = subprocess.Popen(
            [*limit, sys.executable, "-m", module, "serve", "--port=0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._wait = wait
        self._access_log = access_log
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        self._inode = ""

    def __enter__(self) -> Server:
        self.url = self._await(lambda: self._listening(), "no port")
        if self._wait:
            self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_END)
        self._reader.join(_END)

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> dict[str, int]:
        """Process ids: ``engine`` is the one that does not hold the port, the others are front-ends."""
        pids = usage.children(self.pid)
        if not pids:
            return {}
        self._inode = self._inode or self._port_inode()
        # One that is dying holds nothing any more, and is neither.
        sockets = {pid: found for pid in pids if (found := _descriptors(pid))}
        pids = list(sockets)
        engines = [pid for pid in pids if f"socket:[{self._inode}]" not in sockets[pid]]
        front_ends = [pid for pid in pids if pid not in engines]
        names = {f"frontend-{number}": pid for number, pid in enumerate(front_ends, start=1)}
        return {**names, **dict(zip(["engine"], engines, strict=False))}

    def _port_inode(self) -> str:
        """The socket that the supervisor and the front-ends listen on."""
        for inode in _sockets(int(self.url.rpartition(":")[2]), _LISTENING):
            return inode
        raise AssertionError("nobody listens")

    def wait_ready(self) -> None:
        self._await(lambda: self._answers("/readyz"), "not ready")

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(_END)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def metrics(self) -> dict[str, float]:
        text = HTTP.get(self.url + "/metrics").text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def _answers(self, path: str) -> bool:
        try:
            return HTTP.get(self.url + path).status_code == 200
        except httpx.TransportError:
            return False

    def _listening(self) -> str:
        for line in self.lines:
            if found := re.search(r"listening on (https?://\S+?)\"", line):
                return found[1]
        return ""

    def _await(self, condition: Any, complaint: str) -> Any:
        give_up = time.monotonic() + _START
        while not (result := condition()):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.__exit__(None, None, None)
                raise AssertionError(f"{complaint}:\n" + "\n".join(self.lines))
            time.sleep(0.05)
        return result

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if self._access_log or '"service.access"' not in line:
                    self.lines.append(line.rstrip())


def connections_of(pids: Iterable[int], port: int) -> list[int]:
    """The number of connections to ``port`` that each process holds."""
    established = {f"socket:[{inode}]" for inode in _sockets(port, _ESTABLISHED)}
    return [len(established.intersection(_descriptors(pid))) for pid in pids]


def _sockets(port: int, state: str) -> list[str]:
    """The inodes of this port's IPv4 sockets."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == state]


def _descriptors(pid: int) -> list[str]:
    """What each of its descriptors is; empty for a process that has ended, or is about to."""
    found = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(link))
    return found
