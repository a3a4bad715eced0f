"""What the command line prints: a table for people, JSON or CSV for programs. Everything goes to stdout."""

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

#: Where a table goes into a file or a pipe there is no screen to fit, and what a reader cuts off is lost.
_WIDE = 400


def show(rows: Sequence[dict[str, Any]], form: Form, title: str | None = None) -> None:
    """Prints ``rows``. For a table and for CSV all of them have the same keys; only a table has the title."""
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
    """Standard output, as wide as it is, or wide enough where it is no terminal."""
    # A server shows no table, and starts sooner without what draws them.
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
    """What stands there to the letter: a file's name is no markup."""
    from rich.text import Text

    if isinstance(value, Text):
        return value
    return f"{value:,}" if isinstance(value, int) else Text(str(value))
