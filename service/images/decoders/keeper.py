"""The process that forks decoders. It is forked itself before the front-end has a thread, a client or a key.

    front-end ──channel──▶ keeper     told: a decoder (its socket, its memory) · bury one
              ◀──────────             tells: born, with the process's number · that there could be none

A front-end must not fork later: it has threads and everybody's connections then. The keeper has neither, so a fork of
it takes milliseconds and shares what was imported. A decoder that has ended keeps its number until the front-end has
let go of it: a signal can never reach another process. When the front-end ends, the keeper does, and the kernel kills
the rest.
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

#: Seconds between two looks for a killed decoder that the kernel has not let go of yet.
_LOOK_AGAIN = 0.1


class Keeper:
    """The front-end's side. ``pid`` is the keeper's."""

    def __init__(self) -> None:
        """Forks. To be called while this process has one thread."""
        ours, theirs = socket_pair()
        self.pid = os.fork()
        if not self.pid:
            _live(theirs)
        theirs.close()
        self.channel = Channel(ours)

    def ask(self, end: socket.socket, memory: int, layout: Layout, recipe: dict[str, Any]) -> bool:
        """For a decoder that serves ``end``. False if the keeper is not there, or does not listen."""
        return self.channel.send(
            "decoder",
            room=layout.room,
            pixel_bytes=layout.pixel_bytes,
            recipe=recipe,
            descriptors=[end.fileno(), memory],
        )

    def bury(self, pid: int) -> bool:
        """Lets go of a decoder that has ended, or is about to."""
        return self.channel.send("bury", pid=pid)

    def close(self) -> None:
        """Lets the keeper end, and its decoders with it. Waits for the keeper."""
        self.channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _live(end: socket.socket) -> None:
    """The keeper's life. Never returns."""
    code = 1
    try:
        name_process("decoder-keeper")
        rights.close_all_but({0, 1, 2, end.fileno()})
        _serve(end)
        code = 0
    except BaseException:
        # The border of this process: the front-end sees it end, and says so.
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
        if message["kind"] == "bury":
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
    """The number of a new decoder; 0 if there can be none now."""
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
