"""Imports without the garbage collector.

What a module makes when it is imported stays. The collector would look through it again and again meanwhile, which
takes 7 % of the CPU time of a start.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting() -> Iterator[None]:
    """The collector does nothing until the block ends."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
