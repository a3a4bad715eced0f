"""The keeper: a process that forks decoders. A front-end forks it before it has a thread, a client or a key.

    front-end ──channel──▶ keeper     receives: start a decoder (its socket, its memory) · release one
              ◀──────────             sends: born, with the process id, or 0 if the fork failed

A front-end must not fork later, when it has threads and its clients' connections. The keeper has neither, so its
forks take milliseconds and share what was imported. The keeper does not wait for a decoder that has ended until the
front-end releases it; until then the process id is not reused, and a signal can never reach another process. When the
front-end ends, so does the keeper, and the kernel kills the decoders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from typing import Any

from service.host.usage import name_process
from service.images.decoders import process, rights, wire
from service.images.decoders.picture import Recipe
from service.images.decoders.wire import Layout
from service.shared.transport import Channel, socket_pair

log = logging.getLogger(__name__)

#: Seconds between two attempts to reap a released decoder.
_LOOK_AGAIN = 0.1


class Keeper:
    """The front-end's side of the channel. ``pid`` is the keeper's process id."""

    def __init__(self, niceness: int = 0) -> None:
        """Forks the keeper. Call it while this process has one thread. ``niceness`` is added to the decoders'."""
        ours, theirs = socket_pair()
        self.pid = os.fork()
        if not self.pid:
            os.nice(niceness)
            _run(theirs)
        theirs.close()
        self.channel = Channel(ours)

    def start_decoder(self, end: socket.socket, memory: int, layout: Layout, recipe: dict[str, Any]) -> bool:
        """Asks for a decoder on socket ``end`` and shared ``memory``. Returns False if the keeper has gone or does
        not read."""
        return self.channel.send(
            "decoder",
            room=layout.room,
            pixel_bytes=layout.pixel_bytes,
            recipe=recipe,
            descriptors=[end.fileno(), memory],
        )

    def release(self, pid: int) -> bool:
        """Tells the keeper to reap a decoder that has ended or is about to."""
        return self.channel.send("release", pid=pid)

    def close(self) -> None:
        """Ends the keeper and its decoders, and waits for the keeper."""
        self.channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _run(end: socket.socket) -> None:
    """Runs the keeper's process. Never returns."""
    code = 1
    try:
        name_process("decoder-keeper")
        rights.close_all_but({0, 1, 2, end.fileno()})
        _serve(end)
        code = 0
    except BaseException:
        # The border of this process: the front-end sees it end and reports it.
        log.exception("the keeper of the decoders failed")
    finally:
        os._exit(code)


def _serve(end: socket.socket) -> None:
    channel, dying, warm = Channel(end), set[int](), False
    while True:
        select.select([end], [], [], _LOOK_AGAIN if dying else None)
        dying -= {pid for pid in dying if _has_ended(pid)}
        try:
            received = channel.receive()
        except BlockingIOError:
            continue
        if received is None:
            return
        message, descriptors = received
        if message["kind"] == "release":
            dying.add(message["pid"])
            continue
        recipe = wire.recipe_from_json(message["recipe"])
        if not warm:
            process.warm_up(recipe)
            warm = True
        layout = Layout(message["room"], message["pixel_bytes"])
        pid = _fork(channel, descriptors, layout, recipe)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send("born", pid=pid)


def _has_ended(pid: int) -> bool:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    if found and os.WIFSIGNALED(status) and os.WTERMSIG(status) != rights.SIGKILL:
        log.warning("a decoder was ended by signal %d", os.WTERMSIG(status))
    return bool(found)


def _fork(channel: Channel, descriptors: list[int], layout: Layout, recipe: Recipe) -> int:
    """Forks a decoder and returns its process id; 0 if the fork failed."""
    keeper = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        log.error("no decoder could be started: %s", error.strerror)
        return 0
    if pid:
        return pid
    try:
        rights.die_with(keeper)
        name_process("decoder")
        channel.close()
        process.main(socket.socket(fileno=descriptors[0]), descriptors[1], layout, recipe)
        os._exit(0)
    finally:
        os._exit(1)
