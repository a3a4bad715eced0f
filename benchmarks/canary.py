"""The cost of the canary: an engine with and without it, in turns, under load and with an occasional client.

    python -m benchmarks.canary [--models null densenet121=demo densenet121=random:0] [--turns 6] [--seconds 3]

No HTTP and no decoding: what is measured is the engine's loop and the model. Under load, clients ask one image after
the other. Each turn with the canary is followed by one without, and both are compared by the CPU that an image
takes, which the machine's other work decides less than the rate. The client now and then pauses for some random time
before each image, so that it meets a device that has been idle, or the canary on it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.null import NullRunner
from service.engine.arena import Arena, Geometry
from service.engine.batcher import Batcher
from service.engine.canary import Canary
from service.engine.client import EngineClient
from service.engine.core import EngineCore
from service.engine.device import Batch, DeviceThread
from service.engine.owner import Owner
from service.models import serving
from service.models.guard import LOOK_EVERY
from service.settings import Settings
from service.shared.outputs import OutputKind
from service.shared.transport import Channel, Link, socket_pair

_SLOTS, _CLIENTS = 64, 16
#: Mean pause of the occasional client in seconds.
_PAUSE = 0.6


class Switched(Canary):
    """A canary that can be switched off."""

    out = True

    def is_due(self, in_streams: bool) -> bool:
        return self.out and super().is_due(in_streams)

    def is_welcome(self, now: float) -> bool:
        return self.out and super().is_welcome(now)


class Site:
    """An engine in a thread, and its client on the loop."""

    def __init__(self, runner: Any, image: tuple[int, int, int], owner: Owner) -> None:
        self.arena = Arena.create(Geometry(_SLOTS, *image, runner.results))
        self.arena.pixels[...] = np.random.default_rng(0).integers(0, 256, image, np.uint8)
        self.canaries = 0
        self.core = EngineCore(
            runner,
            self.arena,
            Batcher(runner.max_batch_size),
            capacity=runner.capacity,
            batch_ran=self._ran,
            device=DeviceThread(runner, self.arena, owner=owner),
        )
        self.canary = self.core._canary = Switched(time.monotonic())

    def _ran(self, batch: Batch) -> None:
        self.canaries += batch.is_canary

    @contextmanager
    def serving(self) -> Iterator[EngineClient]:
        ours, theirs = socket_pair()
        stop, stopped = (Channel(end) for end in socket_pair())
        self.core.attach(1, Link(theirs))
        self.core.watch(stopped, self.core.stop)
        thread = threading.Thread(target=self.core.serve)
        thread.start()
        client = EngineClient()
        client.attach(Arena(os.dup(self.arena.descriptor), self.arena.geometry), Link(ours), 1)
        try:
            yield client
        finally:
            client.detach()
            stop.send("stop")
            thread.join()


async def _ask(client: EngineClient) -> float:
    began = time.perf_counter()
    with client.acquire() as slot:
        await slot.answer(client.clock() + 60, 1)
    return time.perf_counter() - began


async def _busy(client: EngineClient, seconds: float) -> tuple[float, float]:
    """Returns images a second, and milliseconds of this process's CPU for each."""
    ends, images = time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal images
        while time.perf_counter() < ends:
            await _ask(client)
            images += 1

    began, spent = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one() for _ in range(_CLIENTS)))
    return images / (time.perf_counter() - began), 1000 * (time.process_time() - spent) / images


async def _now_and_then(client: EngineClient, seconds: float, chance: random.Random) -> list[float]:
    """Returns the milliseconds of each image."""
    ends, took = time.perf_counter() + seconds, []
    while time.perf_counter() < ends:
        await asyncio.sleep(chance.expovariate(1 / _PAUSE))
        took.append(1000 * await _ask(client))
    return took


async def _measure(
    name: str, site: Site, client: EngineClient, turns: int, seconds: float, idle: float
) -> list[dict[str, Any]]:
    rates: dict[bool, list[float]] = {True: [], False: []}
    costs: dict[bool, list[float]] = {True: [], False: []}
    alone: dict[bool, list[float]] = {True: [], False: []}
    canaries = {"busy": 0, "idle": 0}
    chance = random.Random(1)
    await _busy(client, 1.0)
    for turn in range(2 * turns):
        site.canary.out = out = turn % 2 == 0
        before = site.canaries
        rate, cost = await _busy(client, seconds)
        rates[out].append(rate)
        costs[out].append(cost)
        between = site.canaries
        alone[out] += await _now_and_then(client, idle, chance)
        canaries["busy"] += between - before
        canaries["idle"] += site.canaries - between
    ratios = [one / other for one, other in zip(costs[True], costs[False], strict=True)]
    quantiles = {
        share: [float(np.quantile(alone[out], share)) for out in (True, False)] for share in (0.5, 0.95)
    }
    return [
        {
            "model": name,
            "images/s with": median(rates[True]),
            "without": median(rates[False]),
            "CPU with / without": round(median(ratios), 3),
            "of its turns": f"{min(ratios):.3f} to {max(ratios):.3f}",
            "canaries": canaries["busy"],
            "alone: p50 ms with": quantiles[0.5][0],
            "p50 without": quantiles[0.5][1],
            "p95 with": quantiles[0.95][0],
            "p95 without": quantiles[0.95][1],
            "its canaries": canaries["idle"],
        }
    ]


def _passes(runner: Any, image: tuple[int, int, int], rounds: int = 40) -> dict[str, Any]:
    """Returns the time of a pass with one image and with the canary, in turns, and a canary's share of a busy
    device's time."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, *image), np.uint8)
    results = np.zeros((1, runner.results), np.float32)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds):
        began = time.perf_counter()
        if number % 2:
            rows = runner.canary().finish().rows
        else:
            runner.start(pixels, [0], [OutputKind.CLASSIFY], results)
            rows = 1
        times[number % 2].append(1000 * (time.perf_counter() - began) / rows)
    one, canary = map(median, times)
    share = canary / (LOOK_EVERY * one + canary)
    return {"a pass, ms": one, "the canary, ms": canary, "of a busy device's time, %": round(100 * share, 2)}


def measure(name: str, turns: int, seconds: float, idle: float) -> list[dict[str, Any]]:
    """Returns the row of one model: ``null``, or a variant and its weights."""
    owner = Owner("device")
    if name == "null":
        runner, image, passes = NullRunner(8), (224, 224, 3), {}
    else:
        model, _, weights = name.partition("=")
        settings = Settings(model=model, weights=weights, device="cpu")
        loaded = owner.call(lambda: serving.load(settings, lambda *_: None))
        owner.call(loaded.runner.warm_up)
        runner, image = loaded.runner, loaded.described.image  # type: ignore[assignment]
        passes = owner.call(lambda: _passes(runner, image))
    site = Site(runner, image, owner)
    with asyncio.Runner() as loop:

        async def run() -> list[dict[str, Any]]:
            with site.serving() as client:
                return await _measure(name, site, client, turns, seconds, idle)

        return [{**row, **passes} for row in loop.run(run())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["null", "densenet121=demo", "densenet121=random:0"])
    parser.add_argument("--turns", type=int, default=6, help="each way")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn under load")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of a turn of the client alone")
    arguments = parser.parse_args()
    rows = [
        row
        for name in arguments.models
        for row in measure(name, arguments.turns, arguments.seconds, arguments.idle)
    ]
    notes = [
        f"{_CLIENTS} clients under load; alone: one, with pauses of {_PAUSE * 1000:.0f} ms on average.",
    ]
    report.publish("canary", "What the canary costs", {"with it and without, in turns": rows}, notes)


if __name__ == "__main__":
    main()
