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
from service.models.guard import LOOK_EVERY, Guard
from service.models.runtimes import Answer, Pixels
from service.shared.batches import BatchReport, DeviceFailed

IMAGE = (8, 8, 3)
#: The right answers to each canary.
RIGHT = np.linspace(-3, 4, 10, dtype=np.float32) + np.arange(canary.IMAGES, dtype=np.float32)[:, None]
SIZES = (1, 2, 4)


@dataclass
class FakeExecutor:
    """Answers ``right`` to each canary, plus ``off``; in each pass rounded by chance as far as ``noise`` lets it."""

    name: str = "together"
    parallelism: int | None = None
    head: bool = True
    noise: float = 0.0
    right: NDArray[np.float32] = field(default_factory=lambda: RIGHT)
    off: NDArray[np.float32] = field(default_factory=lambda: np.zeros_like(RIGHT))
    sizes: tuple[int, ...] = SIZES
    """The batch sizes in which ``off`` matters."""
    passes: list[int] = field(default_factory=list)
    shown: list[list[int]] = field(default_factory=list)
    glitches: list[bool] = field(default_factory=list)
    """Of the passes to come, whether their numbers are wrong."""
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        assert (pixels == canary.images(IMAGE)).all()
        self.passes.append(len(slots))
        self.shown.append(list(slots))
        glitch = 100 * (self.glitches.pop(0) if self.glitches else False)
        off = (self.off * (len(slots) in self.sizes) + glitch)[list(slots)]
        rows = self.right[list(slots)]
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
    guard.learn(executors, [SIZES] * len(executors))
    for executor in executors:
        executor.passes.clear()
        executor.shown.clear()
    return guard


@given(index=st.integers(0, 9), bit=st.integers(0, 31), head=st.booleans(), looks=st.integers(4, 7))
def test_one_bit_of_an_answer_is_found(index: int, bit: int, head: bool, looks: int) -> None:
    executor = FakeExecutor(head=head)
    guard = guarded(executor)
    for _ in range(looks):
        assert guard.check([executor]).mismatches == 0
    changed = RIGHT.copy()
    changed.view(np.uint32)[:, index] ^= np.uint32(1 << bit)
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
    for off in (1e-6, 2e-6):  # the second time these are the numbers
        executor.off[:, 3] = off
        for _ in range(canary.IMAGES):
            assert guard.check([executor]).mismatches == 0
    for _ in range(canary.IMAGES):
        guard.check([executor])
    executor.off[:, 3] = 3e-6
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
    for number in range(LOOK_EVERY):
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


def passes(most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Runs of passes: the size, and how many of them. 0 passes: the device is idle."""
    return st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, most)), max_size=40)


@given(
    runs=passes(40),
    elsewhere=passes(40),
    seen_by=st.sets(st.integers(0, canary.IMAGES - 1)),
    when=st.integers(0, 99),
)
def test_a_fault_is_found_in_time_by_the_passes_of_its_own_executor(
    runs: list[tuple[int, int]], elsewhere: list[tuple[int, int]], seen_by: set[int], when: int
) -> None:
    """Two looks show two images, four looks all, whatever ran in between and wherever."""
    damaged, other = FakeExecutor("one"), FakeExecutor("apart", parallelism=2)
    guard, ran, since = guarded(damaged, other), 0, 0
    limit = LOOK_EVERY * (canary.IMAGES + 1 - len(seen_by)) if seen_by else 10**9
    try:
        for number in range(max(len(runs), len(elsewhere))):
            for executor, of_it in ((damaged, runs), (other, elsewhere)):
                size, times = of_it[number] if number < len(of_it) else (1, 0)
                for _ in range(times):
                    if executor is damaged:
                        ran += 1
                        since += bool(damaged.off.any())
                        if ran == when + 1:
                            damaged.off[list(seen_by)] = 1
                    guard.ran(executor.name, size)
                    while guard.due:
                        guard.check([damaged, other])
                    assert since < limit
                if not times:
                    guard.check([damaged, other])
    except DeviceFailed:
        assert seen_by
        assert since <= limit


@given(pattern=st.lists(st.sampled_from(SIZES), min_size=1, max_size=6), damaged_size=st.sampled_from(SIZES))
def test_no_size_in_use_is_forgotten(pattern: list[int], damaged_size: int) -> None:
    """Each look is at the size that waits most, so no size waits longer than by the harmonic series."""
    executor = FakeExecutor(sizes=(damaged_size,))
    guard, ran = guarded(executor), 0
    executor.off[:] = 1
    limit = LOOK_EVERY * sum(1 / (number + 1) for number in range(len(SIZES)))
    try:
        for size in pattern * (16 * LOOK_EVERY // len(pattern)):
            ran += size == damaged_size
            guard.ran(executor.name, size)
            while guard.due:
                guard.check([executor])
            assert ran < limit
    except DeviceFailed:
        assert ran <= limit
    else:
        assert not ran


@given(st.lists(st.sampled_from(SIZES), min_size=4, max_size=12))
def test_four_looks_in_any_sizes_show_every_image(sizes: list[int]) -> None:
    executor = FakeExecutor()
    guard = guarded(executor)
    for size in sizes:
        for _ in range(LOOK_EVERY):
            guard.ran(executor.name, size)
        guard.check([executor])
    for first in range(len(sizes) - 3):
        assert len({slot for slots in executor.shown[first : first + 2] for slot in slots}) >= 2
        shown = {slot for slots in executor.shown[first : first + 4] for slot in slots}
        assert shown == set(range(canary.IMAGES))


def test_sizes_that_were_not_learnt_are_not_looked_for() -> None:
    executor = FakeExecutor()
    guard = guarded(executor)
    for _ in range(LOOK_EVERY):
        guard.ran("together", 3)
    assert guard.check([executor]).rows == 1


def test_each_stream_is_looked_at_on_its_own() -> None:
    executor = FakeExecutor("apart", parallelism=2)
    guard = guarded(executor)
    stream_off = np.zeros(10, np.float32)

    def stream(pixels: Pixels, slot: int) -> Answer:
        return Answer(np.empty(0, np.float32), RIGHT[slot] + stream_off)

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
    broken = FakeExecutor(off=np.full_like(RIGHT, np.nan))
    with pytest.raises(UntrustedError):
        guarded(broken, expected=RIGHT)
