"""One batch in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.models.cuda.buffers import BatchBuffers
from service.models.cuda.device import Event
from service.models.output_writer import OutputWriter
from service.models.runtimes import Answer, Pixels
from service.shared.batches import BatchReport
from service.shared.outputs import OutputKind, OutputRequest


class InFlightBatch:
    """A batch on the device, as a `service.shared.batches.BatchHandle`. ``finish`` is the runner's."""

    def __init__(
        self,
        buffers: BatchBuffers,
        pixels: Pixels,
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
        finish: Callable[[InFlightBatch], BatchReport],
        canary: int,
    ) -> None:
        """``canary`` is the number of the known image that its launches carry."""
        self.buffers, self.pixels, self.slots = buffers, pixels, slots
        self.wants_features = any(want is not OutputKind.CLASSIFY for want in wanted)
        self.rows = 0
        self.canary = canary
        self.canaries: list[int] = []
        """The bucket of each launch that carried the canary."""
        self.event: Event | None = None
        """The event after the last copy to the host."""
        self._wanted, self._results = wanted, results
        self._finish = finish

    def done(self) -> bool:
        return self.event is None or self.event.done()

    def wait(self) -> None:
        assert self.event is not None
        self.event.wait()

    def finish(self) -> BatchReport:
        return self._finish(self)

    def deliver(self, deliver: OutputWriter) -> Callable[[], None] | None:
        """Writes the answers to the slots' results; returns the remaining work that needs no device, or None."""
        images, buffers = len(self.slots), self.buffers
        if not images:
            return None
        logits = buffers.host_answers[:images].numpy()
        if not self.wants_features:
            # In one assignment: this thread must keep the device busy.
            self._results[self.slots, : logits.shape[1]] = logits
            return None
        features = buffers.host_features[:images].permute(0, 3, 1, 2).float().numpy()
        rows = zip(features, logits, strict=True)
        return deliver.begin(self.slots, self._wanted, [Answer(*row) for row in rows], self._results)
