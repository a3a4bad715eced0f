"""The CPU split into streams: each runs an image of its own on its share of the cores.

Images of a batch wait for each other: in one batch at every layer, side by side at the end. While photos are decoded
on the same processor, some core is always late, and the others idle until it is done. Streams do not wait for each
other, so a decoding thread delays one stream only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.models.guard import Guard
from service.models.output_writer import OutputWriter
from service.models.runtimes import Pixels, Stream
from service.shared.batches import BatchReport
from service.shared.outputs import OutputRequest


class CpuStreams:
    """The `service.engine.device.Streams` of the executor with this ``name``.

    ``sooner[n]`` is True if n images finish sooner here than as one batch.
    """

    def __init__(
        self,
        name: str,
        streams: Sequence[Stream],
        sooner: Sequence[bool],
        deliver: OutputWriter,
        guard: Guard,
    ) -> None:
        self._name, self._guard = name, guard
        self.count = len(streams)
        self._streams = list(streams)
        self._sooner = list(sooner)
        self._deliver = deliver

    def sooner(self, images: int) -> bool:
        """Returns True if this many images finish sooner in streams than as one batch.

        Counts above the largest measured one take that one's answer.
        """
        return self._sooner[min(images, len(self._sooner) - 1)]

    def run(
        self, stream: int, pixels: Pixels, slot: int, want: OutputRequest, results: NDArray[np.float32]
    ) -> BatchReport:
        """Runs ``pixels[slot]`` in ``stream`` and writes the wanted output to ``results[slot]``."""
        self._deliver([slot], [want], [self._streams[stream](pixels, slot)], results)
        self._guard.ran(self._name, 1)
        return BatchReport(1, canary_due=self._guard.is_due(self._name))

    def canary(self, stream: int) -> BatchReport:
        """Shows the canary to ``stream``. Raises `DeviceFailed`."""
        return self._guard.check_in_stream(self._name, self._streams[stream])
