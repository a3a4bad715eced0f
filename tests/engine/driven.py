"""An engine's loop that turns when told to, in front of a device that runs a batch when told to."""

from __future__ import annotations

from service.engine.arena import Arena
from service.engine.batcher import Batcher
from service.engine.core import EngineCore
from service.shared.outputs import OutputKind
from service.shared.transport import Link, socket_pair
from tests.engine.virtual import GEOMETRY, MOST, SLOTS, ManualDevice
from tests.fakes import FakeRunner, VirtualClock


class Driven:
    """A core whose device runs a batch when told to, and a front-end that has what it wants."""

    def __init__(self, delay: float = 0.0) -> None:
        """``delay`` is the batcher's ``max_queue_delay``."""
        self.clock = VirtualClock()
        self.arena = Arena.create(GEOMETRY)
        self.runner = FakeRunner(max_batch_size=MOST)
        self.device = ManualDevice(self.runner, self.arena, self.clock)
        self.core = EngineCore(
            self.runner,
            self.arena,
            Batcher(MOST, delay),
            capacity=10.0,
            batch_ran=self.note,
            clock=self.clock,
            device=self.device,
        )
        self.core.begin()
        ours, theirs = socket_pair()
        self.link = Link(ours)
        self.core.attach(1, Link(theirs))
        self.passes = self.canaries = 0
        self.followed: list[bool] = []
        """Whether the next batch was on the device already when one was counted."""

    def note(self, batch: object) -> None:
        self.passes += not getattr(batch, "is_canary", False)
        self.canaries += getattr(batch, "is_canary", False)
        self.followed.append(self.device.given is not None)

    def serve(self, images: int) -> None:
        """One batch of so many images, after the canary if it is due."""
        slots = [slot for slot in range(SLOTS) if not self.arena.owners[slot]][:images]
        for slot in slots:
            self.arena.owners[slot] = 1
            self.arena.record_submission(slot, self.clock.now + 1000, self.clock.now, OutputKind.CLASSIFY)
        self.link.send(slots)
        while any(self.arena.owners):
            self.core.step(0)
            if self.device.given is not None:
                self.device.finish(during=0.001)
                self.core.step(0)
            for slot in self.link.receive() or []:
                self.arena.owners[slot] = 0

    def close(self) -> None:
        self.core.end()
        self.link.close()
        self.arena.close()
