"""Threads and their queue: every job runs once, whoever submits it."""

from __future__ import annotations

import threading
import time
from collections import Counter

from service.images.decoders.threads import Threads


def test_every_job_runs_once() -> None:
    decoders = Threads(3)
    ran: Counter[tuple[int, int]] = Counter()
    lock = threading.Lock()

    def job(submitter: int, number: int) -> None:
        with lock:
            ran[submitter, number] += 1

    def submit(submitter: int) -> None:
        for number in range(2000):
            decoders.submit(lambda number=number: job(submitter, number))  # type: ignore[misc]
            if number % 50 == 0:
                time.sleep(0.0005)  # lets all threads fall asleep between two bursts

    submitters = [threading.Thread(target=submit, args=(submitter,)) for submitter in range(3)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    decoders.shutdown()
    assert len(ran) == 6000
    assert set(ran.values()) == {1}


def test_jobs_run_beside_each_other() -> None:
    decoders = Threads(2)
    both = threading.Barrier(2, timeout=10)
    done = [threading.Event(), threading.Event()]
    for event in done:
        decoders.submit(lambda event=event: (both.wait(), event.set()))  # type: ignore[misc]
    assert all(event.wait(10) for event in done)
    decoders.shutdown()


def test_a_job_that_comes_when_all_sleep_is_begun() -> None:
    decoders = Threads(2)
    for _ in range(300):
        ran = threading.Event()
        decoders.submit(ran.set)
        assert ran.wait(10)
    decoders.shutdown()
