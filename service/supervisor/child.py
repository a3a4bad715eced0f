"""A part of the service that runs beside the supervisor: a forked process, or a thread where there is no fork.

The supervisor imports no torch and starts no thread, so a fork is safe, takes milliseconds, and shares
what was imported. On a system without `transport.PROCESSES` the same functions run as threads.
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

#: Seconds. The sentinel is readable when the last descriptor closes, the exit code is there a moment later.
_BETWEEN_END_AND_CODE = 1.0

#: What a child does with its end of the channel. Returns when it has ended well.
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
        """Once it has ended: None if it ended well, else how it ended."""
        raise NotImplementedError

    def kill(self) -> None:
        """Ends it at once, if it can be."""
        raise NotImplementedError


class ProcessChild(Child):
    """A forked process."""

    def __init__(self, name: str, main: Main, not_for_child: Iterable[Closable]) -> None:
        ours, theirs = socket_pair()

        def body() -> None:
            # What the fork copied and only the supervisor may hold: with a copy of another channel
            # open in here, its peer would never see that the supervisor has died.
            ours.close()
            for resource in not_for_child:
                resource.close()
            _forget_signals()
            name_process(name)
            try:
                main(Channel(theirs))
            except Exception:
                # The border of this process: nothing above could do more than say what happened.
                log.exception("%s failed", name)
                raise SystemExit(1) from None

        # What is there now stays in both. A child's collector that walked through it would copy its pages.
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
    """A thread of this process. Nothing can kill it; it ends when it is asked to."""

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
                # The border of this thread: what would have been the end of a process.
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
    """A terminal's Ctrl-C and its end reach every process of the group; only the supervisor acts on them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for the life of the process
