"""The supervisor's loop: callbacks for readable descriptors and for signals."""

from __future__ import annotations

import selectors
import signal
from collections.abc import Callable, Sequence

from service.shared import transport
from service.supervisor.child import Closable


class Loop:
    """An event loop over a selector: `add_reader` registers callbacks, `step` runs one turn."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake = transport.socket_pair()

    def __repr__(self) -> str:
        return f"<Loop of {len(self._callbacks)} descriptors>"

    def resources(self) -> list[Closable]:
        """The resources that a forked process must close."""
        return [self._selector, *self._wake]

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when ``descriptor`` is readable."""
        self._callbacks[descriptor] = callback
        self._selector.register(descriptor, selectors.EVENT_READ)

    def remove_reader(self, descriptor: int) -> None:
        """Removes ``descriptor``; to be called before it is closed."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def has_reader(self, descriptor: int) -> bool:
        return descriptor in self._callbacks

    def catch_signals(self, signals: Sequence[signal.Signals], callback: Callable[[str], None]) -> None:
        """Calls ``callback`` in `step` with the name of each of the ``signals`` that comes."""
        reader, writer = self._wake
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in signals:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup wants it
            signal.signal(number, lambda *_: None)  # the wake-up descriptor carries the number into the loop

        def came() -> None:
            for number in reader.recv(16):
                callback(signal.Signals(number).name)

        self.add_reader(reader.fileno(), came)

    def step(self, seconds: float) -> None:
        """Waits for readable descriptors, at most ``seconds``, and calls their callbacks."""
        # All callbacks are collected first: one of them may close a descriptor whose number another one then reuses.
        due = [(key.fd, self._callbacks[key.fd]) for key, _ in self._selector.select(seconds)]
        for descriptor, callback in due:
            if self._callbacks.get(descriptor) is callback:  # else an earlier one has removed or replaced it
                callback()

    def close(self) -> None:
        """Closes the loop's own descriptors."""
        signal.set_wakeup_fd(-1)
        for resource in self.resources():
            resource.close()
