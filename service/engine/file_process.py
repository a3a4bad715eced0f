"""The process that decodes files for an engine, with a CUDA context of its own.

In the engine, its Python would take turns with the core's and the device thread's: a CPython process runs one thread
at a time. It is forked before the engine has a thread or a context. If it ends, the front-ends decode all files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from typing import TYPE_CHECKING

from service.engine import files
from service.engine.arena import Arena, Geometry
from service.engine.files import FileDecoding
from service.host.usage import name_process
from service.images.decoders import rights
from service.shared.fallback import sentence
from service.shared.transport import PROCESSES, Channel, Link, socket_pair

if TYPE_CHECKING:
    from service.preprocess import Preprocessing

log = logging.getLogger(__name__)

#: Seconds in which torch is imported, the library loaded and its pixels compared, on a cold and busy machine.
_PATIENCE = 120.0


class FileProcess:
    """The engine's side of a process that waits to be told what to decode."""

    def __init__(self) -> None:
        """Forks the process. Call it while this process has one thread. Raises `OSError` if that is impossible."""
        if not PROCESSES:
            raise OSError("this system has no processes that could decode files")
        self._end, theirs = socket_pair()
        engine = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _run(theirs, engine)
        theirs.close()

    def open(self, arena: Arena, spec: Preprocessing, device: str) -> FileDecoding:
        """Returns the decoder of files in the slots of ``arena``. Raises `ValueError` with the reason if there is
        none."""
        channel = Channel(self._end)
        channel.send(
            "open",
            geometry=arena.geometry.to_json(),
            preprocessing=spec.to_json(),
            device=device,
            descriptors=[arena.descriptor],
        )
        ready, _, _ = select.select([self._end], [], [], _PATIENCE)
        received = channel.receive() if ready else None
        if received is None:
            self.close()
            raise ValueError("the process that decodes files has ended, or does not answer")
        message, _ = received
        if message["kind"] == "refused":
            self.close()
            raise ValueError(message["reason"])
        return FileDecoding(Link(self._end))

    def close(self) -> None:
        """Ends the process and waits for it."""
        self._end.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, rights.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _run(end: socket.socket, engine: int) -> None:
    """Runs the process. Never returns."""
    code = 1
    try:
        rights.die_with(engine)
        name_process("file-decoder")
        rights.close_all_but({0, 1, 2, end.fileno()})
        _serve(end)
        code = 0
    except BaseException:
        # The border of this process: the engine sees its end.
        log.exception("the decoder of files failed")
    finally:
        os._exit(code)


def _serve(end: socket.socket) -> None:
    channel = Channel(end)
    select.select([end], [], [])
    received = channel.receive()
    if received is None:
        return
    message, (memory,) = received
    arena = Arena(memory, Geometry.from_json(message["geometry"]))
    try:
        import torch

        from service.models.cuda.jpegs import adopt, open_decoder
        from service.preprocess import Preprocessing

        spec = Preprocessing.from_json(message["preprocessing"])
        decoder = open_decoder(spec, torch.device(message["device"]))
        # Copies from the device can then run while the next files are decoded; without it they are only slower.
        adopt(arena.pixels)
    except Exception as error:
        # The border of a library that may be missing or old, or may not find its device.
        channel.send("refused", reason=sentence(error))
        return
    channel.send("opened")
    files.serve(Link(end), decoder, arena)
