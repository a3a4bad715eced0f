"""Lines on standard error, from a writer that never waits for their reader.

A pipe whose reader has stalled is full after a few hundred lines, and a process that goes on writing then blocks in the
middle of a request. Here a line that cannot be written at once waits in a bounded queue. Lines that do not fit are
dropped and counted, and their number is logged once there is a reader again. No thread is used, since the supervisor
forks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
import sys
import time
from collections import deque

log = logging.getLogger(__name__)

#: The largest number of bytes in the queue: some thousand lines.
_MAX_QUEUED_BYTES = 1 << 20
#: Bytes that a pipe takes without blocking when it is ready for any (POSIX: PIPE_BUF).
_AT_ONCE = 512 if sys.platform != "linux" else 4096
#: Seconds for the last lines of a process that ends.
_LAST_WORDS = 0.5
#: Errors of a system that cannot write to this kind of file without waiting.
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE)


class LineWriter:
    """Writes to a descriptor without waiting. Not thread-safe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._own = _terminal(descriptor)
        """A second descriptor of a terminal, since O_NONBLOCK on the first one would affect other processes."""
        self._never_waits = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._knows_nowait = hasattr(os, "RWF_NOWAIT")
        self._process = os.getpid()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self.dropped = 0
        """The number of lost lines."""

    def write(self, line: bytes) -> None:
        """Writes ``line`` now, or queues it until the reader has caught up."""
        self.flush()
        if not self._queue:
            line = line[self._try(line) :]
        if not line:
            return
        if self._queued + len(line) > _MAX_QUEUED_BYTES:
            self.dropped += 1
            return
        self._queue.append(line)
        self._queued += len(line)

    def flush(self) -> bool:
        """Writes as much of the queue as the reader takes. True when the queue is empty."""
        if self._process != os.getpid():  # a forked child: its parent writes these lines
            self._process, self._queued, self.dropped = os.getpid(), 0, 0
            self._queue.clear()
        while self._queue:
            line = self._queue[0]
            done = self._try(line)
            self._queued -= done
            if done < len(line):
                self._queue[0] = line[done:]
                return False
            self._queue.popleft()
        return True

    def end(self) -> None:
        """Writes the rest of the queue, for `_LAST_WORDS` seconds at most."""
        give_up = time.monotonic() + _LAST_WORDS
        while not self.flush() and time.monotonic() < give_up:
            _ready(self._descriptor, _LAST_WORDS)
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _try(self, line: bytes) -> int:
        """Writes as much as possible and returns the number of bytes; all of them if there is no reader any more."""
        try:
            if self._own is not None:
                return os.write(self._own, line)
            if self._never_waits:
                return os.write(self._descriptor, line)
            if self._knows_nowait:
                return os.pwritev(self._descriptor, [line], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._knows_nowait or error.errno not in _UNKNOWN:
                self.dropped += 1
                return len(line)
            self._knows_nowait = False
        return self._try_ready(line)

    def _try_ready(self, line: bytes) -> int:
        """Writes while poll says that the pipe is ready, on systems without RWF_NOWAIT.

        Two processes may see the same free room in a pipe, and one of them then waits.
        """
        done = 0
        with contextlib.suppress(OSError):
            while done < len(line) and _ready(self._descriptor, 0):
                done += os.write(self._descriptor, line[done : done + _AT_ONCE])
            return done
        self.dropped += 1
        return len(line)


class Handler(logging.Handler):
    """A logging handler that writes to a `LineWriter`."""

    def __init__(self, output: LineWriter) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            # As in the standard library's handlers: a record that cannot be formatted must not break its caller.
            self.handleError(record)

    def flush(self) -> None:
        """Writes the queued lines and logs the number of lost ones."""
        with self.lock:  # type: ignore[union-attr]
            dropped = self._output.dropped if self._output.flush() else 0
            self._output.dropped -= dropped
        if dropped:
            log.warning("%d log lines were dropped: nobody read standard error", dropped)

    def close(self) -> None:
        with self.lock:  # type: ignore[union-attr]
            self._output.end()
        super().close()


def _terminal(descriptor: int) -> int | None:
    if not os.isatty(descriptor):
        return None
    with contextlib.suppress(OSError):
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return None


def _ready(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))
