"""Sends known images through an engine over a link of the supervisor's own, on the way that requests take.

Nothing here waits: the supervisor's loop calls `receive_answers` when the link is readable.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import cache

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena, Outcome
from service.errors import RequestError
from service.host.samples import samples
from service.observability.card import ModelCard
from service.shared import transport
from service.shared.outputs import OutputKind
from service.shared.transport import Link
from service.supervisor.child import Child
from service.supervisor.pool.serving import Serving

#: The number of known images that every new engine must answer before it gets requests.
IMAGES = 4
_MAX_PIXELS = 50_000_000


class EngineProbe:
    """One engine's answers to the known images. Construction sends these; `receive_answers` is called until `done`."""

    def __init__(self, engine: Child, serving: Serving, number: int, patience: float) -> None:
        """``number`` is that of the link in the engine's arena; ``patience`` is the deadline in seconds."""
        self.name = engine.name
        self.card = serving.read_card()
        self._arena = Arena(os.dup(serving.arena), serving.read_geometry())
        self._number = number
        ours, theirs = transport.socket_pair()
        engine.channel.send("front-end", number=number, descriptors=[theirs.fileno()])
        theirs.close()
        self._link = Link(ours)
        self._waiting: dict[int, int] = {}
        """The number of the image by its slot."""
        self.failed = ""
        """The reason why an answer is missing."""
        self._answers: dict[int, NDArray[np.float32]] = {}
        self._send(time.monotonic() + patience)

    def __repr__(self) -> str:
        return f"<EngineProbe of {self.name}, {len(self._waiting)} waiting>"

    @property
    def done(self) -> bool:
        return not self._waiting

    @property
    def answers(self) -> NDArray[np.float32] | None:
        """The answers, float32 ``[IMAGES, outputs]``; None if one is missing."""
        if len(self._answers) < IMAGES:
            return None
        return np.stack([self._answers[image] for image in range(IMAGES)])

    def fileno(self) -> int:
        return self._link.fileno()

    def _send(self, deadline: float) -> None:
        now = time.monotonic()
        wanted = OutputKind.CLASSIFY if self.card.classes else OutputKind.FEATURES_AVG
        for image, pixels in enumerate(pictures(self.card)):
            slot = self._arena.acquire(self._number)
            if slot is None:
                self.failed = "has no free place"
                return
            np.copyto(self._arena.pixels[slot], pixels)
            self._arena.record_admission(slot, deadline, bulk=False)
            self._arena.record_submission(slot, deadline, now, wanted)
            self._waiting[slot] = image
            self._link.send((slot,))

    def receive_answers(self) -> None:
        """Receives answers; to be called when the link is readable."""
        slots = self._link.receive()
        if slots is None:
            self.give_up("has ended")
            return
        length = len(self.card.classes) or self.card.feature_shape[0]
        for slot in slots:
            image = self._waiting.pop(slot)
            if self._arena.record(slot).outcome == Outcome.OK:
                self._answers[image] = self._arena.results[slot, :length].copy()
            else:
                self.failed = "failed on a known image"
            self._arena.release(slot)

    def give_up(self, reason: str) -> None:
        """Ends the waiting for answers."""
        self.failed = self.failed or reason
        self._waiting.clear()

    def close(self) -> None:
        """Closes the link, so that the engine reclaims the slots, and the arena."""
        self._link.close()
        self._arena.close()


def pictures(card: ModelCard) -> list[NDArray[np.uint8]]:
    """The known images, preprocessed, uint8 ``[H, W, C]``: sample photos, or noise where there are none."""
    return [_picture(card, image) for image in range(IMAGES)]


def _picture(card: ModelCard, image: int) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(image).integers(0, 256, card.image, np.uint8)
    photos = _photos()
    if image < len(photos) and card.preprocessing.shape == card.image:
        # Imported here, since it needs Pillow, which this process imports when the first front-end is started.
        from service.preprocess import prepare

        with contextlib.suppress(RequestError):
            prepare(photos[image], card.preprocessing, pixels, max_pixels=_MAX_PIXELS)
    return pixels


@cache
def _photos() -> tuple[bytes, ...]:
    return tuple(sample.path.read_bytes() for sample in samples()[:IMAGES])
