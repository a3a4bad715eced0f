"""When to stop starting what dies."""

from service.supervisor.lifecycle.crash_loop import CrashLoopGuard


def test_only_short_runs_in_a_row_are_too_many() -> None:
    guard = CrashLoopGuard(max_short_runs=3, min_uptime=10.0)
    assert [guard.record(seconds) for seconds in (1, 1, 10, 1, 0)] == [False] * 5
    assert guard.record(9.9)


def test_long_runs_may_end_for_ever() -> None:
    guard = CrashLoopGuard(max_short_runs=2, min_uptime=10.0)
    assert not any(guard.record(10.0) for _ in range(100))
