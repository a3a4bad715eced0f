"""The time of a start and the engine's memory, beside plain FastAPI with ONNX Runtime.

    python -m benchmarks.start                     everything: some minutes, on a machine with nothing else to do
    python -m benchmarks.start --models demo       a part of it

Seconds run from the command's start to the first 200 of /readyz, asked for every 50 ms. A *cached* start finds what
one before has left in a cache of this benchmark's own; a *first* one finds an empty cache. *Killed engine* is from
its SIGKILL to the next photo that is answered. *CPU* is what all processes have used by then, together: other work
on the machine changes it least. Python's files are compiled beforehand, as an installation does it. The peer is
`benchmarks.peers.fastapi_onnxruntime` with a model exported before; its start ends with its first answer to a photo.
All take turns, round by round; medians.
"""

from __future__ import annotations

import argparse
import compileall
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import processes, report
from service.cli.bench import run as bench
from service.host.usage import CLOCK_TICKS, stat_fields, tree

ROOT = Path(__file__).parent.parent
#: Seconds between two questions: the server answers one in a millisecond of CPU.
_EVERY, _PATIENCE = 0.05, 300.0
#: Fields of `stat_fields`: user and system time of a process, and of the children that it has waited for (proc(5)).
_CPU = slice(11, 15)
#: Models and their weights. Random weights take as long to read as trained ones.
WEIGHTS = {"densenet121": "random:0", "demo": "demo", "vgg16": "random:0"}
#: Goals of a start in seconds, on two quiet cores.
GOALS = {"densenet121": 2.0, "demo": 1.2, "vgg16": 4.0}
#: Environment of the servers. With PYTHONDONTWRITEBYTECODE, each start would measure Python's compiler.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Server:
    """A command that listens on ``port``, from `start` to `end`, in a session of its own."""

    def __init__(self, command: Sequence[str], port: int, cache: Path) -> None:
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [*command],
            cwd=ROOT,
            env={**_ENVIRONMENT, "XDG_CACHE_HOME": str(cache)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """Returns the status of an answer; 0 without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "image/jpeg"} if body else {})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def wait(self, what: Callable[[], bool]) -> float:
        """Returns the monotonic time at which ``what`` became true. Raises RuntimeError if the command ends or
        hangs."""
        while not what():
            if self._process.poll() is not None or time.monotonic() - self.began > _PATIENCE:
                self._log.seek(0)
                raise RuntimeError(self._log.read().decode(errors="replace")[-2000:])
            time.sleep(_EVERY)
        return time.monotonic()

    @property
    def children(self) -> list[int]:
        return [pid for pid in tree(self._process.pid) if pid != self._process.pid]

    @property
    def cpu_seconds(self) -> float:
        """Returns CPU seconds of the command and of all processes that it has started."""
        fields = [stat_fields(pid) for pid in tree(self._process.pid)]
        return sum(int(ticks) for found in fields for ticks in found[_CPU]) / CLOCK_TICKS

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.killpg(self._process.pid, signal.SIGKILL) if self.children else None
        self._log.close()


@contextmanager
def service(model: str, cache: Path) -> Any:
    port = processes.free_port()
    name = "densenet121" if model == "demo" else model
    flags = [f"--model={name}", f"--weights={WEIGHTS[model]}", f"--port={port}", "--device=cpu"]
    server = Server([sys.executable, "-m", "service", "serve", *flags], port, cache)
    try:
        yield server
    finally:
        server.end()


def started(model: str, cache: Path, photo: bytes, *, kill: bool = False) -> dict[str, float]:
    """Returns seconds to ready, the engine's PSS in MiB after some photos, and with ``kill`` the seconds to the next
    answer."""
    with service(model, cache) as server:
        ready = server.wait(lambda: server.ask("GET", "/readyz") == 200) - server.began
        cpu = server.cpu_seconds
        for _ in range(8):
            assert server.ask("POST", "/predict", photo) == 200
        engine = server.children[0]  # the supervisor starts the engine before any front-end
        found = {"ready": ready, "cpu": cpu, "engine": processes.memory_mib(engine)}
        found["tree"] = processes.memory_mib(server._process.pid)
        if kill:
            os.kill(engine, signal.SIGKILL)
            killed = time.monotonic()
            server.wait(lambda: server.ask("GET", "/readyz") != 200 or server.children[0] != engine)
            found["again"] = server.wait(lambda: server.ask("POST", "/predict", photo) == 200) - killed
    return found


def peer(folder: Path, photo: bytes) -> dict[str, float]:
    """Returns seconds to plain FastAPI's first answer, and its CPU seconds."""
    port = processes.free_port()
    program = str(ROOT / "benchmarks/peers/fastapi_onnxruntime.py")
    server = Server([sys.executable, program, str(port), str(folder / "model.onnx")], port, folder)
    try:
        ready = server.wait(lambda: server.ask("POST", "/predict", photo) == 200) - server.began
        return {"ready": ready, "cpu": server.cpu_seconds}
    finally:
        server.end()


def export(folder: Path) -> None:
    """Exports densenet121 for the peer in a process of its own, so that torch does not stay in this one."""
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, 'benchmarks/peers');"
        "import job, torch;"
        "torch.onnx.export(job.network(), (torch.zeros(1, 3, 224, 224),), sys.argv[1], input_names=['x'], dynamo=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "model.onnx")], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    processes.end_with_servers()
    photo = bench.synthetic_photo(500, 375)
    first: dict[str, dict[str, float]] = {}
    cached: dict[str, list[dict[str, float]]] = {model: [] for model in given.models}
    peers: list[dict[str, float]] = []
    compileall.compile_dir(ROOT / "service", quiet=1)
    with tempfile.TemporaryDirectory(prefix="imagenet-serve-start-") as name:
        folder = Path(name)
        with_peer = "densenet121" in given.models and find_spec("onnxruntime") is not None
        if with_peer:
            export(folder)
        for model in given.models:
            first[model] = started(model, folder, photo)
        for number in range(given.rounds + 1):  # the first round fills the page cache
            for model in given.models:
                found = started(model, folder, photo, kill=True)
                cached[model] += [found] if number else []
            if with_peer:
                took = peer(folder, photo)
                peers += [took] if number else []
    rows = []
    for model, rounds in cached.items():
        middle = {key: median(found[key] for found in rounds) for key in rounds[0]}
        row: dict[str, Any] = {"model": model, "cached, s": middle["ready"], "goal, s": GOALS[model]}
        row["cached, CPU s"] = middle["cpu"]
        if peers and model == "densenet121":
            row["FastAPI + ONNX Runtime, s"] = median(found["ready"] for found in peers)
            row["its CPU s"] = median(found["cpu"] for found in peers)
            row["ours / it"] = median(f["ready"] / p["ready"] for f, p in zip(rounds, peers, strict=True))
        row |= {"first, s": first[model]["ready"], "first, CPU s": first[model]["cpu"]}
        row["killed engine, s"] = middle["again"]
        row |= {"engine PSS, MiB": middle["engine"], "all processes, MiB": middle["tree"]}
        rows.append(row)
    report.publish("start", "Starts", {"starts": rows}, [__doc__.split("\n\n")[2].replace("\n", " ")])


if __name__ == "__main__":
    main()
