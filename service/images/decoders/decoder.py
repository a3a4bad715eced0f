"""The front-end's handle of one decoder process. Lives on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.images.decoders import wire
from service.images.decoders.keeper import Keeper
from service.images.decoders.picture import Recipe
from service.images.decoders.wire import Layout
from service.shared.transport import anonymous_memory, socket_pair

if TYPE_CHECKING:
    from service.images.decoders.job import Job

#: Bodies up to this many bytes (most photos) stay in a decoder's memory; the next body is written over them.
_KEPT = 4 << 20
#: Niceness of a decoder that is busy with one picture for long.
_NICE = 10
#: ``CPUCLOCK_SCHED``: the kernel forms the id of a process's CPU clock from the process id and this.
_CPUCLOCK = 2


class DecoderHandle:
    """A decoder process. Construct on the loop; it accepts a `job` at once, even before its process exists."""

    def __init__(
        self,
        keeper: Keeper,
        layout: Layout,
        recipe: Recipe,
        replied: Callable[[DecoderHandle, bytes], None],
        gone: Callable[[DecoderHandle], None],
    ) -> None:
        self.job: Job | None = None
        self.single_use = False
        """True if the decoder takes only pictures that take long or much memory, and ends after its current one."""
        self.reserved = 0
        """Bytes taken from the memory budget for the process itself, whatever it decodes."""
        self.killed: str | None = None
        """The reason why this front-end killed it; None if it did not."""
        self.pid: int | None = None
        """Process id; None until the keeper has forked it."""
        self._keeper = keeper
        self._layout = layout
        self._replied, self._gone = replied, gone
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._began = self._cpu_began = 0.0
        self._closed = False
        descriptor = anonymous_memory(layout.size)
        self._memory = mmap.mmap(descriptor, layout.size)
        self._recipe = recipe
        """The recipe that the process prepares pictures by at present."""
        self.pixels = self._view()
        """The prepared picture in shared memory, uint8 ``[H, W, C]``."""
        self._end, theirs = socket_pair()
        self.requested = keeper.start_decoder(theirs, descriptor, layout, wire.recipe_to_json(recipe))
        theirs.close()
        os.close(descriptor)
        self._loop.add_reader(self._end.fileno(), self._on_readable)

    def __repr__(self) -> str:
        return f"<DecoderHandle {self.pid} {'busy' if self.job else 'idle'}>"

    def started(self, pid: int) -> None:
        """Records the process id that the keeper reports."""
        self.pid = pid
        if self.killed:
            self._signal()
        if self._closed and pid:
            self._keeper.release(pid)

    def take(self, job: Job) -> bool:
        """Hands ``job`` to the process. Returns False, with nothing changed, if the process has ended."""
        self._memory[: len(job.picture.data)] = job.picture.data
        if not self._order(job):
            return False
        self.job = job
        self._began = time.monotonic()
        self._cpu_began = self._cpu()
        return True

    def retry(self) -> bool:
        """Orders the current job once more, with its new memory limit. The picture's bytes are still in shared
        memory."""
        assert self.job is not None
        return self._order(self.job)

    def _order(self, job: Job) -> bool:
        self._number += 1
        picture = job.picture
        order = wire.ORDER.pack(self._number, len(picture.data), job.memory, picture.drawn)
        if picture.recipe is not self._recipe:
            another, self._recipe = picture.recipe != self._recipe, picture.recipe
            if another:
                self.pixels = self._view()
                order += json.dumps(wire.recipe_to_json(self._recipe)).encode()
        try:
            self._end.send(order)
        except OSError:
            return False
        return True

    def is_current(self, number: int) -> bool:
        """Returns True if a reply with this ``number`` answers the current order."""
        return self.job is not None and number == self._number

    def release_job(self) -> Job | None:
        """Marks the decoder as idle and returns the job that it had."""
        job, self.job = self.job, None
        if job is not None and len(job.picture.data) > _KEPT:
            self._memory.madvise(mmap.MADV_REMOVE, 0, self._layout.pixels)
        return job

    def _view(self) -> NDArray[np.uint8]:
        count, at = wire.pixel_bytes(self._recipe), self._layout.pixels
        return np.frombuffer(self._memory, np.uint8, count, at).reshape(self._recipe.preprocessing.shape)

    def photo(self, height: int, width: int) -> bytes:
        """Returns the reduced photo from shared memory, RGB bytes."""
        at = self._layout.photo
        return self._memory[at : at + 3 * height * width]

    @property
    def seconds(self) -> float:
        """Seconds since the current job was handed over; 0 without one."""
        return time.monotonic() - self._began if self.job is not None else 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds that the current job has taken; 0 without a job, and while the process's clock cannot be read."""
        return max(0.0, self._cpu() - self._cpu_began) if self.job is not None else 0.0

    def yield_to_others(self) -> None:
        """Lowers the process's priority for the rest of its life (an unprivileged process cannot raise it again)."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, _NICE)

    def kill(self, reason: str) -> None:
        """Kills the process now. The callback ``gone`` follows."""
        if not self.killed:
            self.killed = reason
            self._signal()

    def close(self) -> None:
        """Closes the socket and releases the process: it ends when it is idle, or has ended already."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._end.fileno())
        self._end.close()
        if self.pid:
            self._keeper.release(self.pid)

    def _signal(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _cpu(self) -> float:
        if not self.pid:
            return 0.0
        try:
            return time.clock_gettime(~self.pid << 3 | _CPUCLOCK)
        except OSError:
            return 0.0

    def _on_readable(self) -> None:
        try:
            frame = self._end.recv(wire.MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            frame = b""
        if frame:
            self._replied(self, frame)
        else:
            self._gone(self)
