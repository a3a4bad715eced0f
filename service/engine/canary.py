"""The schedule of the canary, the known image by which a device is checked: pure rules, without a clock or a device.

The canary runs before the next batch if the model says that it is due, and while the device is idle. The model decides
when it is due and checks its answer.
"""

from __future__ import annotations

from service.shared.batches import BatchReport

#: Seconds for which a device must be idle before a canary that is not due runs.
PAUSE = 0.5
#: The largest share of an idle device's time for such canaries, so that arriving requests rarely wait for one.
SHARE = 1 / 32


class Canary:
    """The schedule of one device and of its streams, if it has any. Each of the two has its own due canary."""

    def __init__(self, now: float) -> None:
        self._due = {False: False, True: False}
        """True if a canary is due, by the key ``in_stream``."""
        self._out = {False: False, True: False}
        """True while a canary runs, by the key ``in_stream``."""
        self._quiet_since = now
        self._pause = PAUSE
        self.yields = False
        """True while a canary runs that was not due, and should end when a request arrives."""

    def started(self, in_stream: bool) -> None:
        """Notes that the canary runs."""
        self._out[in_stream] = True

    def ended(self, ran: BatchReport | None, in_stream: bool, seconds: float, now: float) -> None:
        """Notes that the canary has run for ``seconds``; ``ran`` is None if it failed."""
        self._out[in_stream] = False
        self.yields = False
        self._pause = max(PAUSE, seconds / SHARE)
        self.ran(ran, in_stream, now)

    def ran(self, ran: BatchReport | None, in_stream: bool, now: float) -> None:
        """Notes that a batch has run; ``ran`` is None if it failed."""
        self._due[in_stream] = ran is not None and ran.canary_due
        self._quiet_since = now

    def is_due(self, in_streams: bool) -> bool:
        """True if the canary must run before the next batch."""
        return self._due[in_streams] and not self._out[in_streams]

    def is_welcome(self, now: float) -> bool:
        """True if the device has been idle for long enough to run a canary that is not due."""
        return now - self._quiet_since >= self._pause
