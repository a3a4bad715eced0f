"""The memory for large pictures: no byte is lost or given twice, and whoever cannot wait is refused at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ImageTooLarge, Overloaded
from service.images.decoders import large
from service.images.decoders.cost import Cost
from service.images.decoders.job import Job
from service.images.decoders.large import LargePictures
from service.images.decoders.picture import Picture, Recipe
from service.preprocess import Preprocessing
from tests.loops import on_a_loop

LIMIT = 100
PICTURE = Picture(b"", Recipe(Preprocessing(), 50_000_000, fast=False))


class Budget:
    """The budget of one front-end alone."""

    memory_limit = float(LIMIT)

    def __init__(self) -> None:
        self.used = 0

    def acquire(self, size: int) -> bool:
        fits = self.used + size <= LIMIT
        self.used += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        self.used -= size


def job(memory: int) -> Job:
    made = Job(PICTURE, np.zeros((1, 1, 3), np.uint8), lambda seconds: None, lambda job: None)
    made.cost = Cost(memory, 1.0)
    return made


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "acquire", "release", "remove"]), st.integers(0, 7), st.integers(1, LIMIT)
    ),
    max_size=60,
)


@given(STEPS)
@on_a_loop
async def test_the_budget_holds_what_the_jobs_have(steps: list[tuple[str, int, int]]) -> None:
    budget, returned = Budget(), []
    pictures = LargePictures(budget, lambda: returned.append(budget.used))
    jobs = [job(1) for _ in range(8)]
    for step, number, memory in steps:
        one = jobs[number]
        match step:
            case "add" if one not in pictures.waiting:
                one.cost = Cost(memory, 1.0)
                pictures.add(one)
                assert one.reserved == 0
                assert pictures.waiting[-1] is one
            case "acquire" if not one.reserved:
                fits = budget.used + one.memory <= LIMIT
                assert pictures.acquire(one) is fits
            case "release":
                had, times = one.reserved, len(returned)
                pictures.release(one)
                assert len(returned) == times + bool(had), "who waits has to be told once"
            case "remove":
                pictures.remove(one)
                assert one not in pictures.waiting
        assert budget.used == sum(one.reserved for one in jobs) <= LIMIT
        assert bool(pictures) is bool(pictures.waiting)


@on_a_loop
async def test_a_picture_above_the_limit_is_refused_for_good_and_one_too_many_for_now() -> None:
    pictures = LargePictures(Budget(), lambda: None)
    too_large = job(LIMIT + 1)
    pictures.add(too_large)
    assert isinstance(too_large.done.exception(), ImageTooLarge)
    waiting = [job(LIMIT) for _ in range(large._MAX_WAITING)]
    for one in waiting:
        pictures.add(one)
    last = job(1)
    pictures.add(last)
    error = last.done.exception()
    assert isinstance(error, Overloaded)
    assert error.retry_after == large._RETRY
    assert list(pictures.waiting) == waiting
    assert not any(one.done.done() for one in waiting)
