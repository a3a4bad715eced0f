"""A share of the images goes to a second model as well, when its answer is on its way. Nobody waits for it.

Only images of the default model to its classes, where both models see the same pixels and know as many classes. The
shadow's engine gets them as bulk work; what it has no room for, it misses.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import numpy as np

from service.engine.client import Answer, Slot
from service.errors import ServiceError
from service.shared.ranking import activate
from service.shared.shadow_tally import Tally

if TYPE_CHECKING:
    from service.api.served import Models, Served
    from service.observability.metrics import Metrics

log = logging.getLogger(__name__)

#: Seconds that the shadow may take for an image.
_PATIENCE = 30.0


class Shadow:
    """Lives on the event loop. ``tally`` is what was seen since somebody took it."""

    def __init__(self, models: Models, metrics: Metrics, share: float) -> None:
        """``share`` of the images, 0 to 1."""
        self.tally = Tally()
        self._models = models
        self._metrics = metrics
        self._share = share
        self._due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Shadow of {self._share:.0%}, {len(self._tasks)} under way>"

    def look_on(self, slot: Slot, answer: Answer) -> None:
        """An image in ``slot`` was answered. Copies its pixels if it is one of the share; the rest happens later."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        usual, shadow = self._models.current(), self._models.shadow
        if (
            usual is None
            or shadow is None
            or not slot.belongs_to(usual.client)
            or not _comparable(usual, shadow)
        ):
            return
        loop = asyncio.get_running_loop()
        try:
            deadline = shadow.client.clock() + _PATIENCE
            place = shadow.client.acquire(deadline, bulk=True)
        except ServiceError:
            self._miss()
            return
        np.copyto(place.pixels, slot.pixels)
        task = loop.create_task(self._compare(place, deadline, answer, usual, shadow))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, place: Slot, deadline: float, answer: Answer, usual: Served, shadow: Served
    ) -> None:
        with place:
            try:
                seen = await place.answer(deadline, len(answer.result))
            except ServiceError:
                self._miss()
                return
        ours = activate(answer.result, usual.card.activation)
        theirs = activate(seen.result, shadow.card.activation)
        difference = float(np.abs(ours - theirs).max())
        if not np.isfinite(difference):
            self._miss()
            return
        agreed = bool(ours.argmax() == theirs.argmax())
        self.tally.add(1, int(agreed), difference, seen.inference, answer.inference, 0)
        self._metrics.shadow_images.labels("agreed" if agreed else "differed").inc()
        self._metrics.shadow_difference.observe(difference)
        self._metrics.shadow_inference.observe(seen.inference)

    def _miss(self) -> None:
        self.tally.add(0, 0, 0.0, 0.0, 0.0, 1)
        self._metrics.shadow_images.labels("missed").inc()


def _comparable(usual: Served, shadow: Served) -> bool:
    """Whether both models see the same pixels and answer with as many numbers."""
    ours, theirs = usual.card, shadow.card
    return (
        ours.image == theirs.image
        and ours.preprocessing == theirs.preprocessing
        and len(ours.classes) == len(theirs.classes) > 0
    )
