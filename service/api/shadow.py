"""The shadow: a second model that gets a share of the images after they are answered, for a comparison.

It gets images that the default model has classified, if both models have the same preprocessing and number of classes.
They are bulk work for the shadow's engine; images for which it has no free slot are counted as missed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import numpy as np

from service.engine.client import Slot, SlotAnswer
from service.errors import ServiceError
from service.shared.ranking import activate
from service.shared.shadow_tally import ShadowTally

if TYPE_CHECKING:
    from service.api.served import Models, Served
    from service.observability.metrics import Metrics

log = logging.getLogger(__name__)

#: Seconds that the shadow may take for an image.
_PATIENCE = 30.0


class Shadow:
    """Sends images to the shadow and compares its answers. Used on the event loop. ``tally`` holds the sums."""

    def __init__(self, models: Models, metrics: Metrics, share: float) -> None:
        """``share`` is that of the images that the shadow gets, 0 to 1."""
        self.tally = ShadowTally()
        self._models = models
        self._metrics = metrics
        self._share = share
        self._due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Shadow of {self._share:.0%}, {len(self._tasks)} under way>"

    def compare(self, slot: Slot, answer: SlotAnswer) -> None:
        """Copies the pixels of an answered image to the shadow, if it belongs to the share. Does not wait."""
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
            self._count_missed()
            return
        np.copyto(place.pixels, slot.pixels)
        task = loop.create_task(self._compare(place, deadline, answer, usual, shadow))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, place: Slot, deadline: float, answer: SlotAnswer, usual: Served, shadow: Served
    ) -> None:
        with place:
            try:
                seen = await place.answer(deadline, len(answer.result))
            except ServiceError:
                self._count_missed()
                return
        ours = activate(answer.result, usual.card.activation)
        theirs = activate(seen.result, shadow.card.activation)
        difference = float(np.abs(ours - theirs).max())
        if not np.isfinite(difference):
            self._count_missed()
            return
        agreed = bool(ours.argmax() == theirs.argmax())
        self.tally.add(1, int(agreed), difference, seen.inference, answer.inference, 0)
        self._metrics.shadow_images.labels("agreed" if agreed else "differed").inc()
        self._metrics.shadow_difference.observe(difference)
        self._metrics.shadow_inference.observe(seen.inference)

    def _count_missed(self) -> None:
        self.tally.add(0, 0, 0.0, 0.0, 0.0, 1)
        self._metrics.shadow_images.labels("missed").inc()


def _comparable(usual: Served, shadow: Served) -> bool:
    """True if both models get the same pixels and have the same number of classes."""
    ours, theirs = usual.card, shadow.card
    return (
        ours.image == theirs.image
        and ours.preprocessing == theirs.preprocessing
        and len(ours.classes) == len(theirs.classes) > 0
    )
