"""The documents tell today's truth: settings, metrics, alerts, commands, flags, make targets and links that exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from service.cli.main import cli
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = (ROOT / "docs/OPERATIONS.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_operations_with_its_default(name: str) -> None:
    field = Settings.model_fields[name]
    default = "none" if field.default is None else field.default
    row = f"| `IMAGENET_{name.upper()}` | `{default}` | "
    assert row in OPERATIONS, f"add to 'Every setting': {row}{field.description} |"


def metrics() -> Iterator[str]:
    """The names of all metrics: what is given to a function called ``…counter``, ``…histogram`` or ``…gauge``."""
    makers = re.compile("(counter|histogram|gauge)$")
    modules = [ROOT / "service/observability" / name for name in ("metrics.py", "snapshot.py")]
    for node in (node for module in modules for node in ast.walk(ast.parse(module.read_text()))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and makers.search(node.func.id)
            and node.args
        ):
            (first, *_) = node.args
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield "imagenet_" + first.value.removeprefix("imagenet_")


def test_every_metric_is_in_operations() -> None:
    names = set(metrics())
    assert {"imagenet_requests", "imagenet_batch_size", "imagenet_queue_depth", "imagenet_state"} <= names
    table = OPERATIONS.split("### Every metric")[1].split("\n### ")[0]
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(imagenet_\w+)", table, re.M)}
    assert names <= documented, f"add to 'Every metric': {sorted(names - documented)}"


def test_every_alert_has_its_section_in_the_runbook() -> None:
    rules = (ROOT / "k8s/overlays/monitoring/rules.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) > 10
    assert [name for name in alerts if f"\n### {name}\n" not in OPERATIONS] == []


# ---- commands --------------------------------------------------------------------------------------------------------


def code(document: Path) -> Iterator[str]:
    """Lines of fenced blocks and code within a line, without comments."""
    text = document.read_text()
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S):
        yield from (line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"`([^`\n]+)`", outside)


def commands(word: str) -> list[tuple[str, list[str]]]:
    """Where ``word`` is called in the documents, and its arguments."""
    found = []
    for document in DOCUMENTS:
        for line in code(document):
            match = re.match(rf"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:eval \"\$\()?(?:\S*/)?{word} (.+)", line)
            if match:
                arguments = re.split(r"\)\"| [|>&] ", match[1])[0]
                found.append((f"{document.name}: {line}", shlex.split(arguments.replace("…", "x"))))
    return found


def test_the_commands_exist_with_their_flags() -> None:
    found = commands("imagenet-serve")
    assert len(found) > 15
    context = click.Context(cli)
    for where, arguments in found:
        name, *rest = arguments
        for single in name.split(","):
            command = cli.get_command(context, single)
            assert command is not None, where
            flags = {
                flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)
            }
            given = {word.split("=")[0] for word in rest if word.startswith("--")}
            assert given <= flags | {"--help"}, where


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    hidden = {name for name in cli.commands if not re.search(rf"imagenet-serve {name}\b|, `{name}`", readme)}
    assert hidden == set()


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    found = commands("make")
    assert len(found) > 5
    for where, arguments in found:
        assert arguments[0] in targets, where


def test_the_oldest_libraries_that_read_weights_are_the_ones_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["hub"]]
    tested = (ROOT / "tests/requirements/oldest.txt").read_text()
    for name in ("torch", "torchvision", "safetensors", "h5py", "huggingface_hub"):
        least = next(match[1] for line in required if (match := re.match(rf"{name}>=([\d.]+)", line)))
        assert f"{name}=={least}.*" in tested


def test_the_benchmarks_exist() -> None:
    modules = [(where, rest[0]) for where, (flag, *rest) in commands("python") if flag == "-m"]
    assert len(modules) > 5
    for where, module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), where


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in map("".join, re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
