"""The arena: shared memory with a slot for each admitted image.

A front-end admits an image by taking a slot. So the arena is the queue limit, the semaphore, the request table and the
buffer allocator in one. Byte map, each part on a page of its own:

    gauges   float64 [Gauge]            written by the engine, read by anyone
    arrivals uint64  [256]              images offered, counted by each front-end in its own cell
    decoding float64 [256, Decoding]    what decoding costs, each front-end in its own row
    owners   uint8   [slots]            0 free · 1…254 the front-end that holds it
    records  RECORD  [slots]            wanted output, deadline, times (seconds of the monotonic clock), outcome
    results  float32 [slots, results]   the model's answer, written by the engine
    pixels   uint8   [slots, H, W, C]   the image, written by the front-end

The holder of a slot, who alone may touch its bytes:

    free ──acquire──▶ front-end ──submit──▶ engine ──reply──▶ front-end ──release──▶ free

The owner byte names the front-end from *acquire* to *release*. Every submission gets exactly one reply, from which
follows whether the front-end or the engine holds the slot in between. Only ``owners`` decides which slots are free: a
process may be killed between any two instructions, and its byte still names the owner. Only *acquire* needs a lock,
since two front-ends may want the same free byte. The kernel releases that lock when its holder dies.
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
MAX_FRONTENDS = 254

#: A number on the link that is a slot's number plus this concerns the encoded file in the slot, not its image.
FILE = 1 << 24

_PAGE = mmap.PAGESIZE


class Outcome(IntEnum):
    """The outcome with which the engine returns a slot."""

    OK = 0
    EXPIRED = 1
    CANCELLED = 2
    FAILED = 3


class Gauge(IntEnum):
    """The float64 values that the engine publishes."""

    QUEUE_DEPTH = 0
    BUSY_RATIO = 1
    CAPACITY = 2
    """The device's throughput in images a second."""
    SATURATION = 3
    """Arrivals over capacity."""
    BUSY_SINCE = 4
    """The time at which the oldest running batch was handed to the device; 0 if none runs."""
    MEMORY_USED = 5
    """Used bytes of the device's own memory, all processes together."""
    MEMORY_TOTAL = 6
    """The device's own memory in bytes; 0 if it has none."""
    RUNNING = 7
    """The number of images on the device."""
    PASS = 8
    """Seconds of a recent forward pass; 0 before the first."""
    MAX_BATCH_SIZE = 9
    DECODE_MEMORY = 10
    """Bytes that all front-ends together may use for decoding; infinite without a limit."""
    FILES = 11
    """The number of further files that the engine would decode now; 0 if it decodes none."""
    ARRIVALS = 12
    """Arriving images a second, smoothed."""
    DECODE_CAPACITY = 13
    """The throughput of all decoders in images a second; 0 before the first image."""
    DECODE_BUSY = 14
    """The share of time for which decoders are busy, unfinished images included."""


class Decoding(IntEnum):
    """The float64 values that each front-end publishes about its decoding. All but THREADS and MEMORY only grow."""

    IMAGES = 0
    """Decoded images."""
    SECONDS = 1
    """Seconds that were spent on the decoded images."""
    THREADS = 2
    """The number of decoders; 0 once the front-end is gone."""
    BUSY = 3
    """Seconds that were spent on all images, unfinished ones included."""
    MEMORY = 4
    """Bytes that large images have reserved."""


_DECODING = (MAX_FRONTENDS + 2, len(Decoding))
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


#: The layout of `RECORD` for `struct`, for access to one slot: NumPy takes a microsecond for each field.
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
    """The sizes that decide the arena's layout. ``results`` is the length of the longest answer in float32."""

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
    """A mapping of the shared memory in one process.

    The engine makes it with `create`, a front-end with the descriptor that the engine sent. It owns the descriptor.
    """

    def __init__(self, descriptor: int, geometry: Geometry) -> None:
        self.descriptor = descriptor
        self.geometry = geometry
        self._memory = mmap.mmap(descriptor, _size(geometry))
        slots = geometry.slots
        offset = 0
        self.gauges: NDArray[np.float64] = self._view(np.dtype("f8"), (len(Gauge),), offset)
        offset += _PAGE
        self.arrivals: NDArray[np.uint64] = self._view(np.dtype("u8"), (MAX_FRONTENDS + 2,), offset)
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
        """A new arena in which every slot is free."""
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
        """The number of free slots."""
        end = self._owners_at + self.geometry.slots
        return self._memory[self._owners_at : end].count(0)

    def acquire(self, owner: int) -> int | None:
        """Gives a free slot to ``owner`` and returns its number; None if no slot is free."""
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
        """Holds the lock on decisions about decode memory until the block ends."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, 1)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, 1)

    def release(self, slot: int) -> None:
        """Makes ``slot`` free. Only its holder may call this."""
        self._memory[self._owners_at + slot] = 0

    def record(self, slot: int) -> Record:
        """The record of ``slot``."""
        return Record._make(_RECORD.unpack_from(self._memory, self._records_at + slot * _RECORD.size))

    def deadline(self, slot: int) -> float:
        """The deadline of ``slot``, in seconds of the monotonic clock."""
        deadline, _ = _TIMES.unpack_from(self._memory, self._records_at + slot * _RECORD.size)
        return float(deadline)

    def wanted(self, slot: int) -> OutputRequest:
        """The output that ``slot`` asks for."""
        (code,) = _WANTED.unpack_from(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT)
        return from_code(code)

    def record_admission(self, slot: int, deadline: float, bulk: bool) -> None:
        """Writes the deadline and the class of ``slot``, so that `due_by` counts it for later arrivals."""
        at = self._records_at + slot * _RECORD.size
        _DEADLINE.pack_into(self._memory, at, deadline)
        self._memory[at + _BULK_AT] = bulk

    def is_bulk(self, slot: int) -> bool:
        """True if ``slot`` holds a bulk request."""
        return bool(self._memory[self._records_at + slot * _RECORD.size + _BULK_AT])

    def due_by(self, deadline: float) -> int:
        """The number of taken slots with a deadline of at most ``deadline``, without bulk ones, which run last."""
        ahead = (self.owners != 0) & (self.records["deadline"] <= deadline) & (self.records["bulk"] == 0)
        return int(np.count_nonzero(ahead))

    def record_submission(self, slot: int, deadline: float, submitted: float, wanted: OutputRequest) -> None:
        """Writes the front-end's part of the record."""
        at = self._records_at + slot * _RECORD.size
        _TIMES.pack_into(self._memory, at, deadline, submitted)
        _WANTED.pack_into(self._memory, at + _WANTED_AT, to_code(wanted))

    def record_file(self, slot: int, length: int) -> None:
        """Notes that the slot's pixels begin with an encoded file of ``length`` bytes."""
        _WANTED.pack_into(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT, length)

    def file(self, slot: int) -> int:
        """The length of the file in the slot, in bytes; valid from `record_file` until the slot is submitted."""
        (length,) = _WANTED.unpack_from(self._memory, self._records_at + slot * _RECORD.size + _WANTED_AT)
        return int(length)

    def record_finish(
        self, slot: int, started: float, finished: float, batch: int, batch_size: int, outcome: Outcome
    ) -> None:
        """Writes the engine's part of the record, for a slot that was in a batch."""
        at = self._records_at + slot * _RECORD.size + _FINISH_AT
        _FINISH.pack_into(self._memory, at, started, finished, batch, batch_size, outcome)

    def record_outcome(self, slot: int, outcome: Outcome) -> None:
        """Writes the engine's part of the record, for a slot that was in no batch."""
        self._memory[self._records_at + slot * _RECORD.size + _OUTCOME_AT] = outcome

    def held_by(self, owner: int) -> list[int]:
        """All slots that ``owner`` holds."""
        return [int(slot) for slot in np.flatnonzero(self.owners == owner)]

    def close(self) -> None:
        """Closes the descriptor. The mapping ends with the last view of it."""
        os.close(self.descriptor)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _size(geometry: Geometry) -> int:
    image = geometry.height * geometry.width * geometry.channels
    slots = geometry.slots
    parts = (_DECODING_SIZE, slots, slots * RECORD.itemsize, slots * geometry.results * 4)
    return 2 * _PAGE + sum(map(_pages, parts)) + _pages(slots * image)
