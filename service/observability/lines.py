"""Lines on standard error, from a writer that never waits for their reader.

A pipe whose reader has stalled takes no more after a few hundred lines, and a process that goes on writing stands still
in the middle of a request. Here a line that cannot be written at once waits for the next chance, in a queue with an
end; what does not fit is dropped, counted, and said as soon as there is a reader again. There is no thread: the
supervisor forks.
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

#: Bytes that wait for their reader at most: some thousand lines.
_MOST = 1 << 20
#: Bytes that a pipe which is ready for some takes for sure (POSIX: PIPE_BUF).
_AT_ONCE = 512 if sys.platform != "linux" else 4096
#: Seconds for the last lines of a process.
_LAST_WORDS = 0.5
#: What a system says that does not know how to write without waiting, for this kind of file.
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE)


class Output:
    """A descriptor that is written to without waiting. Not for several threads at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._own = _terminal(descriptor)
        """The same terminal, opened once more: only this way it can be told not to wait."""
        self._never_waits = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._knows_nowait = hasattr(os, "RWF_NOWAIT")
        self._process = os.getpid()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self.dropped = 0
        """Lines that nobody is going to read."""

    def write(self, line: bytes) -> None:
        """Writes ``line``, now or when its reader has caught up."""
        self.flush()
        if not self._queue:
            line = line[self._try(line) :]
        if not line:
            return
        if self._queued + len(line) > _MOST:
            self.dropped += 1
            return
        self._queue.append(line)
        self._queued += len(line)

    def flush(self) -> bool:
        """Writes what waits, as far as the reader takes it. True when nothing waits any more."""
        if self._process != os.getpid():  # a fork: its parent still has these lines
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
        """Gives the reader a moment for what still waits."""
        give_up = time.monotonic() + _LAST_WORDS
        while not self.flush() and time.monotonic() < give_up:
            _ready(self._descriptor, _LAST_WORDS)
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _try(self, line: bytes) -> int:
        """How many bytes were taken. All of them where there is no reader any more."""
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
        """For systems that know no better way: two processes may be told of the same room in a pipe, and one waits."""
        done = 0
        with contextlib.suppress(OSError):
            while done < len(line) and _ready(self._descriptor, 0):
                done += os.write(self._descriptor, line[done : done + _AT_ONCE])
            return done
        self.dropped += 1
        return len(line)


class Handler(logging.Handler):
    """Log lines to an `Output`."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line of ``record``."""
        try:
            self._output.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            # As the standard library's handlers do: a line that cannot be made must not end what it is about.
            self.handleError(record)

    def flush(self) -> None:
        """Writes what waits, and says what was lost meanwhile."""
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
