"""The folders are arrows: who may import whom, read from the sources and seen in a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "service"

#: A room, and what it must not import at module level, with the reason in docs/ARCHITECTURE.md.
FORBIDDEN = [
    (
        "service/api",
        (
            "torch",
            "torchvision",
            "service.engine.core",
            "service.supervisor.supervisor",
            "service.models.loader",
        ),
    ),
    ("service/engine", ("service.api", "service.models", "fastapi", "uvicorn", "torch", "PIL")),
    ("service/models", ("service.api", "service.engine", "service.supervisor", "fastapi")),
    ("service/preprocess.py", ("torch", "service.api", "service.engine", "service.models")),
    ("service/images", ("torch", "service.api", "service.engine", "service.models")),
    ("service/engine/arena.py", ("service.engine.client", "service.engine.core")),
    ("service/engine/batcher.py", ("time", "threading", "socket", "numpy", "asyncio", "service")),
    ("service/errors.py", ("service", "fastapi", "torch")),
]


def imports(path: Path) -> set[str]:
    """Modules that ``path`` imports when it is imported; what functions import is their own affair."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("room", "forbidden"), FORBIDDEN)
def test_imports_follow_the_arrow(room: str, forbidden: tuple[str, ...]) -> None:
    path = ROOT / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imports(file):
            wrong = [ban for ban in forbidden if name == ban or name.startswith(f"{ban}.")]
            # The catalogue is data: both sides read it.
            assert not wrong or name.startswith("service.models.catalog"), f"{file.name} imports {name}"


def test_a_front_end_never_imports_torch() -> None:
    code = (
        "import sys, service.frontend.process, service.supervisor.supervisor;"
        "print([name for name in sys.modules if name.startswith('torch')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_nothing_happens_at_import_but_in_the_one_module_that_says_so() -> None:
    """No module of ours starts a thread, opens a file for writing or reads the environment when imported."""
    code = (
        "import sys, threading, service.cli.main, service.frontend.process, service.supervisor.supervisor;"
        "import service.engine.process;"
        "print(threading.active_count(), 'prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1 False\n"


def test_images_reach_a_model_by_one_admission() -> None:
    """No route counts images, asks for room or takes a slot itself. (A shadow's images are nobody's request.)"""
    doors = {"offer", "check_room", "admit", "take", "take_in_turn"}
    found = {
        path.name
        for path in (SERVICE / "api").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in doors and _names_a_client(node.value)
    }
    assert found == {"admission.py", "shadow.py"}


def _names_a_client(node: ast.expr) -> bool:
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) == "client"
