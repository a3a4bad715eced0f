"""What a front-end knows, in one object that every route gets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request

from service.api.intake import Intake, budget
from service.api.served import Models, Served
from service.api.shadow import Shadow
from service.errors import Draining, EngineFailed, NotReady
from service.host.machine import memory_limit
from service.images.decoders.picture import Recipe
from service.observability.card import ModelCard
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings
from service.shared.orders import Orders
from service.shared.status import Status
from service.shared.writing import Decoders

#: Room for a multipart body's own lines around an image of exactly ``max_upload_bytes``.
ENVELOPE = 64 * 1024

#: Seconds without a byte of a download or another phase, after which a start is taken for hung. No single step of a
#: start is known to take this long: not the read of the largest checkpoint, not one kernel's compilation.
START_PATIENCE = 600.0


@dataclass
class Context:
    """A front-end's view of the service. Lives on its event loop."""

    settings: Settings
    metrics: Metrics
    decoders: Decoders
    models: Models = field(default_factory=Models)
    status: Status = field(default_factory=Status)
    tracing: Tracing | None = None
    """None when nobody asked for traces."""
    supervisor: int | None = None
    """The process above all others of the service; None where nobody measures it."""
    orders: Orders | None = None
    """What clients may order of the supervisor; None without one."""
    shadow: Shadow | None = None
    """What a second model is shown of the images; None without one."""
    progressed: float = field(default_factory=time.monotonic)
    """When the start last got on, by the monotonic clock."""

    intake: Intake = field(init=False)
    """What may be held of requests at a time."""

    def __post_init__(self) -> None:
        largest = self.settings.max_upload_bytes + ENVELOPE
        self.intake = Intake(budget(memory_limit(), self.settings.resolved_frontends, largest))

    def hear(self, status: Status) -> None:
        """The supervisor's news."""
        if (status.state, status.detail, status.progress) != (
            self.status.state,
            self.status.detail,
            self.status.progress,
        ):
            self.progressed = time.monotonic()
        self.status = status

    def check_alive(self) -> None:
        """Raises what `/livez` answers when only a restart would help: a start that does not get on."""
        silence = time.monotonic() - self.progressed
        if self.status.state in ("starting", "loading", "warming") and silence > START_PATIENCE:
            raise NotReady(
                f"the start has not got on for {silence:.0f} s; the service is {self.status.state}: "
                f"{self.status.detail}"
            )

    @property
    def draining(self) -> bool:
        return self.status.state == "draining"

    @property
    def connected(self) -> bool:
        """Whether every model has an engine that has not closed its end."""
        return self.models.complete

    @property
    def state(self) -> str:
        """The supervisor's word, but for what this front-end knows sooner: that the engine has gone."""
        if self.status.state == "ready" and not self.connected:
            return "failed"
        return self.status.state

    def check_ready(self) -> None:
        """Raises what `/readyz` answers while no new traffic should come here."""
        if self.draining:
            raise Draining("the service is draining and about to end")
        if self.connected and self.status.state == "ready":
            if self.decoders.stuck:
                raise NotReady("the decoders are stuck: pictures wait, and none has been begun for seconds")
            return
        if self.models.current() is not None:
            raise EngineFailed("the engine has failed and is being started again")
        raise NotReady(
            f"the service is {self.status.state}: {self.status.detail or 'the model is not ready yet'}"
        )

    def served(self, name: str | None = None) -> Served:
        """The model of that name, the default one without a name. Raises `NotReady` before anything is loaded,
        `NotFound` for another name."""
        default = self.models.current()
        if default is None:
            raise NotReady(f"the service is {self.status.state}; /healthz says how far it is")
        return default if name is None else self.models.named(name)

    def model(self, name: str | None = None) -> ModelCard:
        """What is loaded. Raises what `served` does."""
        return self.served(name).card

    def recipe(self, card: ModelCard) -> Recipe:
        """How pictures are prepared for a model."""
        settings = self.settings
        return Recipe(
            card.preprocessing,
            settings.max_image_pixels,
            settings.decode == "fast",
            settings.decode == "gpu",
        )


def context_of(request: Request) -> Context:
    """The context of the front-end that serves ``request``."""
    context: Context = request.scope["context"]
    return context
