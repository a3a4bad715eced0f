"""What the executors of a processor answer to the canary: a bit that changes for good is found, rounding is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.models import canary
from service.models.canary import UntrustedError
from service.models.guard import Guard
from service.models.runtimes import Answer, Pixels
from service.models.watch import CANARY_EVERY
from service.shared.batches import BatchReport, DeviceFailed

IMAGE = (8, 8, 3)
RIGHT = np.linspace(-3, 4, 10, dtype=np.float32)


@dataclass
class FakeExecutor:
    """Answers ``right``, whatever it sees, plus ``off``; in each pass rounded by chance as far as ``noise`` lets it."""

    name: str = "together"
    parallelism: int | None = None
    head: bool = True
    noise: float = 0.0
    right: NDArray[np.float32] = field(default_factory=lambda: RIGHT)
    off: NDArray[np.float32] = field(default_factory=lambda: np.zeros(10, np.float32))
    passes: list[int] = field(default_factory=list)
    glitches: list[bool] = field(default_factory=list)
    """Of the passes to come, whether their numbers are wrong."""
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        assert (pixels[slots[0]] == canary.image(IMAGE)).all()
        self.passes.append(len(slots))
        glitch = 100 * (self.glitches.pop(0) if self.glitches else False)
        off = self.off + glitch
        rows = np.tile(self.right, (len(slots), 1))
        if off.any() or self.noise:
            rows = (rows + off + self.chance.normal(0, 1, rows.shape) * self.noise).astype(np.float32)
        nothing = np.empty(0, np.float32)
        features = [np.repeat(row, 4).reshape(10, 2, 2).astype(np.float32) for row in rows]
        return [
            Answer(of_one, row if self.head else nothing) for of_one, row in zip(features, rows, strict=True)
        ]


def guarded(
    *executors: FakeExecutor, expected: NDArray[np.float32] | None = None, precision: str = "fp32"
) -> Guard:
    guard = Guard(IMAGE, precision, expected)
    guard.learn(executors, [[1, 2, 4]] * len(executors))
    return guard


@given(index=st.integers(0, 9), bit=st.integers(0, 31), head=st.booleans(), looks=st.integers(1, 3))
def test_one_bit_of_an_answer_is_found(index: int, bit: int, head: bool, looks: int) -> None:
    executor = FakeExecutor(head=head)
    guard = guarded(executor)
    for _ in range(looks):
        assert guard.check([executor]).mismatches == 0
    changed = RIGHT.copy()
    changed.view(np.uint32)[index] ^= np.uint32(1 << bit)
    executor.right = changed
    with pytest.raises(DeviceFailed, match="twice"):
        guard.check([executor])


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-7), ("bf16", 1e-3), ("int8", 1e-3)])
def test_a_way_that_rounds_by_chance_is_held_to_the_tolerance_alone(precision: str, noise: float) -> None:
    executor = FakeExecutor(noise=noise)
    guard = guarded(executor, precision=precision)
    for _ in range(200):
        assert guard.check([executor]).mismatches == 0
    executor.off = RIGHT / np.float32(10)
    with pytest.raises(DeviceFailed):
        guard.check([executor])


def test_a_first_pass_that_was_rounded_otherwise_is_no_reason_for_an_alarm() -> None:
    executor = FakeExecutor()
    guard = guarded(executor)
    executor.off[3] = 1e-6
    assert guard.check([executor]).mismatches == 0
    executor.off[3] = 2e-6  # but a second time it is
    assert guard.check([executor]).mismatches == 0
    guard.check([executor])
    executor.off[3] = 3e-6
    with pytest.raises(DeviceFailed):
        guard.check([executor])


def test_one_wrong_pass_is_told_and_harms_nobody() -> None:
    executor = FakeExecutor()
    guard = guarded(executor)
    executor.glitches = [True]
    ran = guard.check([executor])
    assert (ran.mismatches, ran.distrust) == (1, "")
    assert guard.check([executor]).mismatches == 0


def test_the_canary_goes_where_most_ran_and_in_the_size_that_ran_there() -> None:
    one, apart = FakeExecutor("one"), FakeExecutor("apart", parallelism=2)
    guard = guarded(one, apart)
    one.passes.clear()
    apart.passes.clear()
    for number in range(CANARY_EVERY):
        assert not guard.due
        guard.ran("apart", 4 if number % 3 else 2)
    guard.ran("one", 1)
    assert guard.due
    assert guard.check([one, apart]).rows == 4
    assert not guard.due
    assert (one.passes, apart.passes) == ([], [4])
    guard.check([one, apart])
    guard.check([one, apart])
    assert (one.passes, apart.passes) == (
        [1],
        [4, 1],
    )  # with time to spare: all in turn, as cheaply as can be


class Stoppable(FakeExecutor):
    """Waits in each pass until it is stopped."""

    stopped = False
    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def stop(self) -> None:
        self.stopped = True

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        self.meanwhile()
        if self.stopped:
            raise RuntimeError("canceled")
        return super().__call__(pixels, slots)


def test_a_look_that_was_stopped_tells_nothing_and_comes_again() -> None:
    executor = Stoppable()
    guard = guarded(executor)
    guard.stop()
    assert not executor.stopped  # nothing ran
    executor.meanwhile = guard.stop
    assert guard.check([executor]) == BatchReport(0)
    executor.meanwhile, executor.stopped = lambda: None, False
    assert guard.check([executor]).canaries == 1
    executor.stopped = True
    with pytest.raises(RuntimeError, match="canceled"):  # a defect of its own
        guard.check([executor])


def test_what_follows_a_wrong_answer_is_not_stopped() -> None:
    executor = Stoppable(glitches=[])
    guard = guarded(executor)
    executor.glitches = [True]
    runs = iter([lambda: None, guard.stop])
    executor.meanwhile = lambda: next(runs)()
    assert guard.check([executor]).mismatches == 1


def test_sizes_that_were_not_learnt_are_not_looked_for() -> None:
    executor = FakeExecutor()
    guard = guarded(executor)
    for _ in range(CANARY_EVERY):
        guard.ran("together", 3)
    assert guard.check([executor]).rows == 1


def test_each_stream_is_looked_at_on_its_own() -> None:
    executor = FakeExecutor("apart", parallelism=2)
    guard = guarded(executor)
    stream_off = np.zeros(10, np.float32)

    def stream(pixels: Pixels, slot: int) -> Answer:
        return Answer(np.empty(0, np.float32), RIGHT + stream_off)

    assert guard.check_in_stream("apart", stream).mismatches == 0
    stream_off[0] = 1
    with pytest.raises(DeviceFailed):
        guard.check_in_stream("apart", stream)


def test_weights_that_are_no_numbers_are_no_reason_for_an_alarm() -> None:
    executor = FakeExecutor(right=np.where(RIGHT > 0, np.float32("nan"), RIGHT))
    guard = guarded(executor, expected=executor.right)
    assert [guard.check([executor]).mismatches for _ in range(3)] == [0, 0, 0]


def test_what_does_not_compute_the_network_does_not_serve() -> None:
    guarded(FakeExecutor(), expected=RIGHT)
    guarded(FakeExecutor(), expected=RIGHT * np.float32(1.00005))
    guarded(FakeExecutor(off=RIGHT / np.float32(10)), expected=RIGHT, precision="bf16")
    with pytest.raises(UntrustedError, match="off the network's answer"):
        guarded(FakeExecutor(), expected=RIGHT * np.float32(1.01))
    broken = FakeExecutor(off=np.full(10, np.nan, np.float32))
    with pytest.raises(UntrustedError):
        guarded(broken, expected=RIGHT)
