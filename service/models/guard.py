"""The canaries on a CPU: each executor's answers after warm-up are the answers that it must repeat later.

An executor has its own memory for weights, and batches of several sizes may run by several kernels. So each executor
is checked by itself, by its own passes, in the batch size that it ran most often. Then the same kernels compute the
same images in the same rows, and other kernels' rounding makes no difference.

The images take turns: a pass of one image shows the one that this executor has not seen for longest, and a larger
one shows several. So two looks show two images at least, and four looks show all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.models import canary
from service.models.canary import Logits
from service.models.runtimes import Answer, Executor, Stoppable, Stream
from service.models.watch import CANARY_EVERY, Trust, Watch
from service.shared.batches import BatchReport

#: Passes between two looks at an executor: two images look at it within `CANARY_EVERY` of its passes, since one
#: alone leaves some 3 % of the weights unseen (benchmarks/canary_images.py).
LOOK_EVERY = CANARY_EVERY // 2
#: Passes with unique last bits after which an executor counts as one that never repeats its bits.
_ODD = 3


class Reference:
    """The right answers of an executor to the canary: ``rows``, float32 ``[images, length]``, from warm-up.

    Nearly every executor gives the same bits each time. So even a damaged bit that moves an answer by less than the
    tolerance is found: the answer differs from the earlier ones twice in the same way. An executor that does not
    repeat its bits is judged by the tolerance of its precision.
    """

    def __init__(self, rows: NDArray[np.float32], precision: str) -> None:
        self.rows = rows
        self._precision = precision
        self._confirmed = False
        """True if these bits were seen again."""
        self._odd = 0
        """Passes with other bits that were seen only once."""

    def wrong(self, run: Callable[[], NDArray[np.float32]]) -> int:
        """Returns how many rows from ``run`` are wrong. Runs twice if bits differ within the tolerance."""
        first = run()
        if self._is_same(first):
            self._confirmed = True
            return 0
        far = self._far(first)
        if far or self._odd > _ODD:
            return far
        second = run()
        far = self._far(second)
        if far or self._is_same(second) or not _same_bits(first, second):
            self._odd += 1
            return far
        if self._confirmed:
            return int((first != self.rows).any(1).sum())
        self.rows = first  # the very first pass used another kernel
        return 0

    def _is_same(self, rows: NDArray[np.float32]) -> bool:
        return _same_bits(rows, self.rows)

    def _far(self, rows: NDArray[np.float32]) -> int:
        pairs = zip(rows, self.rows, strict=True)
        return sum(not canary.is_same(row, right, self._precision) for row, right in pairs)


class Look(NamedTuple):
    """A pass that shows the canaries from ``first`` on to an executor, as many as ``images``."""

    executor: str
    images: int
    first: int

    @property
    def slots(self) -> list[int]:
        """The numbers of the canaries, in the order of the batch."""
        return [(self.first + row) % canary.IMAGES for row in range(self.images)]


class Guard:
    """Checks the executors of one runner with the canary.

    ``image`` is (height, width, channels); ``precision`` decides the tolerance. ``expected`` are the network's own
    answers, ``[canary.IMAGES, length]``, if they are known.
    """

    def __init__(self, image: tuple[int, int, int], precision: str, expected: Logits | None = None) -> None:
        self._pixels = canary.images(image)
        self._precision = precision
        # Weights with NaN are their owner's affair: every answer is an error that says so.
        self._expected = expected if expected is not None and np.isfinite(expected).all() else None
        self._references: dict[Look, Reference] = {}
        self._used: dict[str, Counter[int]] = {}
        """The passes since the last look, by executor and number of images."""
        self._order: dict[str, list[int]] = {}
        """The canaries by executor; the one that was shown longest ago comes first."""
        self._watch: Watch[str] = Watch()
        self._trust = Trust()
        self._checking: Executor | None = None
        """The executor that runs the canary and may be stopped."""
        self._stopped = False

    def learn(self, executors: Sequence[Executor], sizes: Sequence[Sequence[int]]) -> None:
        """Runs each executor in these ``sizes`` and takes its answers as right.

        Raises `UntrustedError` for an executor whose answers are not the network's.
        """
        self._references = {
            look: Reference(self._answers(executor, look), self._precision)
            for executor, of_executor in zip(executors, sizes, strict=True)
            for images in of_executor
            for look in _looks(executor.name, images)
        }
        for look, reference in self._references.items():
            self._compare(look, reference.rows)
        self._used = {executor.name: Counter() for executor in executors}
        self._order = {executor.name: list(range(canary.IMAGES)) for executor in executors}
        self._watch = Watch(self._used, LOOK_EVERY)

    def _compare(self, look: Look, rows: NDArray[np.float32]) -> None:
        if self._expected is None:
            return
        pairs = list(zip(rows, self._expected[look.slots], strict=True))
        if all(canary.is_right(row, right, self._precision) for row, right in pairs):
            return
        away = max(canary.distance(row, right) for row, right in pairs)
        raise canary.UntrustedError(
            f"the model in {self._precision} is off the network's answer to a known image by {away:.2g} (executor "
            f"{look.executor!r}, {look.images} at once): its weights in memory, or the way to compute with them, "
            "are damaged"
        )

    def ran(self, executor: str, images: int) -> None:
        """Counts a pass of ``images`` by an executor. Thread-safe."""
        if executor in self._used:
            self._used[executor][images] += 1
            self._watch.ran(executor)

    @property
    def due(self) -> bool:
        """True if a canary is due."""
        return self._watch.due

    def check(self, executors: Sequence[Executor]) -> BatchReport:
        """Shows the canary to the executor for which it is most urgent. Raises `DeviceFailed`.

        Reports no answer if it was stopped.
        """
        name = self._watch.next()
        executor = next(executor for executor in executors if executor.name == name)
        look = self._look(name, self._size(name))
        self._stopped, self._checking = False, executor
        try:
            rows = self._answers(executor, look)
        except Exception:
            if self._stopped:
                return BatchReport(0)
            raise
        finally:
            self._checking = None
        done = [rows]  # from here on nothing is stopped

        def run() -> NDArray[np.float32]:
            return done.pop() if done else self._answers(executor, look)

        return replace(self._judge(look, run), rows=look.images)

    def stop(self) -> None:
        """Ends `check` early if it runs and can be stopped. Called in another thread."""
        executor = self._checking
        if isinstance(executor, Stoppable):
            self._stopped = True
            executor.stop()

    def _size(self, name: str) -> int:
        """Returns the size with most passes since its last look; the smallest if no canary was due."""
        known = self._sizes(name)
        used = [images for images, _ in self._used[name].most_common() if images in known]
        return used[0] if used and self._watch.is_due(name) else min(known)

    def _sizes(self, name: str) -> set[int]:
        return {look.images for look in self._references if look.executor == name}

    def _look(self, name: str, images: int) -> Look:
        """Returns the look in this size that shows the canary which was shown longest ago."""
        longest_ago = self._order[name][0]
        return next(look for look in _looks(name, images) if longest_ago in look.slots)

    def is_due(self, executor: str) -> bool:
        """Returns True if a canary is due in the streams of this executor."""
        return self._watch.is_due(executor)

    def check_in_stream(self, executor: str, stream: Stream) -> BatchReport:
        """Shows a canary to one of the executor's streams. Raises `DeviceFailed`."""
        look = self._look(executor, 1)
        slot = look.slots[0]
        return replace(self._judge(look, lambda: _known([stream(self._pixels, slot)])), rows=1)

    def _judge(self, look: Look, run: Callable[[], NDArray[np.float32]]) -> BatchReport:
        def wrong() -> int:
            return self._references[look].wrong(run)

        try:
            return self._trust.judge(wrong(), look.images, wrong)
        finally:
            self._watch.checked(look.executor)
            self._used[look.executor][look.images] = 0
            # Stable: those that were shown go to the end.
            self._order[look.executor].sort(key=lambda slot: slot in look.slots)

    def _answers(self, executor: Executor, look: Look) -> NDArray[np.float32]:
        return _known(executor(self._pixels, look.slots))


def _looks(executor: str, images: int) -> list[Look]:
    """Returns looks in one size that together show every canary."""
    return [Look(executor, images, first) for first in range(0, canary.IMAGES, images)]


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _known(answers: Sequence[Answer]) -> NDArray[np.float32]:
    """Returns ``[images, length]``: logits, or without a head each channel's mean of the features."""
    rows = [answer.logits if answer.logits.size else answer.features.mean((1, 2)) for answer in answers]
    return np.array(rows, np.float32)
