"""Output of benchmarks: tables on the terminal, JSON and Markdown under benchmarks/results/."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, Any]


def publish(
    name: str,
    title: str,
    tables: Mapping[str, Sequence[Row]],
    notes: Sequence[str] = (),
    module: str | None = None,
) -> None:
    """Prints the tables and writes ``results/NAME.json`` and ``.md`` with the machine and the command.

    ``module`` is the module that ran, ``benchmarks.NAME`` by default.
    """
    here = machine.describe()
    command = " ".join(["python -m", module or f"benchmarks.{name}", *sys.argv[1:]])
    document = {"title": title, "command": command, "machine": here, "notes": list(notes), "tables": tables}
    text = "\n".join(
        [
            f"# {title}",
            "",
            f"`{command}`",
            "",
            machine.one_line(here),
            "",
            *(line for heading, rows in tables.items() for line in (f"## {heading}", "", *table(rows), "")),
            *(f"- {note}" for note in notes),
        ]
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n")


def table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a Markdown table; a key that a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in rows]
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
