"""The engines as processes: their resources, their links to front-ends, and the checks for loads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from service import settings as all_settings
from service.engine import process as engine
from service.errors import CheckpointError, ConfigurationError
from service.options.devices import gpus, resolve
from service.options.several import models_of
from service.settings import Settings
from service.supervisor.child import Child, Main
from service.supervisor.lifecycle import actions
from service.supervisor.lifecycle.actions import Action
from service.supervisor.lifecycle.lifecycle import Lifecycle
from service.supervisor.lifecycle.versions import Model
from service.supervisor.loop import Loop
from service.supervisor.pool import room
from service.supervisor.pool.checking import VersionCheck
from service.supervisor.pool.memory import EngineMemory
from service.supervisor.pool.serving import Serving
from service.supervisor.pool.verdict import Verdict
from service.supervisor.pool.watching import Watching


def models_to_serve(settings: Settings) -> list[Model]:
    """All models of the settings, the default first and the shadow last. Raises `ConfigurationError`."""
    wanted = models_of(settings)
    room.check_budget([one.settings.model for one in wanted], settings.memory_budget_mib)
    models = [Model(name, own, resolve(own.device, gpus)) for name, own in wanted]
    if settings.shadow is not None:
        # The shadow has the default model's settings, but other weights, and runs on the first of its devices.
        device = models[0].devices[0].name
        own = {"weights": settings.shadow, "device": device, "standby": False, "watch_weights_ms": 0.0}
        changed = wanted[0].settings.model_copy(update=own)
        models.append(Model(None, changed, resolve(device, gpus), shadow=True))
    return models


class EnginePool:
    """The part of the supervisor that carries out actions on engines (`perform`)."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        children: Mapping[int, Child],
        loop: Loop,
        handle_event: Callable[..., None],
    ) -> None:
        """``handle_event`` is called with an event of the ``lifecycle`` and its arguments."""
        self._lifecycle = lifecycle
        self._children = children
        self._loop = loop
        self._handle_event = handle_event
        self._serving: dict[int, Serving] = {}
        """The resources of ready engines by number."""
        self._memory = EngineMemory(lifecycle.state, children, settings.memory_budget_mib)
        self._check: VersionCheck | None = None
        self._watching = Watching()

    def resources(self) -> list[Serving]:
        """The resources that a forked process must close."""
        return list(self._serving.values())

    def main_of(self, action: actions.StartEngine) -> Main:
        """The main function of the new engine."""
        seat = action.seat
        several = seat.device.visible or seat.device.share[1] > 1
        return partial(
            engine.main,
            seat.settings,
            given_up=tuple(seat.given_up),
            name=seat.name,
            device=seat.device if several and self._lifecycle.state.processes else None,
            standby=seat.standby,
            shadow=action.shadow,
        )

    def ready(self, number: int, message: Mapping[str, Any], arena: int, card: int) -> None:
        """Handles the message that an engine is ready, and owns its descriptors from now on."""
        serving = self._serving[number] = Serving(message["geometry"], arena, card)
        found = serving.read_card()
        names = {"model": found.name, "weights": found.weights}
        self._handle_event(self._lifecycle.engine_ready, number, names, self._memory.over_budget())

    def forget(self, number: int) -> None:
        """Closes the resources of a part that has ended."""
        if number in self._serving:
            self._serving.pop(number).close()

    def tick(self) -> None:
        """Checks timeouts and changed weights; to be called about twice a second."""
        state, now = self._lifecycle.state, time.monotonic()
        if self._check is not None:
            self._check.tick(now)
        for servable in state.asked if not state.draining else ():
            if state.change is None and self._watching.has_changed(servable, now):
                self._handle_event(self._lifecycle.weights_changed, servable.place)

    def close(self) -> None:
        """Closes the resources of all engines."""
        for serving in self._serving.values():
            serving.close()

    def perform(self, action: Action) -> None:
        """Carries out an action on engines."""
        match action:
            case actions.LinkFrontEnd(front_end, number):
                self._serving[number].join(self._children[number], self._children[front_end], action)
            case actions.Load():
                self._load(action)
            case actions.Check(version):
                self._check = VersionCheck(
                    action, self._children, self._serving, self._loop, partial(self._checked, version)
                )
                self._check.begin()
            case actions.EndCheck() if self._check is not None:
                self._check.close()
                self._check = None
            case actions.MeasureShadow(settings):
                decision = self._memory.room_for(self._lifecycle.state.servables[0], settings)
                self._handle_event(self._lifecycle.shadow_measured, decision.refusal)

    def _checked(self, version: int, found: Verdict) -> None:
        self._check = None
        self._handle_event(self._lifecycle.checked, version, found.problem, found.to_json())

    def _load(self, load: actions.Load) -> None:
        from service.models.checkpoints import places  # here, since it imports the readers of checkpoints

        lifecycle, servable = self._lifecycle, load.servable
        # Only settings that were set: an unset model lets the new weights decide the variant.
        given = servable.current.settings.model_dump(exclude_unset=True)
        try:
            settings = all_settings.read({**given, **load.wish.settings}, spelled=str)
            places.check(settings.weights, settings.labels)
        except ConfigurationError as error:
            self._handle_event(lifecycle.load_refused, load, None, "invalid_parameter", str(error))
            return
        except CheckpointError as error:
            self._handle_event(
                lifecycle.load_refused, load, servable.current.settings, "load_failed", str(error)
            )
            return
        decision = self._memory.room_for(servable, settings)
        if decision.refusal:
            self._handle_event(lifecycle.load_refused, load, settings, "not_enough_memory", decision.refusal)
            return
        devices = resolve(settings.device, gpus)
        self._handle_event(lifecycle.load_possible, load, settings, devices, decision.make_room)
