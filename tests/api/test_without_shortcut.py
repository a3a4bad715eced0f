"""Every test of `POST /predict` once more, where FastAPI answers it: both ways pass the same tests.

They are found by their source, so a new one joins by itself.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api import shortcut
from tests.api.test_shortcut import NEVER

#: `test_shortcut` compares both ways itself; the others take seconds and are about connections and JSON.
_LEFT_OUT = {"test_shortcut", "test_without_shortcut", "test_protocol", "test_answers"}
_ASKS_PREDICT = re.compile(r"""/predict["?]""")


def _tests_of_predict() -> Iterator[tuple[str, Callable[..., Any]]]:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem in _LEFT_OUT:
            continue
        module = importlib.import_module(f"tests.api.{path.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_") and _ASKS_PREDICT.search(inspect.getsource(test)):
                yield f"{path.stem}_{name.removeprefix('test_')}", test


globals().update(_tests_of_predict())


@pytest.fixture(autouse=True)
def _no_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "PLAIN", NEVER)


def test_they_were_found() -> None:
    assert len(list(_tests_of_predict())) > 30
