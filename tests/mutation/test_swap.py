"""Faults in functions that others hold already, and which faults are not of that kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation import equivalent, swap

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """\
import functools

LIMIT = 3
both = (lambda: 1, lambda: 2)


def decorated(function):
    @functools.wraps(function)
    def around(*values):
        return function(*values) + 10
    return around


class Thing:
    size = 4

    def method(self, by=2):
        return self.size * by

    @property
    def double(self):
        return self.size * 2


@decorated
def plain(value):
    return value + 1


def outer(value):
    def inner():
        return value + 100
    return inner
"""


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    path = tmp_path / "some_module.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("some_module", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def put(module: ModuleType, before: str, after: str) -> None:
    assert SOURCE.count(before) == 1
    path = str(module.__file__)
    swap.put(path, swap.changed(path, SOURCE, SOURCE.replace(before, after)))


def test_whoever_holds_a_function_has_its_fault(module: ModuleType) -> None:
    plain, method, inner = module.plain, module.Thing().method, module.outer(1)
    put(module, "value + 1\n", "value - 1\n")
    assert plain(5) == 14
    put(module, "self.size * by", "self.size - by")
    assert method() == 2
    put(module, "self.size * 2", "self.size * 3")
    assert module.Thing().double == 12
    put(module, "function(*values) + 10", "function(*values) + 20")
    assert plain(5) == 24
    put(module, "value + 100", "value + 200")
    assert (inner(), module.outer(1)()) == (201, 201)


def test_a_statement_of_several_lines_that_is_gone_moves_what_follows(module: ModuleType) -> None:
    put(module, "    @functools.wraps(function)\n    def around", "    def around")
    assert module.outer(1)() == 101
    assert module.plain(5) == 16


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("size = 4", "size = 5"),
        ("by=2", "by=3"),
        ("@decorated\n", ""),
        ("lambda: 2", "lambda: 3"),  # two on one line cannot be told apart
    ],
)
def test_what_runs_at_the_import_is_no_function_s(before: str, after: str) -> None:
    with pytest.raises(swap.AtImport):
        swap.changed("some_module.py", SOURCE, SOURCE.replace(before, after))


def test_around_a_line_is_the_innermost_function_that_changed() -> None:
    codes = swap.changed("some_module.py", SOURCE, SOURCE.replace("value + 100", "value + 200"))
    line = SOURCE[: SOURCE.index("value + 100")].count("\n") + 1
    assert list(swap.around(codes.values(), line)) == [line - 1, line]
    assert list(swap.around(codes.values(), 1)) == []


def test_equivalent_mutants_are_of_lines_that_are_there() -> None:
    for entry in equivalent.entries():
        lines = [line.strip() for line in (ROOT / entry["file"]).read_text().split("\n")]
        assert entry["before"] in lines, f"{entry['file']} has no such line any more: {entry['before']}"
        assert entry["before"] != entry["after"]
        assert len(entry["reason"].split()) > 3, entry
