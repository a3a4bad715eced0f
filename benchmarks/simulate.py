#!/usr/bin/env python3
"""Pods under load, simulated: how latency, refusals and batches follow from arrivals, and how many pods a load needs.

    pip install simpy
    python benchmarks/simulate.py --rate 200 --fixed-ms 4 --image-ms 2.5 --decode-ms 8 --cores 4
    python benchmarks/simulate.py --p99-ms 50 --per-hour 1e6 --fixed-ms 4 --image-ms 2.5 --decode-ms 8 --cores 4

     arrivals ──balancer──▶ pod: slot free? ──▶ decode on one of the cores ──▶ batcher ──▶ device ──▶ answer
     (Poisson)                   └─ no: 429                                  └─ deadline passed: 504

The batching policy is the service's own (`service.engine.batcher`): it knows no clock, so it runs on this one. The rest
is two measured numbers of the device, a forward pass of n images taking ``fixed + n · image`` seconds, and one of the
decoder. Where they come from: `imagenet-serve plan` measures the machine; on a running service the stages `decode` and
`inference` of `imagenet_stage_duration_seconds` beside `imagenet_batch_size`. What is left out: the network, the
supervisor's restarts, and a host that does something else at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from service.engine.batcher import Batcher, Request

#: Share of the simulated time that is left out of the results, while queues fill.
WARM_UP = 0.1


@dataclass(frozen=True)
class Pod:
    """A pod: its measured times in seconds, and its settings."""

    fixed: float
    image: float
    decode: float
    cores: int
    max_batch_size: int = 32
    queue_capacity: int = 128
    timeout: float = 30.0
    max_queue_delay: float = 0.0

    def pass_of(self, images: int) -> float:
        return self.fixed + images * self.image

    @property
    def capacity(self) -> float:
        """Images a second that device and cores can do without rest."""
        device = self.max_batch_size / self.pass_of(self.max_batch_size)
        return min(device, self.cores / self.decode if self.decode else math.inf)


@dataclass
class Outcome:
    """The outcome of one run's requests."""

    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    refused: int = 0
    expired: int = 0
    busy: float = 0.0
    """Seconds in which a device computed, over all pods."""
    device_seconds: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.latencies) + self.refused + self.expired

    def quantile(self, q: float) -> float:
        """Returns a quantile of the latencies in seconds; NaN without an answer."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan

    @property
    def lost(self) -> float:
        """Share of the requests without an answer: 429 and 504."""
        return (self.refused + self.expired) / self.requests if self.requests else 0.0

    def row(self) -> str:
        batch = sum(self.batches) / len(self.batches) if self.batches else 0.0
        busy = self.busy / self.device_seconds if self.device_seconds else 0.0
        times = "  ".join(
            f"p{label} {1000 * self.quantile(q):7.1f} ms" for label, q in (("50", 0.5), ("99", 0.99))
        )
        return f"{times}  lost {100 * self.lost:5.2f} %  batch {batch:5.1f}  device busy {100 * busy:3.0f} %"


class SimulatedPod:
    """One pod in a SimPy environment: slots, decoding cores, and an engine that uses the service's batcher."""

    def __init__(self, environment: simpy.Environment, pod: Pod, outcome: Outcome, warm: float) -> None:
        self.in_flight = 0
        self._environment, self._pod, self._outcome, self._warm = environment, pod, outcome, warm
        self._cores = simpy.Resource(environment, pod.cores)
        self._batcher = Batcher(pod.max_batch_size, pod.max_queue_delay)
        self._ended: dict[int, simpy.Event] = {}
        self._slots = itertools.count()
        self._news = environment.event()
        environment.process(self._engine())

    def request(self) -> Generator[Any, Any, None]:
        """Simulates a request from arrival to answer."""
        now = self._environment.now
        counts = now >= self._warm
        if self.in_flight >= self._pod.queue_capacity:
            self._outcome.refused += counts
            return
        self.in_flight += 1
        with self._cores.request() as core:
            yield core
            yield self._environment.timeout(self._pod.decode)
        slot = next(self._slots)
        ended = self._ended[slot] = self._environment.event()
        self._batcher.add(Request(slot, now + self._pod.timeout, self._environment.now))
        self._tell()
        answered = yield ended
        self.in_flight -= 1
        if counts and answered:
            self._outcome.latencies.append(self._environment.now - now)
        elif counts:
            self._outcome.expired += 1

    def _tell(self) -> None:
        if not self._news.triggered:
            self._news.succeed()

    def _engine(self) -> Generator[Any, Any, None]:
        while True:
            now = self._environment.now
            for late in self._batcher.expire(now):
                self._ended.pop(late.slot).succeed(False)
            batch = self._batcher.next_batch(now)
            if batch:
                yield from self._run(batch)
                continue
            self._news = self._environment.event()
            look_again = self._batcher.next_deadline()
            if look_again is None:
                yield self._news
            else:
                # A hair later, so that rounding cannot make a loop without progress.
                yield self._news | self._environment.timeout(max(look_again - now, 0.0) + 1e-9)

    def _run(self, batch: list[Request]) -> Generator[Any, Any, None]:
        seconds = self._pod.pass_of(len(batch))
        if self._environment.now >= self._warm:
            self._outcome.batches.append(len(batch))
            self._outcome.busy += seconds
        yield self._environment.timeout(seconds)
        for request in batch:
            self._ended.pop(request.slot).succeed(True)


Balancer = Callable[[list[SimulatedPod], random.Random], SimulatedPod]


def least_request(pods: list[SimulatedPod], chance: random.Random) -> SimulatedPod:
    """Returns the pod with the fewest requests in flight; among equals, a random one."""
    fewest = min(pod.in_flight for pod in pods)
    return chance.choice([pod for pod in pods if pod.in_flight == fewest])


def two_choices(pods: list[SimulatedPod], chance: random.Random) -> SimulatedPod:
    """Returns the less loaded of two random pods, which most proxies call least request."""
    return min((chance.choice(pods) for _ in range(2)), key=lambda pod: pod.in_flight)


def any_pod(pods: list[SimulatedPod], chance: random.Random) -> SimulatedPod:
    """Returns a random pod: kube-proxy, when every request has its own connection."""
    return chance.choice(pods)


BALANCERS: dict[str, Balancer] = {
    "least-request": least_request,
    "two-choices": two_choices,
    "random": any_pod,
}


def simulate(
    pod: Pod, rate: float, seconds: float, *, pods: int = 1, balance: str = "random", seed: int = 0
) -> Outcome:
    """Simulates ``rate`` requests a second, Poisson, for ``seconds``; admitted requests are then finished."""
    environment = simpy.Environment()
    outcome = Outcome()
    warm = WARM_UP * seconds
    chance = random.Random(seed)
    every = [SimulatedPod(environment, pod, outcome, warm) for _ in range(pods)]
    pick = BALANCERS[balance]

    def arrivals() -> Generator[Any, Any, None]:
        while True:
            yield environment.timeout(chance.expovariate(rate))
            if environment.now >= seconds:
                return
            environment.process(pick(every, chance).request())

    environment.process(arrivals())
    environment.run()
    outcome.device_seconds = (seconds - warm) * pods
    return outcome


def capacity_at(pod: Pod, p99: float, seconds: float, seed: int = 0) -> float:
    """Returns the largest rate, to 1 % of the pod's capacity, with a p99 of at most ``p99`` and nothing lost."""
    low, high = 0.0, pod.capacity
    while high - low > 0.01 * pod.capacity:
        rate = (low + high) / 2
        outcome = simulate(pod, rate, seconds, seed=seed)
        if outcome.lost == 0 and outcome.quantile(0.99) <= p99:
            low = rate
        else:
            high = rate
    return low


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fixed-ms", type=float, required=True, help="a forward pass's time that no image causes"
    )
    parser.add_argument("--image-ms", type=float, required=True, help="what each image adds to it")
    parser.add_argument("--decode-ms", type=float, required=True, help="decoding one photo on one core")
    parser.add_argument("--cores", type=int, required=True, help="cores that decode")
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--queue-capacity", type=int, default=128)
    parser.add_argument(
        "--rate", type=float, help="requests a second, over all pods; without it, several are shown"
    )
    parser.add_argument("--pods", type=int, default=1)
    parser.add_argument("--balance", choices=BALANCERS, default="two-choices")
    parser.add_argument("--p99-ms", type=float, help="find a pod's capacity at this latency")
    parser.add_argument(
        "--per-hour", type=float, help="with --p99-ms: how many pods these many images an hour need"
    )
    parser.add_argument(
        "--target", type=float, default=0.7, help="share of the capacity that is planned for (0.7)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated time (60)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    measured = (given.fixed_ms / 1000, given.image_ms / 1000, given.decode_ms / 1000, given.cores)
    pod = Pod(*measured, max_batch_size=given.max_batch_size, queue_capacity=given.queue_capacity)
    print(f"one pod, never resting: {pod.capacity:.1f} images/s")
    if given.p99_ms:
        capacity = capacity_at(pod, given.p99_ms / 1000, given.seconds, given.seed)
        print(f"one pod at p99 <= {given.p99_ms:g} ms: {capacity:.1f} images/s")
        if given.per_hour and capacity:
            pods = math.ceil(given.per_hour / 3600 / (capacity * given.target)) + 1
            print(
                f"{given.per_hour:g} images/h at {100 * given.target:.0f} % of that: {pods} pods, one of them to spare"
            )
        return
    rates = (
        [given.rate]
        if given.rate
        else [share * pod.capacity * given.pods for share in (0.3, 0.5, 0.7, 0.9, 1.1)]
    )
    for rate in rates:
        outcome = simulate(pod, rate, given.seconds, pods=given.pods, balance=given.balance, seed=given.seed)
        print(f"{rate:8.1f}/s  {outcome.row()}")


if __name__ == "__main__":
    main()
