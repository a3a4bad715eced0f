"""One thread for the model: in a network this small, threads would mostly wait for each other."""

from __future__ import annotations

import pytest

from service.models import loaded


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "available_cores", lambda: 1)
