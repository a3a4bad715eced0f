"""An engine with a fake model, in a thread or in a process of its own, and clients in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any

from service.engine.arena import Arena, Geometry
from service.engine.batcher import Batcher
from service.engine.client import EngineClient
from service.engine.core import EngineCore
from service.engine.process import handle_message
from service.shared.batches import DeviceFailed
from service.shared.transport import Channel, Link, socket_pair
from tests.fakes import FAKE_MAP, FakeRunner

IMAGE = (6, 5, 3)


def make_core(runner: FakeRunner, arena: Arena, channel: Channel, delay: float) -> EngineCore:
    core = EngineCore(runner, arena, Batcher(runner.max_batch_size, delay), capacity=100.0)
    core.watch(channel, lambda: handle_message(core, channel))
    return core


class Engine:
    """``with Engine("thread") as engine: client = engine.connect()`` inside a running event loop."""

    def __init__(self, kind: str, *, slots: int = 16, queue_delay: float = 0.0, **runner: Any) -> None:
        self.kind = kind
        self.arena = Arena.create(Geometry(slots, *IMAGE, results=10 + FAKE_MAP))
        self.runner = FakeRunner(**runner)
        self._clients: list[EngineClient] = []
        self._next_number = 1
        ours, theirs = socket_pair()
        self._channel = Channel(ours)
        if kind == "thread":
            self._theirs = theirs
            self.core = make_core(self.runner, self.arena, Channel(theirs), queue_delay)
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        else:
            settings = {"slots": slots, "queue_delay": queue_delay, "runner": runner}
            descriptors = (self.arena.descriptor, theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.engine.harness", *map(str, descriptors), json.dumps(settings)],
                pass_fds=descriptors,
            )
            theirs.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.detach()
        self._channel.send("stop")
        if self.kind == "thread":
            self.runner.may_run.set()
            self._thread.join(20)
            assert not self._thread.is_alive()
            self._theirs.close()
        else:
            self.process.wait(20)
        self._channel.close()

    def _serve(self) -> None:
        with contextlib.suppress(DeviceFailed):  # the front-ends learn it, as they do of a process
            self.core.serve()

    def connect(
        self, client: EngineClient | None = None, standby: bool = False, model: str | None = None
    ) -> EngineClient:
        """Attaches ``client``, or a new one, as a front-end of its own. To be called on a running loop."""
        ours, theirs = socket_pair()
        number = self._next_number
        self._next_number += 1
        self._channel.send("front-end", number=number, descriptors=[theirs.fileno()])
        theirs.close()
        client = client or EngineClient()
        arena = Arena(os.dup(self.arena.descriptor), self.arena.geometry)
        client.attach(arena, Link(ours), number, standby, model)
        self._clients.append(client)
        return client


def main() -> None:
    arena_descriptor, channel_descriptor, document = sys.argv[1:]
    settings = json.loads(document)
    arena = Arena(int(arena_descriptor), Geometry(settings["slots"], *IMAGE, results=10 + FAKE_MAP))
    end = socket.socket(fileno=int(channel_descriptor))
    end.setblocking(False)
    make_core(FakeRunner(**settings["runner"]), arena, Channel(end), settings["queue_delay"]).serve()


if __name__ == "__main__":
    main()
