"""The schedule: complete, no worse than any single executor, and no larger than it has to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models import batch_plan

SECONDS = st.floats(1e-4, 10, allow_nan=False)


@st.composite
def measured(draw: st.DrawFn) -> tuple[list[dict[int, float]], list[int | None], int]:
    sizes = [1, 2, 4, 8, 16][: draw(st.integers(1, 5))]
    times = [{size: draw(SECONDS) for size in sizes}]
    parallelisms: list[int | None] = [None]
    for parallelism in draw(st.lists(st.integers(1, 4), max_size=2, unique=True)):
        times.append({parallelism: draw(SECONDS)})
        parallelisms.append(parallelism)
    return times, parallelisms, draw(st.integers(1, 20))


@given(measured())
def test_every_number_of_images_is_run_whole_and_no_slower_than_in_one_way(
    case: tuple[list[dict[int, float]], list[int | None], int],
) -> None:
    times, parallelisms, largest = case
    found = batch_plan.schedule(times, parallelisms, largest)
    assert len(found.steps) == len(found.seconds) == largest + 1
    for images in range(1, largest + 1):
        assert sum(step.images for step in found.steps[images]) == images
        for step in found.steps[images]:
            parallelism = parallelisms[step.executor]
            assert step.images % (parallelism or 1) == 0
        for measured_times in times:
            if images in measured_times:
                assert found.seconds[images] <= measured_times[images] + 1e-9


def test_images_that_run_apart_are_one_step_and_the_odd_one_goes_alone() -> None:
    together = {1: 10.0, 2: 20.0, 4: 40.0}
    found = batch_plan.schedule([together, {1: 7.0}, {2: 10.0}], [None, 1, 2], 5)
    assert set(found.steps[5]) == {batch_plan.Step(1, 1), batch_plan.Step(2, 4)}
    assert found.seconds[5] == pytest.approx(27.0)


def test_what_lies_between_two_measured_batches_runs_as_one() -> None:
    found = batch_plan.schedule([{1: 5.0, 2: 6.0, 4: 8.0}], [None], 3)
    assert found.steps[3] == (batch_plan.Step(0, 3),)
    assert found.seconds[3] == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("seconds_an_image", "best"),
    [
        ({1: 0.010, 2: 0.010, 4: 0.010, 8: 0.010}, 4),  # company brings nothing: the least
        ({1: 0.010, 2: 0.008, 4: 0.006, 8: 0.004}, 8),
        ({1: 0.010, 2: 0.008, 4: 0.006, 8: 0.0059}, 4),  # not worth the latency
        ({1: 0.100, 2: 0.090, 4: 0.080, 8: 0.070}, 4),  # eight would take more than a quarter of a second
        ({1: 0.010, 2: 0.050, 4: 0.050}, 4),  # a neighbour's noise does not take company away
        ({1: 0.010, 2: 0.009}, 2),
    ],
)
def test_the_best_size_is_the_smallest_that_brings_nearly_all(
    seconds_an_image: dict[int, float], best: int
) -> None:
    sizes = sorted(seconds_an_image)
    seconds = [seconds_an_image.get(images, 1.0) * images for images in range(sizes[-1] + 1)]
    assert batch_plan.best_size(seconds, sizes) == best
