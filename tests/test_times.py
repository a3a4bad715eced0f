"""The report of the test run's time: sums that add up, the slowest first, each test once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.times import Spent, summary

ROOT = Path(__file__).resolve().parents[1]
SECONDS = st.integers(0, 1000).map(float)
SPENT = st.builds(Spent, SECONDS, SECONDS, SECONDS)
NAMES = st.tuples(st.sampled_from("abcd"), st.integers(0, 40)).map(
    lambda n: f"tests/test_{n[0]}.py::test_{n[1]}"
)


@given(st.dictionaries(NAMES, SPENT, min_size=1))
def test_files_and_tests_are_told_slowest_first_and_sum_up(tests: dict[str, Spent]) -> None:
    files, slowest, total = summary(tests, 7.0).strip().split("\n\n")
    for table, whole in ((files, False), (slowest, True)):
        rows = [line.split() for line in table.splitlines()[1:]]
        assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
        for seconds, own, children, name in rows:
            meant = [
                spent for test, spent in tests.items() if (test if whole else test.split("::")[0]) == name
            ]
            assert [float(seconds), float(own), float(children)] == [
                sum(getattr(spent, field) for spent in meant) for field in ("clock", "own", "children")
            ]
    assert len(files.splitlines()) == 1 + len({name.split("::")[0] for name in tests})
    assert total.startswith(f"{len(tests)} tests in 7 s")
    assert f" {sum(spent.clock for spent in tests.values()):.0f} s of tests" in total


def test_every_test_of_every_worker_is_in_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text("def test_one(): pass\ndef test_two(): assert False\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.times",
        "--times",
        "times.txt",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    text = (tmp_path / "times.txt").read_text()
    assert "4 tests in" in text
    assert all(f"test_{file}.py::test_{test}" in text for file in "ab" for test in ("one", "two"))
