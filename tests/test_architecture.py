"""The rooms and their arrow: who may import whom, read from the sources and seen in a running interpreter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "service"

#: What lies in service/ beside the rooms: what everything shares, and what others import.
FILES = {
    "__init__.py",
    "__main__.py",
    "batch.py",
    "errors.py",
    "labels.py",
    "preprocess.py",
    "py.typed",
    "settings.py",
}

#: The rooms of docs/ARCHITECTURE.md in the order of the arrow. Each may import itself and what stands above it here,
#: whether at the top of a module, in a function or for types alone.
ROOMS: dict[str, tuple[str, ...]] = {
    "errors, labels": ("service.errors", "service.labels"),
    "client": ("service.client",),
    "host": ("service.host",),
    "shared": ("service.shared",),
    "images": ("service.preprocess", "service.images"),
    "catalogue": ("service.models.catalog", "service.models.configuration", "service.models.head"),
    "settings": ("service.settings", "service.options"),
    "observability": ("service.observability",),
    "models": ("service.models",),
    "engine": ("service.engine",),
    "api": ("service.api",),
    "frontend": ("service.frontend",),
    "supervisor": ("service.supervisor",),
    "classifier": ("service.classifier", "service.batch"),
    "cli": ("service.cli", "service.__main__"),
}

#: A room or a file, and what else it must not import at module level.
FORBIDDEN = [
    ("service/client", ("torch", "service.errors", "service.labels")),  # of a user's program it is a guest
    ("service/api", ("torch", "torchvision", "service.engine.core", "service.models.loader")),
    ("service/engine", ("service.models", "fastapi", "uvicorn", "torch", "PIL")),
    ("service/images", ("torch",)),
    ("service/preprocess.py", ("torch",)),
    ("service/engine/arena.py", ("service.engine.client", "service.engine.core")),
    ("service/engine/batcher.py", ("time", "threading", "socket", "numpy", "asyncio", "service")),
    ("service/errors.py", ("service", "fastapi", "torch")),
]


#: Rooms whose docstrings are held to the rule below.
PLAIN = (
    "service/__main__.py", "service/api", "service/batch.py", "service/classifier", "service/cli", "service/client",
    "service/engine", "service/errors.py", "service/frontend", "service/host", "service/images", "service/labels.py",
    "service/models", "service/observability", "service/options", "service/preprocess.py", "service/settings.py",
    "service/shared", "service/supervisor", "benchmarks", "training",
)  # fmt: skip
#: First words of a docstring that begins with neither a verb nor a noun: the sentence has no subject of its own.
RIDDLES = {
    "After", "And", "As", "At", "Because", "Before", "Behind", "Below", "Beside", "Between", "But", "By",
    "Everything", "For", "From", "How", "If", "Is", "It", "Its", "Nobody", "Not", "Of", "Once", "Or", "Same",
    "So", "Somebody", "Something", "Such", "That", "Then", "There", "These", "They", "Those", "Unless", "Until",
    "What", "When", "Where", "Whether", "Which", "Who", "Why", "With", "Without",
}  # fmt: skip


def module_name(path: Path) -> str:
    """What ``path`` is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SERVICE.rglob("*.py"))}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What these statements import: ``a.b`` of ``import a.b``, and ``a.b.c`` of ``from a.b import c``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here say the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports() -> dict[str, set[str]]:
    """The modules of ours that each module of ours names in any import, wherever that stands."""
    found = {}
    for module, path in MODULES.items():
        names = set(imported(ast.walk(ast.parse(path.read_text()))))
        found[module] = {_module_of(name) for name in names if _lies_in(name, "service")} - {module}
    return found


def _module_of(name: str) -> str:
    """The module that ``name`` is, or is a part of."""
    return name if name in MODULES else name.rpartition(".")[0]


def _lies_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def room_of(module: str) -> int | None:
    """The number of a module's room; None for the package itself, which is a version and nothing else."""
    found = [
        (len(place), number)
        for number, places in enumerate(ROOMS.values())
        for place in places
        if _lies_in(module, place)
    ]
    return max(found)[1] if found else None


def against_the_arrow(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of a room that stands below."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if (room_of(other) or 0) > (room_of(module) or 0)
    ]


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Modules that import each other in a circle: of each, what it reaches and is reached by."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, ahead = set(), [module]
        while ahead:
            for other in graph.get(ahead.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    ahead.append(other)
        reached[module] = seen
    found: dict[frozenset[str], None] = {}
    for module, seen in reached.items():
        if module in seen:
            found[frozenset(other for other in seen if module in reached[other])] = None
    return [set(circle) for circle in found]


def test_every_module_has_a_room_and_nothing_else_lies_beside_them() -> None:
    assert {path.name for path in SERVICE.iterdir() if path.is_file()} == FILES
    rooms = {path.name for path in SERVICE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    named = {place.split(".")[1] for places in ROOMS.values() for place in places}
    assert rooms == named - {file.removesuffix(".py") for file in FILES}
    assert [module for module in MODULES if room_of(module) is None] == ["service"]


def test_rooms_import_in_one_direction() -> None:
    assert not against_the_arrow(imports())


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circles(imports())


def test_the_checks_see_what_they_are_for() -> None:
    graph = dict(imports())
    graph["service.shared.board"] = {"service.engine.arena"}
    assert against_the_arrow(graph) == ["service.shared.board imports service.engine.arena"]
    graph["service.errors"] = {"service.api.errors"}
    assert any({"service.errors", "service.api.errors"} <= circle for circle in circles(graph))


def test_no_module_uses_another_rooms_private_names() -> None:
    found = defaultdict(set)
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and _lies_in(node.module or "", "service"):
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        used = set(names.values()) | {
            f"{names[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        }
        for name in used:
            private = any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
            if private and room_of(name) != room_of(module):
                found[module].add(name)
    assert not found


def test_the_documents_name_files_that_exist() -> None:
    section = (ROOT / "docs/ARCHITECTURE.md").read_text().partition("### The files of each room")[2]
    rooms = section.partition("\n## ")[0].split("\n- **`")[1:]
    assert len(rooms) > 5
    for text in rooms:
        room = SERVICE / text.partition("/")[0]
        there = {path.name for path in room.rglob("*.py")} | {f"{path.name}/" for path in room.rglob("*")}
        missing = set(re.findall(r"`(\w+(?:\.py|/))`", text)) - there
        assert not missing, f"docs/ARCHITECTURE.md names what is not in {room.name}/: {missing}"


@pytest.mark.parametrize(("place", "forbidden"), FORBIDDEN)
def test_some_rooms_do_without(place: str, forbidden: tuple[str, ...]) -> None:
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imported(ast.parse(file.read_text()).body):
            assert not any(_lies_in(name, ban) for ban in forbidden), f"{file.name} imports {name}"


def test_a_front_end_never_imports_torch() -> None:
    code = (
        "import sys, service.frontend.process, service.supervisor.supervisor;"
        "print([name for name in sys.modules if name.startswith('torch')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_nothing_happens_at_import_but_in_the_one_module_that_says_so() -> None:
    """Importing the whole program starts no thread and loads no metrics library."""
    code = (
        "import sys, threading, service.cli.main, service.frontend.process, service.supervisor.supervisor;"
        "import service.engine.process;"
        "print(threading.active_count(), 'prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1 False\n"


def first_words(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the beginning of each docstring, those of attributes included."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, " ".join(value.value.split()[:2])


def is_riddle(words: str) -> bool:
    """Returns True for "What it does", "Whether there is one" and "The same for files"."""
    return words.split(" ")[0].rstrip(",:;.") in RIDDLES or words.rstrip(",:;.") == "The same"


@pytest.mark.parametrize("room", PLAIN)
def test_a_docstring_begins_with_a_verb_or_a_noun(room: str) -> None:
    path = ROOT / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found = [
        f"{file.relative_to(ROOT)}:{line}: {words}"
        for file in files
        for line, words in first_words(file.read_text())
        if is_riddle(words)
    ]
    assert files
    assert not found, "say what is returned, read or raised: " + "; ".join(found)


def test_a_riddle_is_seen_wherever_it_stands() -> None:
    source = '"""What."""\nclass A:\n    size = 0\n    """Whether."""\n    def f(self):\n        """The same, later."""'
    assert [line for line, words in first_words(source) if is_riddle(words)] == [1, 4, 6]
    assert not any(
        map(is_riddle, ("Returns the size.", "Size in bytes", "True if it is there", "A file", "The size"))
    )


def test_images_reach_a_model_by_one_admission() -> None:
    """No route counts images, asks for room or takes a slot itself. (A shadow's images are nobody's request.)"""
    doors = {"record_arrivals", "check_capacity", "admit", "acquire", "acquire_in_turn"}
    found = {
        path.name
        for path in (SERVICE / "api").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in doors and _names_a_client(node.value)
    }
    assert found == {"admission.py", "shadow.py"}


def _names_a_client(node: ast.expr) -> bool:
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) == "client"
