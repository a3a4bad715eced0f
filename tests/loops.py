"""Asynchronous tests without a plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a coroutine function as a test, on a loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        asyncio.run(test(*arguments, **keywords))  # type: ignore[arg-type]

    return run


async def until(condition: Callable[[], bool], patience: float = 10.0) -> None:
    """Returns as soon as ``condition`` holds; raises `TimeoutError` after ``patience`` seconds."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.002)
