"""The engine's own decoder, for devices that decode faster than cores: reads files from slots, writes pixels there.

A front-end writes an encoded file into a slot's pixels and sends the slot. The reply says whether the slot now holds
pixels. If the engine refuses or fails, the front-end decodes the bytes, which it still has.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena

log = logging.getLogger(__name__)

#: The largest number of files that are decoded together, and that may wait; with more, front-ends are faster.
MAX_TOGETHER, MAX_WAITING = 64, 128
#: Number of decoders: while one's photos are resized and copied, the next one's are decoded.
DECODERS = 2
#: The number of failed batches in a row after which the decoder is closed for good.
_LAST_STRAW = 3


class FileDecoder(Protocol):
    """A decoder of files that belongs to one thread."""

    def decode(self, files: Sequence[bytes]) -> Sequence[NDArray[np.uint8] | None]:
        """The prepared pixels, uint8 ``[H, W, 3]``, of each file; None for a file that it refuses.

        They are valid until the next call.
        """


class FileDecodeThreads:
    """A thread for each decoder. ``fileno()`` becomes readable when some files are done."""

    def __init__(
        self, decoders: Sequence[FileDecoder], arena: Arena, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.open = True
        """False once decoders have failed too often."""
        self._arena, self._clock = arena, clock
        self._failures = 0
        self._jobs: SimpleQueue[int | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._threads = [
            threading.Thread(target=self._work, args=(decoder,), name="files", daemon=True)
            for decoder in decoders
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._wake_read

    def submit(self, slot: int) -> None:
        """Hands over a slot that holds a file; it belongs to these threads until `collect` returns it."""
        self._jobs.put(slot)

    def collect(self) -> list[tuple[int, bool]]:
        """The finished slots, each with True if it now holds pixels."""
        os.read(self._wake_read, 4096)
        found = []
        while True:
            try:
                found.append(self._done.get_nowait())
            except Empty:
                return found

    def stop(self) -> None:
        self._jobs.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _work(self, decoder: FileDecoder) -> None:
        while (slot := self._jobs.get()) is not None:
            slots = [slot, *self._waiting()]
            for number, decoded in zip(slots, self._decode(decoder, slots), strict=True):
                self._done.put((number, decoded))
            os.write(self._wake_write, b"\0")
        self._jobs.put(None)  # for the next thread

    def _waiting(self) -> list[int]:
        found: list[int] = []
        while len(found) < MAX_TOGETHER - 1:
            try:
                slot = self._jobs.get_nowait()
            except Empty:
                break
            if slot is None:
                self._jobs.put(None)
                break
            found.append(slot)
        return found

    def _decode(self, decoder: FileDecoder, slots: list[int]) -> list[bool]:
        now = self._clock()
        wanted = [slot for slot in slots if self.open and self._arena.deadline(slot) > now]
        pixels: dict[int, NDArray[np.uint8] | None] = {}
        try:
            if wanted:
                pixels = dict(zip(wanted, decoder.decode([self._file(slot) for slot in wanted]), strict=True))
            self._failures = 0
        except Exception as error:
            # The border of a library: the front-ends decode these files, and after `_LAST_STRAW` failures all files.
            self._failures += 1
            self.open = self._failures < _LAST_STRAW
            end = "" if self.open else "; it gets no more"
            log.error("the GPU cannot decode %d files%s", len(wanted), end, exc_info=error)
        return [self._deliver(slot, pixels.get(slot)) for slot in slots]

    def _file(self, slot: int) -> bytes:
        data: bytes = self._arena.pixels[slot].reshape(-1)[: self._arena.file(slot)].tobytes()
        return data

    def _deliver(self, slot: int, pixels: NDArray[np.uint8] | None) -> bool:
        if pixels is None:
            return False
        self._arena.pixels[slot] = pixels
        return True
