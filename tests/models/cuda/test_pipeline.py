"""Buckets, padding, what overlaps, memory that runs out and the canary, on a device that does everything late."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.errors import ConfigurationError
from service.models import canary
from service.models.canary import UntrustedError
from service.models.cuda.pipeline import CudaRunner
from service.models.cuda.program import Choice, Program
from service.models.watch import CANARY_EVERY
from service.shared.batches import DeviceFailed
from service.shared.buckets import SIZES
from service.shared.fallback import Fallbacks
from service.shared.outputs import OutputKind
from tests.models.cuda.fake_device import FakeDevice, LostError

IMAGE = (4, 5, 3)
CLASSES = 6


class Network:
    """Exact in float32, another answer for any other pixels, and a record of how many rows it was given."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.wrong = 0
        """Forward passes to come whose numbers are wrong."""
        values = torch.arange(1, 1 + CLASSES * 60).reshape(CLASSES, 60) * 7919 % 31
        self.weights = values.float()

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.rows.append(len(pixels))
        flat = pixels.flatten(1).float()
        logits = flat @ self.weights.T
        if self.wrong:
            self.wrong -= 1
            logits = logits + 1e6
        return flat.reshape(-1, 60, 1, 1).contiguous(), logits


def make(
    device: FakeDevice, network: Network | None = None, largest: int | None = 16, **more: Any
) -> CudaRunner:
    network = network or Network()
    program = Program("cudagraph", "fp32", network, graphs=True, **more)

    def images_of(work: Any) -> int:
        return int(work.args[2]) if isinstance(work, partial) else 0

    device.images_of = images_of
    return CudaRunner([Choice("all", lambda: program)], device, IMAGE, largest)


def ready(device: FakeDevice | None = None, **more: Any) -> CudaRunner:
    runner = make(device or FakeDevice(), **more)
    runner.warm_up()
    return runner


def photos(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, *IMAGE), np.uint8)


def right(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return Network()(torch.from_numpy(pixels))[1].numpy()


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.integers(1, 16), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    adopts=st.booleans(),
    scattered=st.booleans(),
)
def test_everyone_gets_their_own_answer_in_whichever_order_the_device_works(
    batches: list[int], seed: int, adopts: bool, scattered: bool
) -> None:
    runner = ready(FakeDevice(seed, adopts=adopts))
    arena = np.zeros((64, *IMAGE), np.uint8)
    runner.adopt(arena)
    results = np.full((64, runner.results), np.nan, np.float32)
    flight: deque[tuple[Any, list[int], np.ndarray[Any, Any]]] = deque()
    free = list(range(64))
    if scattered:
        np.random.default_rng(seed).shuffle(free)

    def land() -> None:
        running, slots, images = flight.popleft()
        ran = running.finish()
        assert ran.rows >= len(slots)
        assert ran.mismatches == 0
        assert (results[slots, :CLASSES] == right(images)).all()
        arena[slots] = 99  # the next owner's, at once
        results[slots] = np.nan
        free.extend(slots)

    for number, count in enumerate(batches):
        if len(flight) == runner.in_flight:
            land()
        slots = [free.pop(0) for _ in range(count)]
        arena[slots] = photos(count, 1000 * seed + number)
        flight.append(
            (runner.start(arena, slots, [OutputKind.CLASSIFY] * count, results), slots, arena[slots].copy())
        )
    while flight:
        land()


def test_a_batch_runs_in_the_smallest_bucket_and_every_bucket_is_captured_once() -> None:
    network, device = Network(), FakeDevice()
    runner = ready(device, network=network, largest=100)
    assert device.captured == len([size for size in SIZES if size < 100]) + 1
    results = np.zeros((100, runner.results), np.float32)
    for count, bucket in [(1, 1), (2, 2), (3, 4), (9, 16), (33, 48), (65, 96), (97, 100), (100, 100)]:
        network.rows.clear()
        pixels = photos(count)
        ran = runner.start(pixels, list(range(count)), [OutputKind.CLASSIFY] * count, results).finish()
        assert (ran.rows, network.rows) == (bucket, [bucket])
        assert (results[:count, :CLASSES] == right(pixels)).all()


def test_padding_never_changes_a_real_row() -> None:
    runner = ready()
    pixels, results = photos(16), np.zeros((16, CLASSES * 10), np.float32)
    alone = np.zeros_like(results)
    for slot in range(16):
        runner.run(pixels, [slot], [OutputKind.CLASSIFY], alone)
    for count in range(1, 17):
        runner.run(pixels, list(range(count)), [OutputKind.CLASSIFY] * count, results)
        assert (results[:count, :CLASSES] == alone[:count, :CLASSES]).all()


def test_features_come_in_every_form() -> None:
    runner = ready()
    pixels, results = photos(4), np.zeros((4, 60), np.float32)
    tasks = [OutputKind.FEATURES_AVG, OutputKind.CLASSIFY, OutputKind.FEATURES_MAP, OutputKind.FEATURES_MAX]
    runner.run(pixels, [0, 1, 2, 3], tasks, results)
    flat = pixels.reshape(4, 60)
    for slot in (0, 2, 3):
        assert (results[slot] == flat[slot]).all()
    assert (results[1, :CLASSES] == right(pixels[1:2])[0]).all()


@pytest.mark.parametrize(("room", "largest"), [(16, 16), (15, 8), (9, 8), (3, 2), (1, 1)])
def test_the_largest_bucket_that_fits_is_found(room: int, largest: int) -> None:
    runner = ready(FakeDevice(room=room))
    assert (runner.max_batch_size, runner.limit) == (largest, largest)


def test_a_model_that_does_not_fit_at_all_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="memory does not hold"):
        ready(FakeDevice(room=0))


def test_memory_that_runs_out_while_serving_makes_the_parts_smaller_and_loses_nobody() -> None:
    network, device = Network(), FakeDevice()
    runner = make(device, network)
    runner.runtime = Program("eager", "fp32", network, graphs=False)
    runner.warm_up()
    pixels, results = photos(16), np.zeros((16, runner.results), np.float32)
    device.room = 5
    first = runner.start(pixels, list(range(8)), [OutputKind.CLASSIFY] * 8, results)
    second = runner.start(pixels, list(range(8, 16)), [OutputKind.CLASSIFY] * 8, results)
    assert first.finish().rows == second.finish().rows == 8
    assert (results[:, :CLASSES] == right(pixels)).all()
    assert runner.limit == 4
    assert device.released
    device.room = 0
    with pytest.raises(RuntimeError):
        runner.run(pixels, [0], [OutputKind.CLASSIFY], results)
    device.room = 10_000
    runner.run(pixels, list(range(3)), [OutputKind.CLASSIFY] * 3, results)  # the buffers are free again


def test_a_wrong_canary_makes_the_batch_run_again_and_is_told() -> None:
    network = Network()
    runner = ready(network=network)
    pixels, results = photos(3), np.zeros((3, runner.results), np.float32)
    running = runner.start(pixels, [0, 1, 2], [OutputKind.CLASSIFY] * 3, results)
    network.wrong = 1
    ran = running.finish()
    assert (ran.mismatches, ran.distrust) == (1, "")
    assert (results[:, :CLASSES] == right(pixels)).all()
    running = runner.canary()
    network.wrong = 1
    assert "now and then" in running.finish().distrust


def test_a_canary_that_stays_wrong_ends_the_device_and_answers_nobody() -> None:
    network = Network()
    runner = ready(network=network)
    pixels, results = photos(3), np.full((3, runner.results), -1, np.float32)
    network.wrong = 2
    with pytest.raises(DeviceFailed, match="canary"):
        runner.run(pixels, [0, 1, 2], [OutputKind.CLASSIFY] * 3, results)
    assert (results == -1).all()


def test_the_known_images_take_turns_and_a_fault_that_one_of_them_shows_is_found() -> None:
    known = torch.from_numpy(canary.images(IMAGE)).flatten(1).float()
    for number in range(canary.IMAGES):
        network = Network()
        runner = ready(network=network)
        # Seen by one image alone: where it is largest, compared with the mean of the others.
        away = known[number] - (known.sum(0) - known[number]) / (canary.IMAGES - 1)
        blind = known[[n for n in range(canary.IMAGES) if n != number]]
        pattern = away - torch.linalg.lstsq(blind.T, away[:, None]).solution.T[0] @ blind
        network.weights = network.weights + pattern / pattern.norm() * 1e3
        with pytest.raises(DeviceFailed, match="canary"):
            deque(runner.canary().finish() for _ in range(canary.IMAGES))


def test_full_batches_have_a_canary_too_once_in_a_while() -> None:
    network = Network()
    runner = ready(network=network)
    pixels, results = photos(16), np.zeros((16, runner.results), np.float32)
    batch = (pixels, list(range(16)), [OutputKind.CLASSIFY] * 16, results)
    runner.canary().finish()  # the warm-up has had passes as well
    due = [runner.start(*batch).finish().canary_due for _ in range(CANARY_EVERY)]
    assert due == [False] * (CANARY_EVERY - 1) + [True]
    ran = runner.canary().finish()
    assert (ran.rows, ran.canaries, ran.mismatches, ran.canary_due) == (1, 1, 0, False)
    padded = runner.start(pixels, [0, 1, 2], [OutputKind.CLASSIFY] * 3, results).finish()
    assert (padded.rows, padded.canaries) == (4, 1)
    assert not any(runner.start(*batch).finish().canary_due for _ in range(CANARY_EVERY - 1))
    network.wrong = 2
    with pytest.raises(DeviceFailed, match="canary") as caught:
        runner.canary().finish()
    assert caught.value.mismatches == 2


@pytest.mark.parametrize("fault", ["expected", "rows"])
def test_what_does_not_compute_the_network_is_not_trusted(fault: str) -> None:
    network = Network()
    expected = network(torch.from_numpy(canary.images(IMAGE)))[1].numpy()
    ready(network=network, expected=expected)
    if fault == "expected":
        with pytest.raises(UntrustedError, match="off the network's answer"):
            ready(network=network, expected=expected * np.float32(1.01))
    else:

        def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
            features, logits = network(pixels)
            return features, logits + torch.arange(len(pixels))[:, None] * 1000

        with pytest.raises(UntrustedError, match="influence each other"):
            ready(network=forward)


def test_a_lost_device_is_said_by_whatever_touches_it_first() -> None:
    device = FakeDevice()
    runner = ready(device)
    pixels, results = photos(2), np.zeros((2, runner.results), np.float32)
    running = runner.start(pixels, [0, 1], [OutputKind.CLASSIFY] * 2, results)
    device.lost = "cuda:0: an illegal memory access was encountered"
    assert running.done()
    for touch in (
        running.finish,
        runner.check,
        lambda: runner.start(pixels, [0], [OutputKind.CLASSIFY], results),
    ):
        with pytest.raises(DeviceFailed, match="illegal memory access") as caught:
            touch()
        assert isinstance(caught.value.__cause__, LostError)


def test_the_model_s_own_error_is_the_batch_s_and_not_the_device_s() -> None:
    network = Network()
    runner = ready(network=network)
    pixels, results = photos(1), np.zeros((1, runner.results), np.float32)
    steps = runner._ready().steps
    working = steps[1]

    def fails() -> None:
        raise ValueError("no such thing")

    for _ in range(3):
        steps[1] = fails
        with pytest.raises(ValueError, match="no such thing"):
            runner.run(pixels, [0], [OutputKind.CLASSIFY], results)
        steps[1] = working
        runner.run(pixels, [0], [OutputKind.CLASSIFY], results)


def test_only_the_arena_is_adopted() -> None:
    device = FakeDevice(adopts=True)
    runner = ready(device)
    arena, other = photos(8), photos(8, seed=1)
    runner.adopt(arena)
    results = np.zeros((8, runner.results), np.float32)
    for pixels in (arena, other, arena):
        runner.run(pixels, [3, 4, 0], [OutputKind.CLASSIFY] * 3, results)
        assert (results[[3, 4, 0], :CLASSES] == right(pixels[[3, 4, 0]])).all()
    assert [pixels is arena for pixels in device.adopted] == [True]


def test_a_runtime_that_cannot_be_used_gives_way_to_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def cannot() -> Program:
        raise RuntimeError("no kernel image is available")

    network = Network()
    expected = network(torch.from_numpy(canary.images(IMAGE)))[1].numpy()
    wrong = Program("cudagraph", "fp32", network, True, expected * np.float32(1.01))
    plain = Program("eager", "fp32", network, False, expected)
    fallbacks = Fallbacks()
    choices = [Choice("fused", cannot), Choice("graphs", lambda: wrong), Choice("fp16", lambda: plain)]
    runner = CudaRunner(choices, FakeDevice(), IMAGE, 4, fallbacks=fallbacks)
    assert runner.runtime is wrong
    runner.warm_up()
    assert runner.runtime is plain
    assert [told.what for told in fallbacks] == ["fused", "graphs"]
    for words in ("no kernel image", "off the network's answer"):
        assert caplog.text.count(words) == 1
        assert sum(words in told.why for told in fallbacks) == 1
    with pytest.raises(RuntimeError, match="no kernel image"):
        CudaRunner([Choice("all", cannot)], FakeDevice(), IMAGE, 4)


def test_memory_that_cannot_be_registered_is_staged_and_told() -> None:
    fallbacks = Fallbacks()
    program = Program("eager", "fp32", Network(), False)
    runner = CudaRunner([Choice("all", lambda: program)], FakeDevice(), IMAGE, 4, fallbacks=fallbacks)
    runner.warm_up()
    pixels, results = photos(4), np.zeros((4, runner.results), np.float32)
    runner.adopt(pixels)
    runner.run(pixels, [2, 0, 3], [OutputKind.CLASSIFY] * 3, results)
    assert (results[[2, 0, 3], :CLASSES] == right(pixels[[2, 0, 3]])).all()
    assert [tuple(told) for told in fallbacks] == [("registered memory", "this device registers nothing")]


def test_a_package_s_largest_batch_is_a_limit() -> None:
    program = Program("package", "fp32", Network(), True, max_batch_size=6)
    runner = CudaRunner([Choice("all", lambda: program)], FakeDevice(), IMAGE, 16)
    runner.warm_up()
    assert runner.limit == 6
