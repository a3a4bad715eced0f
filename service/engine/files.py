"""The engine's own decoder, for devices that decode faster than cores: reads files from slots, writes pixels there.

    front-end ──slot with a file──▶ core ──slot──▶ decoder of files, in a process of its own (file_process.py)
              ◀──pixels, or yours──      ◀──slot──

A front-end writes an encoded file into a slot's pixels and sends the slot. The reply says whether the slot now holds
pixels. If the engine refuses or fails, the front-end decodes the bytes, which it still has.
"""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.shared.transport import Link

log = logging.getLogger(__name__)

#: The largest number of files that are decoded together, and that may wait; with more, front-ends are faster.
MAX_TOGETHER, MAX_WAITING = 64, 128
#: The number of failed batches in a row after which the decoder ends.
_LAST_STRAW = 3


class FileDecoder(Protocol):
    """A decoder of files that belongs to one thread."""

    def decode(self, files: Sequence[bytes], into: Sequence[NDArray[np.uint8]]) -> Sequence[bool]:
        """Writes each file's prepared pixels, uint8 ``[H, W, 3]``. Returns False for each file that it refuses."""


class FileDecoding:
    """The core's side of the decoder. ``fileno()`` becomes readable when some files are done."""

    def __init__(self, link: Link) -> None:
        self.open = True
        """False once the decoder has ended."""
        self._link = link
        self._waiting: set[int] = set()

    def fileno(self) -> int:
        return self._link.fileno()

    def submit(self, slot: int) -> None:
        """Hands over a slot that holds a file; it belongs to the decoder until `collect` returns it."""
        self._waiting.add(slot)
        self._link.send((slot,))

    def collect(self) -> list[tuple[int, bool]]:
        """The finished slots, each with True if it now holds pixels. After the decoder's end, all that it had."""
        self._link.flush()
        numbers = self._link.receive()
        if numbers is None:
            self.open = False
            numbers = [~slot for slot in sorted(self._waiting)]
            log.error("the decoder of files has ended; front-ends decode all files from now on")
        found = [(number, True) if number >= 0 else (~number, False) for number in numbers]
        self._waiting -= {slot for slot, _ in found}
        return found

    def close(self) -> None:
        """Ends the decoder."""
        self._link.close()


def serve(
    link: Link, decoder: FileDecoder, arena: Arena, clock: Callable[[], float] = time.monotonic
) -> None:
    """Decodes what arrives on ``link`` until the core closes it, or until too many batches in a row have failed."""
    waiting: deque[int] = deque()
    failures = 0
    while failures < _LAST_STRAW:
        if not waiting:
            select.select([link], [], [])
        numbers = link.receive()
        if numbers is None:
            return
        waiting.extend(numbers)
        slots = [waiting.popleft() for _ in range(min(len(waiting), MAX_TOGETHER))]
        try:
            decoded = _decode(decoder, arena, slots, clock())
            failures = 0
        except Exception as error:
            # The border of a library: the front-ends decode these files.
            log.error("the GPU cannot decode %d files", len(slots), exc_info=error)
            decoded = set()
            failures += 1
        link.send(slot if slot in decoded else ~slot for slot in slots)


def _decode(decoder: FileDecoder, arena: Arena, slots: Sequence[int], now: float) -> set[int]:
    """Replaces files by pixels. Returns the slots for which that was possible, and not too late."""
    wanted = [slot for slot in slots if arena.deadline(slot) > now]
    if not wanted:
        return set()
    done = decoder.decode([_file(arena, slot) for slot in wanted], [arena.pixels[slot] for slot in wanted])
    return {slot for slot, decoded in zip(wanted, done, strict=True) if decoded}


def _file(arena: Arena, slot: int) -> bytes:
    data: bytes = arena.pixels[slot].reshape(-1)[: arena.file(slot)].tobytes()
    return data
