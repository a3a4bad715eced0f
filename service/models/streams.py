"""A processor in parts: every stream runs an image of its own on its share of the cores.

Images of a batch wait for each other: the layers of a batch at every layer, images side by side at the end. On a
processor that decodes photos beside, some core is always late, and the others are idle until it comes. A stream
waits for nobody: what a decoding thread takes from one is all that it takes.
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


class Streams:
    """What `service.engine.device.Streams` describes, of the executor with this ``name``.

    ``sooner[n]``: n images run sooner here than as one batch.
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
        """Whether this many run sooner in streams than as one batch; of more than the largest, as many of it."""
        return self._sooner[min(images, len(self._sooner) - 1)]

    def run(
        self, stream: int, pixels: Pixels, slot: int, want: OutputRequest, results: NDArray[np.float32]
    ) -> BatchReport:
        """Runs ``pixels[slot]`` in ``stream`` and writes what is wanted to ``results[slot]``."""
        self._deliver([slot], [want], [self._streams[stream](pixels, slot)], results)
        self._guard.ran(self._name, 1)
        return BatchReport(1, canary_due=self._guard.is_due(self._name))

    def canary(self, stream: int) -> BatchReport:
        """Looks at the canary in ``stream``. Raises `DeviceFailed`."""
        return self._guard.check_in_stream(self._name, self._streams[stream])
