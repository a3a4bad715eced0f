"""The canary on a processor: what each way answered to it after warm-up is what it has to answer from then on.

A way has memory of its own for its weights, and batches of several sizes may run by several kernels; so each way is
looked at for itself, in the size in which it ran most. Then the same kernels compute the same image in the same row,
and what other kernels round otherwise makes no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.models import canary
from service.models.canary import Logits
from service.models.runtimes import Answer, Lane, Stoppable, Way
from service.models.watch import Trust, Watch
from service.shared.batches import BatchReport

#: Passes that may differ in their last bits, each from all others, before a way is taken for one that always does.
_ODD = 3


class Reference:
    """What a way answers to the canary: ``rows``, float32 ``[images, length]``, as after warm-up.

    Nearly every way gives the same bits whenever it computes the same, so that even a bit which moves an answer by less
    than the tolerance is found: by an answer that is another one than before, twice. A way that does not
    repeat itself is held to the tolerance of its precision.
    """

    def __init__(self, rows: NDArray[np.float32], precision: str) -> None:
        self.rows = rows
        self._precision = precision
        self._confirmed = False
        """Whether these bits were seen since."""
        self._odd = 0
        """Passes that gave others, once."""

    def wrong(self, run: Callable[[], NDArray[np.float32]]) -> int:
        """How many rows that ``run`` gives are wrong. Runs twice where bits differ within the tolerance."""
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
        self.rows = first  # the very first pass was another kernel's
        return 0

    def _is_same(self, rows: NDArray[np.float32]) -> bool:
        return _same_bits(rows, self.rows)

    def _far(self, rows: NDArray[np.float32]) -> int:
        pairs = zip(rows, self.rows, strict=True)
        return sum(not canary.is_same(row, right, self._precision) for row, right in pairs)


class Guard:
    """Looks at the ways of one runner. ``image`` is (height, width, channels); ``precision`` decides the tolerance.

    ``expected`` is the network's own answer, where it is known.
    """

    def __init__(self, image: tuple[int, int, int], precision: str, expected: Logits | None = None) -> None:
        self._pixels = canary.image(image)[None]
        self._precision = precision
        # Weights of which some are no numbers are their owner's affair: each answer is an error that says so.
        self._expected = expected if expected is not None and np.isfinite(expected).all() else None
        self._references: dict[tuple[str, int], Reference] = {}
        """By way and number of images."""
        self._used: dict[str, Counter[int]] = {}
        self._watch: Watch[str] = Watch()
        self._trust = Trust()
        self._looking: Way | None = None
        """The way that runs the canary and may be stopped."""
        self._stopped = False

    def learn(self, ways: Sequence[Way], sizes: Sequence[Sequence[int]]) -> None:
        """Runs each way in these ``sizes``, and takes what it answers for right.

        Raises `UntrustedError` for a way that computes something else than what was expected.
        """
        self._references = {
            (way.name, images): Reference(self._answers(way, images), self._precision)
            for way, of_way in zip(ways, sizes, strict=True)
            for images in of_way
        }
        for (name, images), reference in self._references.items():
            self._compare(name, images, reference.rows)
        self._used = {way.name: Counter() for way in ways}
        self._watch = Watch(self._used)

    def _compare(self, name: str, images: int, rows: NDArray[np.float32]) -> None:
        expected = self._expected
        if expected is None or all(canary.is_right(row, expected, self._precision) for row in rows):
            return
        away = max(canary.distance(row, expected) for row in rows)
        raise canary.UntrustedError(
            f"the model in {self._precision} is off the network's answer to a known image by {away:.2g} (way {name!r}, "
            f"{images} at once): its weights in memory, or the way to compute with them, are damaged"
        )

    def ran(self, way: str, images: int) -> None:
        """A pass of so many images. Safe in several threads."""
        if way in self._used:
            self._used[way][images] += 1
            self._watch.ran(way)

    @property
    def due(self) -> bool:
        """Whether `look` is due."""
        return self._watch.due

    def look(self, ways: Sequence[Way]) -> BatchReport:
        """Shows the canary to the way for which that is most urgent. Raises `DeviceFailed`.

        Tells of no answer when it was stopped.
        """
        name = self._watch.next()
        way = next(way for way in ways if way.name == name)
        images = self._size(name)
        self._stopped, self._looking = False, way
        try:
            rows = self._answers(way, images)
        except Exception:
            if self._stopped:
                return BatchReport(0)
            raise
        finally:
            self._looking = None
        done = [rows]  # what follows from it is not stopped any more

        def run() -> NDArray[np.float32]:
            return done.pop() if done else self._answers(way, images)

        return replace(self._judge(name, images, run), rows=images)

    def stop(self) -> None:
        """Lets `look` end early, where it still runs and can. To be called in another thread."""
        way = self._looking
        if isinstance(way, Stoppable):
            self._stopped = True
            way.stop()

    def _size(self, name: str) -> int:
        """The most frequent one since the last look; when none was needed, the one that takes least."""
        known = [images for way, images in self._references if way == name]
        used = [images for images, _ in self._used[name].most_common() if images in known]
        return used[0] if used and self._watch.is_due(name) else min(known)

    def is_due(self, way: str) -> bool:
        """Whether `look_in_lane` is due for the lanes of this way."""
        return self._watch.is_due(way)

    def look_in_lane(self, way: str, lane: Lane) -> BatchReport:
        """Shows the canary to one of the way's lanes. Raises `DeviceFailed`."""
        one = min(images for name, images in self._references if name == way)
        return replace(self._judge(way, one, lambda: _known([lane(self._pixels, 0)])), rows=1)

    def _judge(self, name: str, images: int, run: Callable[[], NDArray[np.float32]]) -> BatchReport:
        def wrong() -> int:
            return self._references[name, images].wrong(run)

        try:
            return self._trust.judge(wrong(), images, wrong)
        finally:
            self._watch.looked(name)
            self._used[name].clear()

    def _answers(self, way: Way, images: int) -> NDArray[np.float32]:
        return _known(way(self._pixels, [0] * images))


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _known(answers: Sequence[Answer]) -> NDArray[np.float32]:
    """``[images, length]``: logits, or where there is no head each channel's mean of the features."""
    rows = [answer.logits if answer.logits.size else answer.features.mean((1, 2)) for answer in answers]
    return np.array(rows, np.float32)
