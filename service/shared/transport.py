"""The sockets and memory between processes; the only module that tells Linux from other systems.

There are two kinds of socket pair. A *link* joins a front-end to an engine and carries slot numbers only. A *channel*
joins the supervisor to a child and carries a few JSON messages in a lifetime, some with file descriptors. Both are
``SOCK_SEQPACKET`` on Linux: the kernel keeps the frames whole and reports the death of the other side. Nothing is
pickled.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

#: True if front-ends and engine can be processes. Otherwise (macOS) they are threads of one process.
PROCESSES = hasattr(socket, "SOCK_SEQPACKET") and hasattr(os, "memfd_create")

_KIND = socket.SOCK_SEQPACKET if PROCESSES else socket.SOCK_DGRAM

#: The largest number of numbers in a datagram, far below the smallest send buffer of a socket.
_NUMBERS_PER_FRAME = 1024
_MAX_MESSAGE_BYTES = 64 * 1024
_MAX_DESCRIPTORS = 4


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected, non-blocking datagram sockets."""
    pair = socket.socketpair(socket.AF_UNIX, _KIND)
    for end in pair:
        end.setblocking(False)
    return pair


def anonymous_memory(size: int) -> int:
    """A file descriptor of ``size`` zero bytes in no file system, so that a SIGKILL leaves nothing behind."""
    if PROCESSES:
        descriptor = os.memfd_create("imagenet-serve", os.MFD_CLOEXEC)
    else:
        descriptor, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(descriptor, size)
    return descriptor


def blob(data: bytes) -> int:
    """A file descriptor that holds ``data``."""
    descriptor = anonymous_memory(len(data))
    os.pwrite(descriptor, data, 0)
    return descriptor


def read_blob(descriptor: int) -> bytes:
    """The bytes that `blob` was given. Closes the descriptor."""
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            return bytes(mapped)
    finally:
        os.close(descriptor)


class Link:
    """One end of the pair between a front-end and the engine. Never blocks.

    Numbers that the kernel does not take at once, because the other side is stopped or slow, wait here and leave
    together at the next `flush`; ``backlog`` is True while any wait.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._waiting: array[int] = array("i")

    @classmethod
    def of(cls, descriptor: int) -> Link:
        """The link whose socket arrived as ``descriptor``, which it owns from now on."""
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        return cls(end)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def backlog(self) -> bool:
        return bool(self._waiting)

    def send(self, numbers: Iterable[int]) -> None:
        """Sends signed 32-bit ``numbers`` in order. If the other side is gone they are dropped."""
        self._waiting.extend(numbers)
        self.flush()

    def flush(self) -> None:
        while self._waiting:
            frame = self._waiting[:_NUMBERS_PER_FRAME]
            try:
                self._socket.send(frame)
            except BlockingIOError:
                return
            except OSError:  # the other side is gone
                self._waiting = array("i")
                return
            del self._waiting[: len(frame)]

    def receive(self) -> Sequence[int] | None:
        """All numbers that have arrived; None once the other side has closed."""
        numbers: array[int] = array("i")
        while True:
            try:
                frame = self._socket.recv(4 * _NUMBERS_PER_FRAME)
            except BlockingIOError:
                return numbers
            except OSError:
                return numbers or None
            if not frame:
                return numbers or None  # numbers before the end are returned first, None by the next call
            numbers.frombytes(frame)

    def close(self) -> None:
        self._socket.close()


class Channel:
    """One end of the pair between the supervisor and a child: small JSON messages, with descriptors."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, *, descriptors: Sequence[int] = (), **fields: Any) -> bool:
        """Sends one message. False if the other side is gone or does not read, or this side is closed."""
        if self._socket.fileno() < 0:
            return False  # closed because the other side died meanwhile
        frame = json.dumps({"kind": kind, **fields}).encode()
        try:
            socket.send_fds(self._socket, [frame], list(descriptors))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, which the caller must close; None once the other side has closed.

        If this process has too few free descriptors for those of a message, the message becomes one of the kind
        ``truncated``. Raises `BlockingIOError` if nothing has arrived.
        """
        try:
            frame, descriptors, flags, _ = socket.recv_fds(self._socket, _MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS)
        except ConnectionResetError:
            return None
        if not frame:
            return None
        if flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:
                os.close(descriptor)
            return {"kind": "truncated"}, []
        message: dict[str, Any] = json.loads(frame)
        return message, descriptors

    def close(self) -> None:
        self._socket.close()
