"""The command line's output on stdout: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Form = Literal["table", "json", "csv"]

#: Columns of a table that goes into a file or a pipe: wide enough that nothing is cut off.
_WIDE = 400


def show(rows: Sequence[dict[str, Any]], form: Form, title: str | None = None) -> None:
    """Prints ``rows`` on stdout. For a table and for CSV all rows have the same keys; only a table has a title."""
    if form == "json":
        json.dump(list(rows), sys.stdout, indent=2, ensure_ascii=False)
        print()
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        screen().print(_table(rows, title))


def screen() -> Console:
    """The console of standard output: as wide as the terminal, or `_WIDE` columns without one."""
    # Imported here: a server starts sooner without it.
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _table(rows: Sequence[dict[str, Any]], title: str | None) -> Table:
    from rich.table import Table

    table = Table(header_style="bold", title=title, title_justify="left", title_style="bold")
    for name in rows[0] if rows else ():
        number = all(isinstance(row[name], int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> Text | str:
    """The cell of a value, taken literally: brackets in a file's name are no rich markup."""
    from rich.text import Text

    if isinstance(value, Text):
        return value
    return f"{value:,}" if isinstance(value, int) else Text(str(value))
