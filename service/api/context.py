"""The state of a front-end, in one object that every route gets."""

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

#: Bytes allowed for a multipart body's own lines, beside an image of ``max_upload_bytes``.
ENVELOPE = 64 * 1024

#: Seconds without progress after which a start counts as hung. No single step is known to take as long, neither reading
#: the largest checkpoint nor compiling a kernel.
START_PATIENCE = 600.0


@dataclass
class Context:
    """A front-end's view of the service. Used on its event loop."""

    settings: Settings
    metrics: Metrics
    decoders: Decoders
    models: Models = field(default_factory=Models)
    status: Status = field(default_factory=Status)
    tracing: Tracing | None = None
    """None if the environment asks for no traces."""
    supervisor: int | None = None
    """The pid of the root of the service's process tree; None if its usage is not measured."""
    orders: Orders | None = None
    """The channel for clients' orders to the supervisor; None without a supervisor."""
    shadow: Shadow | None = None
    """The comparison with a second model; None without one."""
    progressed: float = field(default_factory=time.monotonic)
    """The time of the start's last progress, in seconds of the monotonic clock."""

    intake: Intake = field(init=False)
    """The budget for bytes of requests."""

    def __post_init__(self) -> None:
        largest = self.settings.max_upload_bytes + ENVELOPE
        self.intake = Intake(budget(memory_limit(), self.settings.resolved_frontends, largest))

    def update_status(self, status: Status) -> None:
        """Takes a new status from the supervisor."""
        if (status.state, status.detail, status.progress) != (
            self.status.state,
            self.status.detail,
            self.status.progress,
        ):
            self.progressed = time.monotonic()
        self.status = status

    def check_alive(self) -> None:
        """Raises `NotReady`, which `/livez` answers, if the start hangs so that only a restart would help."""
        silence = time.monotonic() - self.progressed
        if self.status.state in ("starting", "loading", "warming") and silence > START_PATIENCE:
            raise NotReady(
                f"the start has made no progress for {silence:.0f} s; the service is {self.status.state}: "
                f"{self.status.detail}"
            )

    @property
    def draining(self) -> bool:
        return self.status.state == "draining"

    @property
    def connected(self) -> bool:
        """True if every model has a living engine."""
        return self.models.complete

    @property
    def state(self) -> str:
        """The state that the supervisor sent, or "failed" if this front-end has already seen an engine's end."""
        if self.status.state == "ready" and not self.connected:
            return "failed"
        return self.status.state

    def check_ready(self) -> None:
        """Raises the error that `/readyz` answers while no new traffic should come here."""
        if self.draining:
            raise Draining("the service is draining and about to end")
        if self.connected and self.status.state == "ready":
            if self.decoders.stuck:
                raise NotReady("the decoders are stuck: images wait, and none has been begun for seconds")
            return
        if self.models.current() is not None:
            raise EngineFailed("the engine has failed and is being started again")
        raise NotReady(
            f"the service is {self.status.state}: {self.status.detail or 'the model is not ready yet'}"
        )

    def served(self, name: str | None = None) -> Served:
        """The model of that name; None means the default one.

        Raises `NotReady` before a model is loaded, `NotFound` for an unknown name.
        """
        default = self.models.current()
        if default is None:
            raise NotReady(f"the service is {self.status.state}; /healthz says how far it is")
        return default if name is None else self.models.named(name)

    def model(self, name: str | None = None) -> ModelCard:
        """The card of that model. Raises what `served` raises."""
        return self.served(name).card

    def recipe(self, card: ModelCard) -> Recipe:
        """The recipe by which images are prepared for a model."""
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
