"""Rates: what an autoscaler and a Retry-After are computed from."""

import math

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
        meter.record_batch(4, 0.25)
        meter.update(float(second), arrivals=0)
    assert meter.busy_ratio == pytest.approx(0.25, rel=0.01)


def test_capacity_is_learnt_from_full_batches_only() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for _ in range(100):
        meter.record_batch(1, 0.2)
    assert meter.capacity == 10.0
    for _ in range(100):
        meter.record_batch(4, 0.8)
    assert meter.capacity == pytest.approx(5.0, rel=0.01)


def test_a_stream_counts_for_its_share_and_teaches_only_beside_the_others() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for second in range(1, 121):
        meter.record_stream(0.5, streams=2, full=False)
        meter.update(float(second), arrivals=0)
    assert meter.busy_ratio == pytest.approx(0.25, rel=0.01)
    assert meter.capacity == 10.0
    for _ in range(100):
        meter.record_stream(0.4, streams=2, full=True)
    assert meter.capacity == pytest.approx(5.0, rel=0.01)


def test_no_capacity_is_no_saturation() -> None:
    assert LoadMeter(0.0, capacity=0.0, max_batch_size=1).saturation == 0.0


def test_the_narrower_side_decides_the_saturation() -> None:
    meter = LoadMeter(0.0, capacity=100.0, max_batch_size=4)
    for second in range(1, 121):  # two threads of 0.1 s an image decode 20 a second
        meter.update(float(second), 15 * second, 10 * second, 1.0 * second, 2)
    assert meter.decode_capacity == pytest.approx(20.0)
    assert meter.saturation == pytest.approx(0.75, rel=0.01)
    for second in range(121, 241):  # the same threads with nothing to do: what they can do is remembered
        meter.update(float(second), 15 * second, 1200.0, 120.0, 2)
    assert meter.decode_capacity == pytest.approx(20.0)
    meter.update(241.0, 15 * 241, 1200.0, 120.0, 4)  # two more front-ends
    assert meter.decode_capacity == pytest.approx(40.0)


def test_without_decoding_the_device_decides() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    for second in range(1, 121):
        meter.update(float(second), 5 * second, threads=2)
    assert meter.saturation == pytest.approx(0.5, rel=0.01)


def test_a_pass_takes_what_it_takes_lately() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    assert meter.seconds == 0
    meter.record_batch(1, 0.5)
    assert meter.seconds == 0.5
    for _ in range(100):
        meter.record_batch(4, 0.2)
    assert meter.seconds == pytest.approx(0.2, rel=0.01)


def test_an_image_in_a_stream_takes_what_it_takes() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    meter.record_stream(0.1, streams=2, full=False)
    assert meter.seconds == 0.1


def test_decoders_that_are_busy_with_one_image_are_full_though_nothing_arrives() -> None:
    meter = LoadMeter(0.0, capacity=100.0, max_batch_size=4)
    for second in range(1, 121):  # two decoders, each in an image that does not end
        meter.update(float(second), 2, 0.0, 0.0, 2, 2.0 * second)
    assert meter.saturation == pytest.approx(1.0, rel=0.01)
    for second in range(121, 241):
        meter.update(float(second), 2, 0.0, 0.0, 2, 240.0)
    assert meter.saturation == pytest.approx(0.0, abs=0.01)


def rates(meter: LoadMeter) -> tuple[float, ...]:
    return (
        meter.arrival_rate,
        meter.busy_ratio,
        meter.seconds,
        meter.decode_capacity,
        meter.decode_busy,
        meter.saturation,
    )


def test_a_meter_begins_at_rest_and_stays_there() -> None:
    meter = LoadMeter(5.0, capacity=10.0, max_batch_size=4)
    assert rates(meter) == (0, 0, 0, 0, 0, 0)
    meter.update(6.0, arrivals=0)
    meter.update(7.5, 0, 0.0, 0.0, 2)
    assert rates(meter) == (0, 0, 0, 0, 0, 0)
    meter.update(7.5, arrivals=100)  # no time has passed
    assert rates(meter) == (0, 0, 0, 0, 0, 0)


def test_a_step_moves_each_rate_by_the_share_of_ten_seconds_that_has_passed() -> None:
    """Exponential smoothing with a time constant of ten seconds, from sums since the beginning."""
    share = 1 - math.exp(-0.2)
    meter = LoadMeter(100.0, capacity=10.0, max_batch_size=4)
    meter.record_batch(4, 0.5)
    meter.update(102.0, 6, 3.0, 1.5, 2, 2.0)
    assert meter.arrival_rate == pytest.approx(3 * share)
    assert meter.busy_ratio == pytest.approx(0.25 * share)
    assert meter.decode_capacity == pytest.approx(2 / 0.5)  # the first images are believed at once
    assert meter.decode_busy == pytest.approx(0.5 * share)
    meter.update(104.0, 6, 4.0, 2.5, 2, 2.0)
    assert meter.arrival_rate == pytest.approx(3 * share * (1 - share))
    assert meter.busy_ratio == pytest.approx(0.25 * share * (1 - share))
    assert meter.decode_capacity == pytest.approx(2 / (0.5 + share * (1.0 - 0.5)))
    assert meter.decode_busy == pytest.approx(0.5 * share * (1 - share))
    meter.record_batch(2, 60.0)  # more than has passed is all of it
    meter.update(106.0, arrivals=6)
    assert meter.busy_ratio == pytest.approx(0.25 * share * (1 - share) ** 2 + share)


def test_the_newest_pass_counts_a_tenth() -> None:
    meter = LoadMeter(0.0, capacity=10.0, max_batch_size=4)
    meter.record_batch(2, 0.0)  # a clock that has not moved tells nothing
    assert (meter.seconds, meter.capacity) == (0.0, 10.0)
    meter.record_batch(2, 1.0)
    assert (meter.seconds, meter.capacity) == (1.0, 10.0)
    meter.record_batch(4, 2.0)
    assert meter.seconds == pytest.approx(1.1)
    assert meter.capacity == pytest.approx(9.2)
    meter.record_batch(2, 0.1)  # small and quicker than all that was thought possible
    assert meter.capacity == pytest.approx(9.2 + 0.1 * (20 - 9.2))
    meter.record_stream(0.0, streams=2, full=True)
    assert meter.capacity == pytest.approx(9.2 + 0.1 * (20 - 9.2))
