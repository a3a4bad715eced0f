"""The arena: every request's memory, and with it the right to be served.

A slot is a piece of the arena for one image. Taking it is admission, so one idea stands for the queue
limit, the semaphore, the request table and the buffer allocator. Byte map, each part on a page of its own:

    gauges   float64 [Gauge]            written by the engine, read by anyone
    arrivals uint64  [256]              images offered, counted by each front-end in its own cell
    decoding float64 [256, Decoding]    what decoding costs, each front-end in its own row
    owners   uint8   [slots]            0 free · 1…254 the front-end that holds it
    records  RECORD  [slots]            what is wanted; deadline and times, in seconds of the monotonic clock; outcome
    results  float32 [slots, results]   the model's answer, written by the engine
    pixels   uint8   [slots, H, W, C]   the image, written by the front-end

Who may touch a slot's bytes:

    free ──take──▶ front-end ──submit──▶ engine ──reply──▶ front-end ──release──▶ free

The owner byte names the front-end from *take* to *release*; which of the two sides holds the slot in
between follows from the one reply that every submission gets. ``owners`` is the only truth about
what is free: a process may be killed between any two instructions, and its byte still tells whose the
slot was. Only *take* needs a lock, since two front-ends may want the same free byte; the kernel
drops that lock when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.shared.outputs import OutputRequest, from_code, to_code
from service.shared.transport import anonymous_memory

#: Front-ends are told apart by one byte; 0 means free.
MOST_FRONTENDS = 254

#: Over the link, a slot's number plus this is about the file in it, to be decoded, and not about its image.
FILE = 1 << 24

_PAGE = mmap.PAGESIZE


class Outcome(IntEnum):
    """How the engine handed a slot back."""

    OK = 0
    EXPIRED = 1
    CANCELLED = 2
    FAILED = 3


class Gauge(IntEnum):
    """What the engine tells everyone, each a float64."""

    QUEUE_DEPTH = 0
    BUSY_RATIO = 1
    CAPACITY = 2
    """Images a second that the device manages."""
    SATURATION = 3
    """Arrivals over capacity."""
    BUSY_SINCE = 4
    """When the oldest of the batches that run was handed to the device, 0 when none does."""
    MEMORY_USED = 5
    """Bytes of the device's own memory that anyone uses."""
    MEMORY_TOTAL = 6
    """0 for a device that has none of its own."""
    RUNNING = 7
    """Images on the device."""
    PASS = 8
    """Seconds that a forward pass takes lately, 0 before the first."""
    MAX_BATCH_SIZE = 9
    DECODE_MEMORY = 10
    """Bytes that the decoding of all front-ends may take; infinite where nothing limits it."""
    FILES = 11
    """More files that the engine would decode now; 0 where it decodes none."""
    ARRIVALS = 12
    """Images a second that were offered, smoothed."""
    DECODE_CAPACITY = 13
    """Images a second that all decoders manage; 0 before any was decoded."""
    DECODE_BUSY = 14
    """Share of time that they are busy, images that are not done as well."""


class Decoding(IntEnum):
    """What each front-end tells of its decoding, each a float64. Images and seconds only grow."""

    IMAGES = 0
    SECONDS = 1
    """Time that its threads have spent on them."""
    THREADS = 2
    """Decoders, or threads that decode; 0 once it has gone."""
    BUSY = 3
    """Time that they have spent, on images that are not done as well. Only grows."""
    MEMORY = 4
    """Bytes that large images have reserved."""


_DECODING = (MOST_FRONTENDS + 2, len(Decoding))
_DECODING_SIZE = _DECODING[0] * _DECODING[1] * 8

RECORD = np.dtype(
    [
        ("deadline", "f8"),
        ("submitted", "f8"),
        ("started", "f8"),
        ("finished", "f8"),
        ("batch", "u4"),
        ("batch_size", "u2"),
        ("outcome", "u1"),
        ("bulk", "u1"),
        ("wanted", "i4"),
    ],
    align=True,
)


#: A record's bytes and parts of it, for one slot at a time: NumPy takes a microsecond for each field.
_RECORD = struct.Struct("@ddddIHBBi4x")
_DEADLINE = struct.Struct("@d")
_TIMES = struct.Struct("@dd")
_FINISH = struct.Struct("@ddIHB")
_FINISH_AT = 2 * 8
_OUTCOME_AT = 4 * 8 + 4 + 2
_BULK_AT = _OUTCOME_AT + 1
_WANTED = struct.Struct("@i")
_WANTED_AT = 5 * 8


class Record(NamedTuple):
    """One slot's record. Times in seconds of the monotonic clock."""

    deadline: float
    submitted: float
    started: float
    finished: float
    batch: int
    batch_size: int
    outcome: int
    bulk: int
    wanted: int


@dataclass(frozen=True)
class Geometry:
    """What decides the arena's size. ``results`` is the length of the longest answer in float32."""

    slots: int
    height: int
    width: int
    channels: int
    results: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Geometry:
        return cls(**document)


class Arena:
    """A mapping of the shared memory, in any process that has its descriptor.

    Construct with `create` (the engine) or with a descriptor that came from there (a front-end).
    The arena owns the descriptor.
    """

    def __init__(self, descriptor: int, geometry: Geometry) -> None:
        self.descriptor = descriptor
        self.geometry = geometry
        self._memory = mmap.mmap(descriptor, _size(geometry))
        slots = geometry.slots
        offset = 0
        self.gauges: NDArray[np.float64] = self._view(np.dtype("f8"), (len(Gauge),), offset)
        offset += _PAGE
        self.arrivals: NDArray[np.uint64] = self._view(np.dtype("u8"), (MOST_FRONTENDS + 2,), offset)
        offset += _PAGE
        self.decoding: NDArray[np.float64] = self._view(np.dtype("f8"), _DECODING, offset)
        offset += _pages(_DECODING_SIZE)
        self._owners_at = offset
        self.owners: NDArray[np.uint8] = self._view(np.dtype("u1"), (slots,), offset)
        offset += _pages(slots)
        self._records_at = offset
        self.records: NDArray[np.void] = self._view(RECORD, (slots,), offset)
        offset += _pages(slots * RECORD.itemsize)
        self.results: NDArray[np.float32] = self._view(np.dtype("f4"), (slots, geometry.results), offset)
        offset += _pages(slots * geometry.results * 4)
        image = (geometry.height, geometry.width, geometry.channels)
        self.pixels: NDArray[np.uint8] = self._view(np.dtype("u1"), (slots, *image), offset)

    @classmethod
    def create(cls, geometry: Geometry) -> Arena:
        """A new arena, every slot free."""
        arena = cls(anonymous_memory(_size(geometry)), geometry)
        arena.gauges[Gauge.DECODE_MEMORY] = math.inf
        return arena

    def __repr__(self) -> str:
        return f"<Arena {self.free}/{self.geometry.slots} free>"

    def _view(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).reshape(shape)

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        end = self._owners_at + self.geometry.slots
        return self._memory[self._owners_at : end].count(0)

    def acquire(self, owner: int) -> int | None:
        """A free slot, now ``owner``'s; None when there is none."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1)
        try:
            at = self._memory.find(b"\0", self._owners_at, self._owners_at + self.geometry.slots)
            if at < 0:
                return None
            self._memory[at] = owner
            return at - self._owners_at
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1)

    @contextlib.contextmanager
    def deciding_about_memory(self) -> Iterator[None]:
        """Nobody else does, inside the block."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, 1)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, 1)

    def release(self, slot: int) -> None:
        """Makes ``slot`` free. Only whoever holds it may."""
        self._memory[self._owners_at + slot] = 0

    def record(self, slot: int) -> Record:
        """What is noted of ``slot``."""
        return Record._make(_RECORD.unpack_from(self._memory, self._records_at + slot * _RECORD.size))

    def deadline(self, slot: int) -> float:
        """When ``slot`` has to be answered."""
        deadline, _ = _TIMES.unpack_from(self._memory, self._records_at + slot * _RECORD.size)
        return float(deadline)

    def wanted(self, slot: int) -> OutputRequest:
        """What ``slot`` asks for."""
        (code,) = _WANTED.unpack_from(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT)
        return from_code(code)

    def record_admission(self, slot: int, deadline: float, bulk: bool) -> None:
        """When ``slot`` will have to be answered, and how urgent it is, so that newcomers know who is before them."""
        at = self._records_at + slot * _RECORD.size
        _DEADLINE.pack_into(self._memory, at, deadline)
        self._memory[at + _BULK_AT] = bulk

    def is_bulk(self, slot: int) -> bool:
        """Whether ``slot`` waits for everybody else."""
        return bool(self._memory[self._records_at + slot * _RECORD.size + _BULK_AT])

    def due_by(self, deadline: float) -> int:
        """How many slots that somebody holds have to be answered by ``deadline``, but for bulk ones, which wait."""
        ahead = (self.owners != 0) & (self.records["deadline"] <= deadline) & (self.records["bulk"] == 0)
        return int(np.count_nonzero(ahead))

    def record_submission(self, slot: int, deadline: float, submitted: float, wanted: OutputRequest) -> None:
        """The front-end's part of the record."""
        at = self._records_at + slot * _RECORD.size
        _TIMES.pack_into(self._memory, at, deadline, submitted)
        _WANTED.pack_into(self._memory, at + _WANTED_AT, to_code(wanted))

    def record_file(self, slot: int, length: int) -> None:
        """The slot's pixels begin with a file of ``length`` bytes."""
        _WANTED.pack_into(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT, length)

    def file(self, slot: int) -> int:
        """The file's length in bytes, from `record_file` until the slot is submitted."""
        (length,) = _WANTED.unpack_from(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT)
        return int(length)

    def record_finish(
        self, slot: int, started: float, finished: float, batch: int, batch_size: int, outcome: Outcome
    ) -> None:
        """The engine's part of the record, for a slot that was in a batch."""
        at = self._records_at + slot * _RECORD.size + _FINISH_AT
        _FINISH.pack_into(self._memory, at, started, finished, batch, batch_size, outcome)

    def record_outcome(self, slot: int, outcome: Outcome) -> None:
        """The engine's part of the record, for a slot that was in none."""
        self._memory[self._records_at + slot * _RECORD.size + _OUTCOME_AT] = outcome

    def held_by(self, owner: int) -> list[int]:
        """Every slot of ``owner``'s."""
        return [int(slot) for slot in np.flatnonzero(self.owners == owner)]

    def close(self) -> None:
        """Gives the descriptor back. The mapping goes with the last view of it."""
        os.close(self.descriptor)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _size(geometry: Geometry) -> int:
    image = geometry.height * geometry.width * geometry.channels
    slots = geometry.slots
    parts = (_DECODING_SIZE, slots, slots * RECORD.itemsize, slots * geometry.results * 4)
    return 2 * _PAGE + sum(map(_pages, parts)) + _pages(slots * image)
