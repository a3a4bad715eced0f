"""Rates: what an autoscaler and a Retry-After are computed from."""

import pytest

from service.engine.load import LoadMeter


def test_saturation_follows_arrivals_over_capacity() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for second in range(1, 121):
        meter.update(float(second), arrivals=30 * second)
    assert meter.saturation == pytest.approx(3.0, rel=0.01)
    for second in range(121, 241):
        meter.update(float(second), arrivals=30 * 120)
    assert meter.saturation == pytest.approx(0.0, abs=0.01)


def test_busy_is_the_share_of_time_that_the_device_computes() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for second in range(1, 121):
        meter.ran(4, 0.25)
        meter.update(float(second), arrivals=0)
    assert meter.busy_ratio == pytest.approx(0.25, rel=0.01)


def test_capacity_is_learnt_from_full_batches_only() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for _ in range(100):
        meter.ran(1, 0.2)
    assert meter.capacity == 10.0
    for _ in range(100):
        meter.ran(4, 0.8)
    assert meter.capacity == pytest.approx(5.0, rel=0.01)


def test_a_lane_counts_for_its_share_and_teaches_only_beside_the_others() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for second in range(1, 121):
        meter.ran_in_lane(0.5, lanes=2, full=False)
        meter.update(float(second), arrivals=0)
    assert meter.busy_ratio == pytest.approx(0.25, rel=0.01)
    assert meter.capacity == 10.0
    for _ in range(100):
        meter.ran_in_lane(0.4, lanes=2, full=True)
    assert meter.capacity == pytest.approx(5.0, rel=0.01)


def test_no_capacity_is_no_saturation() -> None:
    assert LoadMeter(0.0, capacity=0.0, max_batch_size=1).saturation == 0.0
