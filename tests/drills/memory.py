"""A process's memory from outside, by /proc/PID/mem: where a weight lies, and one bit of it flipped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)")


@dataclass(frozen=True)
class Place:
    """Where four bytes lie in a process."""

    pid: int
    address: int

    def flip(self, bit: int) -> None:
        """Turns one of the 32 bits. Raises OSError where this process may not write there."""
        with Path(f"/proc/{self.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(self.address)
            word = int.from_bytes(memory.read(4), "little") ^ (1 << bit)
            memory.seek(self.address)
            memory.write(word.to_bytes(4, "little"))


def find(pid: int, pattern: NDArray[np.float32]) -> list[Place]:
    """Where these numbers lie side by side, in memory that the process writes and that is no file's."""
    wanted = np.ascontiguousarray(pattern).view(np.uint32)
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _anonymous(pid):
            memory.seek(start)
            try:
                words = np.frombuffer(memory.read(end - start), np.uint32)
            except OSError:
                continue
            for place in np.flatnonzero(words == wanted[0]).tolist():
                if np.array_equal(words[place : place + len(wanted)], wanted):
                    found.append(Place(pid, start + 4 * place))
    return found


def _anonymous(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _LINE.match(line)
        if match and match[3].startswith("rw") and not match[4].startswith(("/", "[stack", "[vv")):
            yield int(match[1], 16), int(match[2], 16)
