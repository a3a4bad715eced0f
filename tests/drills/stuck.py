"""`python -m tests.drills.stuck serve …`: the service of hostile.py whose decoders never come to an end."""

from __future__ import annotations

import threading
from typing import NoReturn

from service.cli.main import main
from service.engine import process
from service.images.decoders import picture
from tests.drills import hostile


def prepare(*_: object, **__: object) -> NoReturn:
    threading.Event().wait()
    raise AssertionError("nobody sets it")


if __name__ == "__main__":
    process._load = hostile.load  # type: ignore[assignment]
    picture.prepare = prepare  # type: ignore[attr-defined]
    main()
