"""Servers for benchmarks, and the machine's load meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.cli.plan.server_process import ServerProcess, free_port, memory_mib
from service.host.usage import tree

__all__ = ["ServerProcess", "busy_seconds", "end_with_servers", "free_port", "memory_mib", "serve", "tree"]

_TICK = os.sysconf("SC_CLK_TCK")


def serve(
    *, null: bool = False, decode: bool = True, environment: Mapping[str, str] | None = None, **settings: Any
) -> ServerProcess:
    """Starts the real service with these settings; ``null`` gives it a model without cost (`benchmarks.null`)."""
    port = free_port()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {"port": port, **settings}.items()]
    module = "benchmarks.null" if null else "service"
    environment = {**(environment or {}), **({} if decode else {"BENCHMARK_NO_DECODE": "1"})}
    root = Path(__file__).parent.parent
    return ServerProcess(
        [sys.executable, "-m", module, "serve", *flags], port, folder=root, environment=environment
    )


def busy_seconds() -> float:
    """Returns the CPU seconds that the whole machine has spent."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _, _, interrupts, soft_interrupts, steal = fields
    return (user + nice + system + interrupts + soft_interrupts + steal) / _TICK


def end_with_servers() -> None:
    """Lets SIGTERM (of a time limit) leave through the ``with`` blocks, so that no server stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
