"""Which mutants the tests find. pytest imports and collects once; then every mutant gets a fork of its process.

A fork gets the test functions that run the changed line, the quickest first, until one fails. If the fault is in
functions, they get other code in the fork; if it is in what runs at the import, the fork imports and collects itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import coverage
import fastapi.testclient  # noqa: F401 - what every fork that imports would import itself
import httpx  # noqa: F401
import hypothesis.stateful  # noqa: F401
import PIL.Image  # noqa: F401
import pytest
import torch  # noqa: F401
import uvicorn  # noqa: F401

from tests.mutation import swap
from tests.mutation.forks import Room
from tests.mutation.mutants import Mutant

#: A test may take this many times what it took before, and so many seconds more, before it counts as hung.
_TIMES, _MORE = 10.0, 10.0
#: Seconds that a test takes at the least, as far as their order is concerned.
_SETUP = 0.1
_OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio", "-p", "no:faulthandler"]
#: What is imported before pytest begins could not be rewritten.
_OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


@dataclass(frozen=True)
class Seen:
    """What one test takes, in seconds, and which lines of each module it runs."""

    test: str
    seconds: float
    lines: dict[str, list[int]]

    @property
    def limit(self) -> float:
        """Seconds after which it counts as hung."""
        return _TIMES * self.seconds + _MORE


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    found: bool
    seconds: float
    by: str
    """The last test that ran: the one that failed or hung, if it was found."""


Tell = Callable[[Mutant, Verdict], None]
#: Runs tests with a fault, or without, in a fork until one fails; says whether one did.
Attempt = Callable[[Mutant | None, Sequence[Seen]], bool]


def judge(room: Room, tests: Sequence[str], chosen: Sequence[Mutant], tell: Tell) -> list[Verdict]:
    """Tries each of ``chosen`` with ``tests`` (files or folders). ``tell`` hears of each verdict at once."""
    _enter(room)
    answer = _in_a_process(room, lambda: _functions(room, tests, chosen, tell))
    verdicts = {int(place): Verdict(**verdict) for place, verdict in answer["verdicts"].items()}
    trials = _Trials(room, lambda mutant, mine: _import_and_run(room, mutant, mine))
    for place, seen in answer["at import"].items():
        mutant = chosen[int(place)]
        verdicts[int(place)] = trials.verdict(mutant, [Seen(**one) for one in seen])
        tell(mutant, verdicts[int(place)])
    return [verdicts[place] for place in range(len(chosen))]


class _Trials:
    """Tries mutants. Only a test that passes without the fault may find one."""

    def __init__(self, room: Room, attempt: Attempt) -> None:
        self._room = room
        self._attempt = attempt
        self._trusted: dict[str, bool] = {}
        self._finds: Counter[tuple[str, str]] = Counter()

    def verdict(self, mutant: Mutant, mine: Sequence[Seen]) -> Verdict:
        """The verdict on ``mutant`` after the tests ``mine``: first the quick ones, and those that find much there."""
        began = time.monotonic()

        def cost(one: Seen) -> float:
            return (one.seconds + _SETUP) / (1 + self._finds[mutant.file, one.test])

        while True:
            left = sorted((one for one in mine if self._trusted.get(one.test, True)), key=cost)
            found = bool(left) and self._attempt(mutant, left)
            by = self._room.last()
            if not found or self._passes(by, mine):
                self._finds[mutant.file, by] += found
                return Verdict(found, time.monotonic() - began, by)

    def _passes(self, test: str, mine: Sequence[Seen]) -> bool:
        if test not in self._trusted:
            alone = [one for one in mine if one.test == test]
            self._trusted[test] = not alone or not self._attempt(None, alone)
            if not self._trusted[test]:
                print(f"left out, since it fails without any fault: {test}", flush=True)
        return self._trusted[test]


def _enter(room: Room) -> None:
    """Lets this process, and all that it starts, import the copy."""
    os.chdir(room.copy)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "service")]:
        del sys.modules[name]
    sys.path.insert(0, str(room.copy))
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(room.copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def _in_a_process(room: Room, function: Callable[[], Any]) -> Any:
    """What ``function`` returns, as JSON has it, in a process of its own that may import what it likes."""
    result = room.copy.parent / "result.json"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            result.write_text(json.dumps(function()))
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    assert result.exists(), "the tests could not be run"
    return json.loads(result.read_text())


def _functions(room: Room, tests: Sequence[str], chosen: Sequence[Mutant], tell: Tell) -> dict[str, Any]:
    """The verdicts on the faults in functions; of the others, the tests that run their modules."""
    loop = _Loop(room, chosen, tell)
    pytest.main(_arguments(room, tests), plugins=[loop])
    assert loop.complete, "the tests could not be run"
    return {"verdicts": loop.verdicts, "at import": loop.at_import}


def _arguments(room: Room, tests: Iterable[str]) -> list[str]:
    return [*_OPTIONS, f"--basetemp={room.scratch / 'tmp'}", *tests]


class _Loop:
    """A plugin in whose session no test runs, but in forks of it."""

    def __init__(self, room: Room, chosen: Sequence[Mutant], tell: Tell) -> None:
        self.verdicts: dict[int, dict[str, Any]] = {}
        self.at_import: dict[int, list[dict[str, Any]]] = {}
        self.complete = False
        self._room = room
        self._chosen = chosen
        self._tell = tell
        self._tests: dict[str, pytest.Item] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._tests = {item.nodeid: item for item in session.items}
        seen = self._learn()
        print(f"{len(seen)} tests take {sum(one.seconds for one in seen):.0f} s", flush=True)
        trials = _Trials(self._room, self._attempt)
        for place, mutant in enumerate(self._chosen):
            try:
                codes = swap.changed(*self._sources(mutant))
            except swap.AtImport:
                self.at_import[place] = [asdict(one) for one in seen if one.lines[mutant.file]]
                continue
            # coverage may miss the lines after an `await` that raises: then those of the function stand for it.
            mine = _run_any(seen, mutant.file, {mutant.line}) or _run_any(
                seen, mutant.file, swap.around(codes.values(), mutant.line)
            )
            verdict = trials.verdict(mutant, mine)
            self.verdicts[place] = asdict(verdict)
            self._tell(mutant, verdict)
        self.complete = True
        return True

    def _sources(self, mutant: Mutant) -> tuple[str, str, str]:
        path = self._room.copy / mutant.file
        return str(path), path.read_text(), mutant.source

    def _learn(self) -> list[Seen]:
        """What every test takes and runs."""
        learned = self._room.copy.parent / "seen.json"
        child = self._room.fork()
        if child == 0:
            modules = {mutant.file: str(self._room.copy / mutant.file) for mutant in self._chosen}
            learner = _Learner(modules)
            _run(list(self._tests.values()), learner, lambda: learner.save(learned))
        assert self._room.wait(child) == 0, f"{self._room.last()} ends the run without any fault"
        return [Seen(**one) for one in json.loads(learned.read_text())]

    def _attempt(self, mutant: Mutant | None, mine: Sequence[Seen]) -> bool:
        codes = swap.changed(*self._sources(mutant)) if mutant is not None else {}
        with self._room.changed(mutant):
            child = self._room.fork()
            if child == 0:
                if mutant is not None:
                    swap.put(str(self._room.copy / mutant.file), codes)
                _run([self._tests[one.test] for one in mine], _Guard(self._room, mine))
            return self._room.wait(child) != 0


def _run_any(seen: Sequence[Seen], file: str, lines: Container[int]) -> list[Seen]:
    """Those tests that run any of ``lines``."""
    return [one for one in seen if any(line in lines for line in one.lines[file])]


def _import_and_run(room: Room, mutant: Mutant | None, mine: Sequence[Seen]) -> bool:
    """An `Attempt` in which the fork imports the modules and collects the tests."""
    files = dict.fromkeys(one.test.partition("::")[0] for one in mine)
    with room.changed(mutant):
        child = room.fork()
        if child == 0:
            pytest.main(_arguments(room, files), plugins=[_Chosen(room, mine)])
            os._exit(1)  # it could not be imported
        return room.wait(child) != 0


class _Chosen:
    """A plugin of a fork that collects itself: which tests it runs, in which order."""

    def __init__(self, room: Room, mine: Sequence[Seen]) -> None:
        self._room = room
        self._mine = mine

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        items = {item.nodeid: item for item in session.items}
        chosen = [items[one.test] for one in self._mine if one.test in items]
        _run(chosen, _Guard(self._room, self._mine))


class _Last(pytest.Item):
    """Stands behind the last test, so that nothing is undone that belongs to the whole session, and to the parent."""

    def runtest(self) -> None:
        raise NotImplementedError


def _run(tests: Sequence[pytest.Item], plugin: object, finish: Callable[[], None] = lambda: None) -> NoReturn:
    """Runs ``tests`` beside ``plugin``, calls ``finish`` and ends the process, with 0 if nothing else has ended it."""
    try:
        if tests:
            session = tests[0].session
            session.config.pluginmanager.register(plugin)
            last = _Last.from_parent(session, name="last")
            for test, following in zip(tests, [*tests[1:], last], strict=True):
                session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        finish()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class _Guard:
    """A plugin of a fork, which ends with the first failure or a test that hangs."""

    def __init__(self, room: Room, mine: Sequence[Seen]) -> None:
        self._room = room
        self._limits = {one.test: one.limit for one in mine}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._room.begins(nodeid)
        faulthandler.dump_traceback_later(self._limits[nodeid], exit=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(report.longreprtext, flush=True)
            os._exit(1)


class _Learner:
    """A plugin of the fork that runs every test: what it takes, and which lines of ``modules`` (paths) it runs."""

    def __init__(self, modules: dict[str, str]) -> None:
        self._modules = modules
        self._seconds: dict[str, float] = {}
        self._coverage = coverage.Coverage(data_file=None, include=list(modules.values()))
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self._seconds[item.nodeid] = time.monotonic() - began

    def save(self, target: Path) -> None:
        """Writes a `Seen` of each test."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: {module: [] for module in self._modules})
        for module, path in self._modules.items():
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    lines[test][module].append(line)
        seen = [Seen(test, seconds, lines[test]) for test, seconds in self._seconds.items()]
        target.write_text(json.dumps([asdict(one) for one in seen]))
