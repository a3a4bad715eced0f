"""What the test run takes, and where: a plugin for pytest (`make test-times`), which looks and judges nothing.

    -p tests.times --times FILE        tables of the slowest tests and files, with their sums

Seconds on the clock say what a run waits for; seconds of a processor, of the tests' process and of the programs that it
started and that have ended, say what it costs. With xdist each test is measured in the worker that runs it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: Rows of each table.
_ROWS = 30
_NAME = "times"


@dataclass(frozen=True)
class Spent:
    """Seconds: on the clock, of this process on a processor, of ended children on a processor."""

    clock: float
    own: float
    children: float

    @classmethod
    def now(cls) -> Spent:
        used = os.times()
        return cls(time.monotonic(), used.user + used.system, used.children_user + used.children_system)

    def since(self, before: Spent) -> Spent:
        return Spent(self.clock - before.clock, self.own - before.own, self.children - before.children)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.clock + other.clock, self.own + other.own, self.children + other.children)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=Path, help="write what each test took into this file")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Times(config.getoption("--times")), "times")


class Times:
    def __init__(self, out: Path | None) -> None:
        self._out, self._began = out, Spent.now()
        self.tests: dict[str, Spent] = {}
        self._mark = self._began

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._mark = Spent.now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The last report of a test, its teardown's, takes the sum along to where it is written."""
        report = yield
        if call.when == "teardown":
            spent = Spent.now().since(self._mark)
            report.user_properties.append((_NAME, [spent.clock, spent.own, spent.children]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, values in report.user_properties:
            if name == _NAME and isinstance(values, list):
                self.tests[report.nodeid] = Spent(*values)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tests or "PYTEST_XDIST_WORKER" in os.environ:
            return
        text = summary(self.tests, time.monotonic() - self._began.clock)
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._out.write_text(text, encoding="utf-8")
        terminalreporter.write_line(text)


def summary(tests: dict[str, Spent], wall: float) -> str:
    """Both tables, and a last line with the sums."""
    files: dict[str, Spent] = defaultdict(lambda: Spent(0, 0, 0))
    for name, spent in tests.items():
        files[name.partition("::")[0]] += spent
    everything = sum(tests.values(), Spent(0, 0, 0))
    lines = [*_table("slowest files", files), *_table("slowest tests", tests)]
    lines.append(
        f"{len(tests)} tests in {wall:.0f} s on {os.cpu_count()} cores: {everything.clock:.0f} s of tests, "
        f"{everything.own:.0f} s of a processor in them and {everything.children:.0f} s in programs that they started"
    )
    return "\n".join(lines) + "\n"


def _table(title: str, spent: dict[str, Spent]) -> list[str]:
    rows = sorted(spent.items(), key=lambda item: -item[1].clock)[:_ROWS]
    head = f"{'seconds':>8} {'cpu':>8} {'programs':>8}  {title}"
    return [head, *(f"{s.clock:8.1f} {s.own:8.1f} {s.children:8.1f}  {name}" for name, s in rows), ""]
