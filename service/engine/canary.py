"""When the canary runs: before the next batch where a model says that it is due, and while nobody asks anything.

A rule without a clock or a device. What is due, and what the canary has to answer, is the model's affair.
"""

from __future__ import annotations

from service.shared.batches import BatchReport

#: Seconds in which nothing ran before the canary does. A model has a few places to be looked at, each in its turn.
PAUSE = 0.5
#: Of a device that has nothing else to do, the part of the time that the canary takes at most: so rarely does it keep
#: waiting who comes then.
SHARE = 1 / 32


class Canary:
    """Of one device, and of its streams if it has any, which are due each for itself."""

    def __init__(self, now: float) -> None:
        self._due = {False: False, True: False}
        """By whether it is the streams' that is."""
        self._out = {False: False, True: False}
        self._quiet_since = now
        self._pause = PAUSE
        self.yields = False
        """Whether the one that runs is to end when somebody comes: it was not due."""

    def started(self, in_stream: bool) -> None:
        """The canary runs."""
        self._out[in_stream] = True

    def ended(self, ran: BatchReport | None, in_stream: bool, seconds: float, now: float) -> None:
        """The canary has run for ``seconds``; ``ran`` is None when it failed."""
        self._out[in_stream] = False
        self.yields = False
        self._pause = max(PAUSE, seconds / SHARE)
        self.ran(ran, in_stream, now)

    def ran(self, ran: BatchReport | None, in_stream: bool, now: float) -> None:
        """Takes note of a batch; ``ran`` is None for one that failed."""
        self._due[in_stream] = ran is not None and ran.canary_due
        self._quiet_since = now

    def is_due(self, in_streams: bool) -> bool:
        """Whether it runs before any other batch there."""
        return self._due[in_streams] and not self._out[in_streams]

    def is_welcome(self, now: float) -> bool:
        """Whether a device that has nothing to do had nothing for long enough."""
        return now - self._quiet_since >= self._pause
