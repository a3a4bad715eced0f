"""The canary on a CPU: each executor's answer after warm-up is the answer that it must repeat later.

An executor has its own memory for weights, and batches of several sizes may run by several kernels. So each executor
is checked by itself, in the batch size that it ran most often. Then the same kernels compute the same image in the
same row, and other kernels' rounding makes no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.models import canary
from service.models.canary import Logits
from service.models.runtimes import Answer, Executor, Stoppable, Stream
from service.models.watch import Trust, Watch
from service.shared.batches import BatchReport

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


class Guard:
    """Checks the executors of one runner with the canary.

    ``image`` is (height, width, channels); ``precision`` decides the tolerance. ``expected`` is the network's own
    answer, if it is known.
    """

    def __init__(self, image: tuple[int, int, int], precision: str, expected: Logits | None = None) -> None:
        self._pixels = canary.image(image)[None]
        self._precision = precision
        # Weights with NaN are their owner's affair: every answer is an error that says so.
        self._expected = expected if expected is not None and np.isfinite(expected).all() else None
        self._references: dict[tuple[str, int], Reference] = {}
        """The right answers, by executor and number of images."""
        self._used: dict[str, Counter[int]] = {}
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
            (executor.name, images): Reference(self._answers(executor, images), self._precision)
            for executor, of_executor in zip(executors, sizes, strict=True)
            for images in of_executor
        }
        for (name, images), reference in self._references.items():
            self._compare(name, images, reference.rows)
        self._used = {executor.name: Counter() for executor in executors}
        self._watch = Watch(self._used)

    def _compare(self, name: str, images: int, rows: NDArray[np.float32]) -> None:
        expected = self._expected
        if expected is None or all(canary.is_right(row, expected, self._precision) for row in rows):
            return
        away = max(canary.distance(row, expected) for row in rows)
        raise canary.UntrustedError(
            f"the model in {self._precision} is off the network's answer to a known image by {away:.2g} (executor "
            f"{name!r}, {images} at once): its weights in memory, or the way to compute with them, are damaged"
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
        images = self._size(name)
        self._stopped, self._checking = False, executor
        try:
            rows = self._answers(executor, images)
        except Exception:
            if self._stopped:
                return BatchReport(0)
            raise
        finally:
            self._checking = None
        done = [rows]  # from here on nothing is stopped

        def run() -> NDArray[np.float32]:
            return done.pop() if done else self._answers(executor, images)

        return replace(self._judge(name, images, run), rows=images)

    def stop(self) -> None:
        """Ends `check` early if it runs and can be stopped. Called in another thread."""
        executor = self._checking
        if isinstance(executor, Stoppable):
            self._stopped = True
            executor.stop()

    def _size(self, name: str) -> int:
        """Returns the most frequent size since the last canary; the smallest if no canary was due."""
        known = [images for executor, images in self._references if executor == name]
        used = [images for images, _ in self._used[name].most_common() if images in known]
        return used[0] if used and self._watch.is_due(name) else min(known)

    def is_due(self, executor: str) -> bool:
        """Returns True if a canary is due in the streams of this executor."""
        return self._watch.is_due(executor)

    def check_in_stream(self, executor: str, stream: Stream) -> BatchReport:
        """Shows the canary to one of the executor's streams. Raises `DeviceFailed`."""
        one = min(images for name, images in self._references if name == executor)
        return replace(self._judge(executor, one, lambda: _known([stream(self._pixels, 0)])), rows=1)

    def _judge(self, name: str, images: int, run: Callable[[], NDArray[np.float32]]) -> BatchReport:
        def wrong() -> int:
            return self._references[name, images].wrong(run)

        try:
            return self._trust.judge(wrong(), images, wrong)
        finally:
            self._watch.checked(name)
            self._used[name].clear()

    def _answers(self, executor: Executor, images: int) -> NDArray[np.float32]:
        return _known(executor(self._pixels, [0] * images))


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _known(answers: Sequence[Answer]) -> NDArray[np.float32]:
    """Returns ``[images, length]``: logits, or without a head each channel's mean of the features."""
    rows = [answer.logits if answer.logits.size else answer.features.mean((1, 2)) for answer in answers]
    return np.array(rows, np.float32)
