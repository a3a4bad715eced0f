"""The real service, started as a user starts it: `python -m service serve`, on a free port."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

#: A new connection for every request, and no certificates to load for it.
HTTP = httpx.Client(verify=False, timeout=60, headers={"connection": "close"})

#: Seconds: a start on a busy machine, and an end.
_START, _END = 90.0, 60.0


class Server:
    """``with Server(weights=..., frontends=2) as server: httpx.get(server.url + "/readyz")``.

    Settings are those of ``imagenet-serve serve``. The log is collected and shown when a start fails.
    """

    def __init__(
        self, *, wait: bool = True, environment: dict[str, str] | None = None, **settings: Any
    ) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port=0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._wait = wait
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

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
        """Process ids: ``engine`` is the one that has torch in its memory, the others are front-ends."""
        pids = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        engines = [pid for pid in pids if _maps_torch(pid)]
        front_ends = [pid for pid in pids if pid not in engines]
        names = {f"frontend-{number}": pid for number, pid in enumerate(front_ends, start=1)}
        return {**names, **dict(zip(["engine"], engines, strict=False))}

    def wait_ready(self) -> None:
        self._await(lambda: self._answers("/readyz"), "not ready")

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(_END)

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
                self.lines.append(line.rstrip())


def _maps_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
