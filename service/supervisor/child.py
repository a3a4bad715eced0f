"""A part of the service that runs beside the supervisor: a forked process, or a thread on systems without fork.

The supervisor imports no torch and starts no thread. So a fork is safe, takes milliseconds, and shares the imported
modules. On a system without `transport.PROCESSES` the same functions run as threads.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from service.host.usage import name_process
from service.shared.transport import Channel, socket_pair

log = logging.getLogger(__name__)

#: Seconds to wait for the exit code, which comes a moment after the sentinel is readable.
_BETWEEN_END_AND_CODE = 1.0

#: The main function of a child, called with its end of the channel. It returns if the child ends well.
Main = Callable[[Channel], None]


class Closable(Protocol):
    def close(self) -> None: ...


class Child:
    """One running part. ``sentinel`` becomes readable when it has ended."""

    def __init__(self, name: str, channel: Channel, sentinel: int) -> None:
        self.name = name
        self.channel = channel
        self.sentinel = sentinel

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def pid(self) -> int:
        raise NotImplementedError

    def outcome(self) -> str | None:
        """The way in which it ended, in words; None if it ended well. Call it after its end."""
        raise NotImplementedError

    def kill(self) -> None:
        """Ends it at once, if possible."""
        raise NotImplementedError


class ProcessChild(Child):
    """A forked process."""

    def __init__(self, name: str, main: Main, not_for_child: Iterable[Closable]) -> None:
        ours, theirs = socket_pair()

        def body() -> None:
            # Closes what only the supervisor may hold. While a copy of another child's channel is open here, that child
            # would not see the supervisor's death.
            ours.close()
            for resource in not_for_child:
                resource.close()
            _forget_signals()
            name_process(name)
            try:
                main(Channel(theirs))
            except Exception:
                # The border of this process: the error can only be logged.
                log.exception("%s failed", name)
                raise SystemExit(1) from None

        # Frozen, present objects are not searched by the child's garbage collector, which would copy their pages.
        gc.freeze()
        self._process = multiprocessing.get_context("fork").Process(target=body, name=name)
        self._process.start()
        theirs.close()
        super().__init__(name, Channel(ours), self._process.sentinel)

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def outcome(self) -> str | None:
        self._process.join(_BETWEEN_END_AND_CODE)
        code = self._process.exitcode
        if not code:
            return None
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        self._process.kill()


class ThreadChild(Child):
    """A thread of this process. It cannot be killed; it ends when it is asked to."""

    def __init__(self, name: str, main: Main) -> None:
        ours, theirs = socket_pair()
        ended, end = os.pipe()
        self._outcome: str | None = None

        def body() -> None:
            try:
                main(Channel(theirs))
            except SystemExit as error:
                self._outcome = f"ended with exit code {error.code}" if error.code else None
            except Exception:
                # The border of this thread: the error counts as the part's end.
                log.exception("%s failed", name)
                self._outcome = "ended by an exception"
            finally:
                os.close(end)

        threading.Thread(target=body, name=name, daemon=True).start()
        super().__init__(name, Channel(ours), ended)

    @property
    def pid(self) -> int:
        return os.getpid()

    def outcome(self) -> str | None:
        return self._outcome

    def kill(self) -> None:
        log.warning("%s does not end", self.name)


def _forget_signals() -> None:
    """Ignores the signals that a terminal sends to the whole process group; only the supervisor acts on them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for the life of the process
