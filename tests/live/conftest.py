"""One real service with the demo model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.server import Server

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with Server(weights=tiny.demo(), frontends=1, grpc_port=0, model_control="open") as running:
        yield running


@pytest.fixture(scope="package")
def photos() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]
