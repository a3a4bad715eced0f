"""The simulation against what queueing theory knows exactly, and against its own bookkeeping."""

import pytest

pytest.importorskip("simpy")

from benchmarks.simulate import Pod, capacity_at, simulate  # after the check for simpy


def test_one_server_without_batches_waits_as_m_d_1_says() -> None:
    # Mean wait of M/D/1: rho * s / (2 * (1 - rho)), Pollaczek and Khinchine.
    pod = Pod(fixed=0.010, image=0.0, decode=0.0, cores=1, max_batch_size=1, queue_capacity=10_000)
    outcome = simulate(pod, rate=70, seconds=2_000)
    mean = sum(outcome.latencies) / len(outcome.latencies)
    assert mean == pytest.approx(0.010 + 0.7 * 0.010 / (2 * 0.3), rel=0.05)


def test_utilisation_is_arrivals_times_service_time() -> None:
    pod = Pod(fixed=0.010, image=0.0, decode=0.0, cores=1, max_batch_size=1, queue_capacity=10_000)
    outcome = simulate(pod, rate=50, seconds=1_000)
    assert outcome.busy / outcome.device_seconds == pytest.approx(0.5, rel=0.03)


def test_every_request_is_answered_refused_or_expired_and_batches_hold_the_answered_and_no_more() -> None:
    pod = Pod(fixed=0.02, image=0.01, decode=0.005, cores=1, max_batch_size=4, queue_capacity=8, timeout=0.2)
    outcome = simulate(pod, rate=3 * pod.capacity, seconds=60)
    assert outcome.refused > 0
    assert max(outcome.batches) == 4
    # Those at the edges of the warm-up are counted on one side only.
    assert sum(outcome.batches) == pytest.approx(len(outcome.latencies), abs=10)


def test_a_queue_longer_than_the_deadline_expires_what_a_shorter_one_refuses() -> None:
    slow = Pod(fixed=0.0, image=0.1, decode=0.0, cores=1, max_batch_size=1, queue_capacity=100, timeout=1.0)
    assert simulate(slow, rate=20, seconds=60).expired > 0
    short = Pod(fixed=0.0, image=0.1, decode=0.0, cores=1, max_batch_size=1, queue_capacity=5, timeout=1.0)
    outcome = simulate(short, rate=20, seconds=60)
    assert outcome.expired == 0
    assert outcome.refused > 0


def test_batches_carry_more_than_single_passes_can() -> None:
    single = Pod(fixed=0.01, image=0.001, decode=0.0, cores=1, max_batch_size=1)
    batched = Pod(fixed=0.01, image=0.001, decode=0.0, cores=1, max_batch_size=16)
    rate = 0.9 * single.capacity
    assert simulate(batched, 3 * rate, 30).lost == 0
    assert simulate(single, 3 * rate, 30).lost > 0.5


def test_a_balancer_that_looks_has_the_shorter_tail() -> None:
    pod = Pod(fixed=0.005, image=0.005, decode=0.002, cores=2, max_batch_size=8)
    rate = 4 * 0.8 * pod.capacity
    looking, blind = (
        simulate(pod, rate, 60, pods=4, balance=b).quantile(0.99) for b in ("least-request", "random")
    )
    assert looking < blind


def test_capacity_at_a_latency_is_below_the_pods_own_and_grows_with_patience() -> None:
    pod = Pod(fixed=0.004, image=0.0025, decode=0.008, cores=4)
    strict, patient = (capacity_at(pod, p99, 20) for p99 in (0.03, 0.2))
    assert 0 < strict < patient <= pod.capacity
