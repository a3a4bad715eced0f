"""Whoever breaks one of CUDA's rules is told so: by pieces of work that break one each, and by our own code, broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.arena import Arena, Geometry
from service.engine.batcher import Batcher, Request
from service.engine.core import EngineCore
from service.engine.device import Batch, DeviceThread
from service.engine.owner import Owner
from service.models.cuda.buffers import BatchBuffers
from service.models.cuda.pipeline import CudaRunner
from service.models.cuda.program import Choice, Program
from service.shared.outputs import OutputKind
from tests.models.cuda.fake_device import FakeDevice, FakeEvent, FakeStream
from tests.models.cuda.rules import RuleBroken
from tests.models.cuda.test_pipeline import CLASSES, IMAGE, Network, photos, ready


def on(device: FakeDevice) -> Tensor:
    return device.empty((4,), torch.float32)


def unordered(device: FakeDevice) -> None:
    a, b, c = on(device), on(device), on(device)
    one, two = device.stream(), device.stream()
    one.copy(a, b)
    two.copy(c, a)
    one.record().wait()
    two.record().wait()


def unordered_work(device: FakeDevice) -> None:
    a, b = on(device), on(device)
    one, two = device.stream(), device.stream()
    one.run(lambda: a.add_(1))  # type: ignore[arg-type]
    two.copy(b, a)
    two.record().wait()
    one.record().wait()


def pinned_too_early(device: FakeDevice) -> None:
    pinned, a = device.staging((4,), torch.float32), on(device)
    stream = device.stream()
    pinned.fill_(1)
    stream.copy(a, pinned)
    pinned.fill_(2)
    stream.record().wait()


def captured(work: Callable[[FakeDevice, FakeStream, Tensor], object]) -> Callable[[FakeDevice], None]:
    def breaks(device: FakeDevice) -> None:
        a, stream = on(device), device.stream()
        device.capture(lambda: work(device, stream, a), stream)  # type: ignore[arg-type]

    return breaks


def leaks_from_a_graph(device: FakeDevice) -> None:
    a, b, stream = on(device), on(device), device.stream()
    kept: list[Tensor] = []
    graph = device.capture(lambda: kept.append(a * 2), stream)
    stream.run(graph)
    stream.record().wait()
    stream.copy(b, kept[-1])


def another_thread(device: FakeDevice) -> None:
    on(device)
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            on(device)
        except RuleBroken as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


BROKEN = {
    "order of copies": (unordered, "no event orders"),
    "order of work": (unordered_work, "no event orders"),
    "pinned": (pinned_too_early, "before the copy from it was done"),
    "item": (captured(lambda device, stream, a: a[0].item()), "waits for the device"),
    "allocation": (captured(lambda device, stream, a: on(device)), "allocating while"),
    "event": (captured(lambda device, stream, a: stream.record()), "an event while"),
    "query": (captured(lambda device, stream, a: FakeEvent(device, {}).done()), "asking an event while"),
    "pageable": (captured(lambda device, stream, a: stream.copy(a, torch.zeros(4))), "pageable"),
    "pool": (leaks_from_a_graph, "the next graph writes over it"),
    "thread": (another_thread, "in another thread"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_a_rule_is_told(rule: str) -> None:
    breaks, words = BROKEN[rule]
    with pytest.raises(RuleBroken, match=words):
        breaks(FakeDevice())


def test_an_event_between_is_enough() -> None:
    device = FakeDevice()
    a, b, c = on(device), on(device), on(device)
    one, two = device.stream(), device.stream()
    one.copy(a, b)
    two.wait(one.record())
    two.copy(c, a)
    two.record().wait()
    one.copy(a, b)  # the host has waited for the second stream
    one.record().wait()


def serve(runner: CudaRunner) -> None:
    """Batches that overlap, from an arena."""
    arena, results = photos(16), np.zeros((16, runner.results), np.float32)
    runner.adopt(arena)
    halves = [list(range(8)), list(range(8, 16))]
    flights = [runner.start(arena, half, [OutputKind.FEATURES_MAP] * 8, results) for half in halves]
    for flight in flights:
        flight.finish()
    runner.run(arena, halves[0], [OutputKind.CLASSIFY] * 8, results)


def forget_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStream, "wait", lambda self, event: None)


def share_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[BatchBuffers] = []
    make = BatchBuffers.__init__

    def shared(self: BatchBuffers, *arguments: Any) -> None:
        make(self, *arguments)
        first.append(self)
        self.__dict__.update(first[0].__dict__)

    monkeypatch.setattr(BatchBuffers, "__init__", shared)


@pytest.mark.parametrize("adopts", [True, False])
@pytest.mark.parametrize("fault", [forget_events, share_buffers])
def test_a_pipeline_without_its_events_or_buffers_breaks_a_rule(
    fault: Callable[[pytest.MonkeyPatch], None], adopts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(ready(FakeDevice(adopts=adopts)))
    fault(monkeypatch)
    with pytest.raises(RuleBroken):
        serve(ready(FakeDevice(adopts=adopts)))


def test_a_network_that_looks_at_its_numbers_cannot_be_captured() -> None:
    network = Network()

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pixels)
        assert logits[0, 0].item() != 12345
        return features, logits

    with pytest.raises(RuleBroken, match="waits for the device"):
        ready(network=forward)


def engine(owner: Owner) -> None:
    """A model that is loaded, warmed up and asked as an engine does it, in ``owner``."""

    def load() -> tuple[CudaRunner, Arena]:
        program = Program("eager", "fp32", Network(), graphs=False)
        runner = CudaRunner([Choice("all", lambda: program)], FakeDevice(adopts=True), IMAGE, 4)
        runner.warm_up()
        arena = Arena.create(Geometry(8, *IMAGE, runner.results))
        runner.adopt(arena.pixels)
        return runner, arena

    runner, arena = owner.call(load)
    thread = DeviceThread(runner, arena, owner=owner)
    core = EngineCore(runner, arena, Batcher(4), capacity=1.0, device=thread)
    core.begin()
    try:
        arena.pixels[:4] = photos(4)
        requests = [Request(slot, np.inf, 0.0) for slot in range(4)]
        thread.submit(Batch(1, requests, [OutputKind.CLASSIFY] * 4))
        batch = thread.collect()
        assert batch is not None
        assert batch.error is None
        assert (arena.results[:4, :CLASSES] == Network()(torch.from_numpy(photos(4)))[1].numpy()).all()
    finally:
        core.end()


def test_an_engine_does_everything_in_one_thread() -> None:
    engine(Owner("device"))
