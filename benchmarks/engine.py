"""The engine's loop alone: slots a second through one engine, null runner, 1 to N front-end processes.

    python -m benchmarks.engine [--front-ends 1 2 4] [--batch-sizes 1 8 64] [--seconds 4]

Every front-end keeps its slots busy without HTTP or event loop: take, submit, wait for the reply, release.
The engine's own CPU per slot is the limit of one core; the rate that was reached says how near the
cores of this machine come to it, front-ends included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import report
from benchmarks.null import NullRunner
from service.engine.arena import Arena, Geometry
from service.engine.batcher import Batcher
from service.engine.core import EngineCore
from service.engine.device import Batch
from service.engine.process import _counter, handle_message
from service.observability.metrics import Metrics, clean_up, prepare
from service.shared.outputs import OutputKind
from service.shared.transport import Channel, Link, socket_pair

#: Slots that each front-end keeps in flight.
_WINDOW = 64
_GEOMETRY = Geometry(slots=1024, height=224, width=224, channels=3, results=1000)


def engine(arena: Arena, end: socket.socket, spent: Connection, max_batch_size: int) -> None:
    """Runs the engine process, set up as by `service.engine.process.main`."""
    channel = Channel(end)
    count = _counter(Metrics.declare())
    began: list[float] = []

    def batch_ran(batch: Batch) -> None:
        began.append(time.process_time())
        count(batch)

    core = EngineCore(
        NullRunner(max_batch_size), arena, Batcher(max_batch_size), capacity=1e5, batch_ran=batch_ran
    )
    core.watch(channel, lambda: handle_message(core, channel))
    core.serve()
    spent.send((time.process_time() - began[0], len(began)))


def front_end(arena: Arena, end: socket.socket, number: int, seconds: float, done: Connection) -> None:
    """Keeps `_WINDOW` slots in flight for ``seconds``; sends how many came back and the CPU seconds."""
    link = Link(end)
    slots = [slot for _ in range(_WINDOW) if (slot := arena.acquire(number)) is not None]
    finished, cpu, stop = 0, 0.0, float("inf")

    def submit(wanted: list[int]) -> None:
        now = time.monotonic()
        for slot in wanted:
            arena.record_submission(slot, now + 30, now, OutputKind.CLASSIFY)
        link.send(wanted)

    submit(slots)
    under_way = len(slots)
    while under_way:
        select.select([link], [], [])
        returned = list(link.receive() or ())
        if stop == float("inf"):  # the engine is running
            stop, cpu = time.monotonic() + seconds, time.process_time()
        finished += len(returned)
        if time.monotonic() < stop:
            submit(returned)
        else:
            under_way -= len(returned)
    done.send((finished, time.process_time() - cpu))


def measure(front_ends: int, seconds: float, max_batch_size: int = 64) -> dict[str, Any]:
    """Returns one row: rate, the engine's CPU per slot, and the resulting limit of one core."""
    context = multiprocessing.get_context("fork")
    metrics = prepare()
    arena = Arena.create(_GEOMETRY)
    ours, theirs = socket_pair()
    channel = Channel(ours)
    spent, spend = context.Pipe(False)
    core = context.Process(target=engine, args=(arena, theirs, spend, max_batch_size))
    core.start()
    results, processes = [], []
    for number in range(1, front_ends + 1):
        mine, its = socket_pair()
        channel.send("front-end", number=number, descriptors=[its.fileno()])
        reader, writer = context.Pipe(False)
        process = context.Process(target=front_end, args=(arena, mine, number, seconds, writer))
        process.start()
        mine.close()
        its.close()
        results.append(reader)
        processes.append(process)
    counts = [reader.recv() for reader in results]
    channel.send("stop")
    cpu, batches = spent.recv()
    for process in [*processes, core]:
        process.join()
    clean_up(metrics)
    slots = sum(finished for finished, _ in counts)
    return {
        "front-ends": front_ends,
        "max_batch_size": max_batch_size,
        "slots/s": round(slots / seconds),
        "slots a batch": round(slots / batches, 1),
        "engine CPU us/slot": round(1e6 * cpu / slots, 2),
        "slots/s, one core": round(slots / cpu),
        "front-end CPU us/slot": round(1e6 * sum(used for _, used in counts) / slots, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--front-ends", type=int, nargs="+", default=sorted({1, 2, cores, 2 * cores}))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    rows = [
        measure(count, arguments.seconds, size)
        for size in arguments.batch_sizes
        for count in arguments.front_ends
    ]
    notes = [
        f"{_WINDOW} slots under way for each front-end. 'slots/s, one core' is 1 / the engine's CPU a slot.",
        "A batch costs the hand-over to the device's thread and back; a slot in it little beside that.",
    ]
    report.publish("engine", "Slots through one engine, null runner", {"slots a second": rows}, notes)


if __name__ == "__main__":
    main()
