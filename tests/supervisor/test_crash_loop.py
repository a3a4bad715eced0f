"""When to stop starting what dies."""

from service.supervisor.crash_loop import Lives


def test_only_short_lives_in_a_row_are_too_many() -> None:
    lives = Lives(most=3, long=10.0)
    assert [lives.ended(seconds) for seconds in (1, 1, 10, 1, 0)] == [False] * 5
    assert lives.ended(9.9)


def test_long_lives_may_end_for_ever() -> None:
    lives = Lives(most=2, long=10.0)
    assert not any(lives.ended(10.0) for _ in range(100))
