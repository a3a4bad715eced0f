"""A front-end's application in front of a fake engine, spoken to over ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from service.api.app import create_app
from service.api.context import Context
from service.api.keys import Keys
from service.api.served import Served
from service.engine.client import EngineClient
from service.labels import ClassLabel
from service.observability.card import ModelCard
from service.observability.metrics import Metrics
from service.preprocess import Preprocessing, prepare
from service.settings import Settings
from service.shared.status import Status
from tests.crew import threads
from tests.engine.harness import IMAGE, Engine
from tests.fakes import fingerprint

PREPROCESSING = Preprocessing(resize=8, crop=IMAGE[:2])
CLASSES = tuple(ClassLabel(index, f"n{index:08}", f"thing {index}") for index in range(10))
CARD = ModelCard(
    name="densenet121",
    family="densenet",
    parameters=123,
    weights="random:0",
    source="a test",
    sha256=None,
    image=IMAGE,
    preprocessing=PREPROCESSING,
    classes=CLASSES,
    feature_shape=(2, 2, 2),
    activation="softmax",
    precision="fp32",
    device="cpu",
    runtime="eager",
    max_batch_size=8,
)


@dataclass
class Site:
    engine: Engine
    context: Context
    http: httpx.AsyncClient

    @property
    def client(self) -> EngineClient:
        """The door to the default model."""
        return self.context.served().client

    def become(self, card: ModelCard | None) -> None:
        """Another description of the model that is there; None for none yet."""
        served = self.context.served()
        if card is None:
            self.context.models.remove(served)
        else:
            serve(self.context, card, served.client)

    @property
    def free(self) -> int:
        return self.engine.arena.free


def serve(context: Context, card: ModelCard, client: EngineClient) -> None:
    """Lets ``card`` be the default model, which ``client`` reaches."""
    context.models.add(Served(0, 0, card, client, context.recipe(card)))


@contextmanager
def ready(settings: dict[str, Any] | None, **engine: Any) -> Iterator[tuple[Engine, Context]]:
    """A fake engine and the context of a front-end that has it. To be used on the event loop."""
    with Engine("thread", **engine) as running, threads(2) as decoders:
        context = Context(Settings(**settings or {}), Metrics.declare(), decoders, status=Status("ready"))
        serve(context, CARD, running.connect())
        yield running, context


@asynccontextmanager
async def site(
    *, settings: dict[str, Any] | None = None, keys: Keys | None = None, **engine: Any
) -> AsyncIterator[Site]:
    """A ready service with a fake model. ``engine`` goes to `Engine`."""
    with ready(settings, **engine) as (running, context):
        transport = httpx.ASGITransport(create_app(context, keys), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            yield Site(running, context, http)


def logits_of(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the fake model says to an image file."""
    pixels = np.empty(IMAGE, np.uint8)
    prepare(data, PREPROCESSING, pixels, max_pixels=10**6)
    return fingerprint(pixels, 10)
