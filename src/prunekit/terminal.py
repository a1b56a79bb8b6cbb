"""How the rows of dense against pruned look in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from prunekit.workflow import LoadReport, Row

PIPED_WIDTH = 110


def console() -> Console:
    """As wide as the terminal, or of a fixed width where the output goes into a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def print_rows(out: Console, rows: Iterable[Row], notes: Iterable[str], heading: str = "") -> None:
    """The table, and the notes below it.

    Args:
        out: where to.
        rows: of the table; a column that is empty in all of them is left out.
        notes: below it.
        heading: of the first column.
    """
    cells = [_cells(row) for row in rows]
    columns = [(heading, [cell[0] for cell in cells])] if cells else []
    for place, name in enumerate(("dense", "pruned", "change"), start=1):
        column = [cell[place] for cell in cells]
        if any(column):
            columns.append((name, column))
    table = Table(box=SIMPLE_HEAD)
    for name, _ in columns:
        table.add_column(name, justify="right" if table.columns else "left")
    for row in zip(*(column for _, column in columns), strict=True):
        table.add_row(*row)
    if cells:
        out.print(table)
    for note in notes:
        out.print(Text(f"  {note}\n", style="yellow"))


def print_loads(out: Console, report: LoadReport) -> None:
    """A table for each scenario, and what belongs to all of them below."""
    for load in report.loads:
        print_rows(out, load.rows, load.notes, load.scenario.replace("_", "-"))
    print_rows(out, report.rows, report.notes, "energy")


def _cells(row: Row) -> tuple[str, str, str, str]:
    def figure(value: float | None) -> str:
        if value is None:
            return ""
        if row.unit == "bytes":
            return _scaled(value, "B")
        if row.unit == "ms":
            return f"{value:.3g} ms"
        return _scaled(value) if isinstance(value, int) else f"{value:.4f}"

    return row.quantity, figure(row.dense), figure(row.pruned), _change(row)


def _change(row: Row) -> str:
    if row.change is None:
        return ""
    if row.unit == "x":
        interval = f" ({row.low:.2f} to {row.high:.2f})" if row.low is not None else ""
        return f"{row.change:.2f}x{interval}"
    if row.low is not None and row.high is not None:
        return f"{row.change:+.4f} ({row.low:+.4f} to {row.high:+.4f})"
    return f"{-row.change:+.1%}"


def _scaled(value: float, unit: str = "") -> str:
    """A large number with three significant figures and a decimal prefix."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()
