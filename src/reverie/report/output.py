"""What the commands print on standard output: tables for people, JSON for machines."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Output = Literal["table", "json"]

type Data = Mapping[str, Data] | Sequence[Data] | str | float | int | bool | None


def print_json(data: Data) -> None:
    """Print JSON."""
    print(json_text(data), end="")


def json_text(data: Data) -> str:
    """JSON; NaN and infinities, which it lacks, become null."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Table:
    """A table for the terminal whose first column is a name; the others are numbers."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(table: Table) -> None:
    """Print a table in the width that it needs: a number that was cut would mislead."""
    console = Console(highlight=False)
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table, crop=False)


def print_lines(lines: Sequence[str]) -> None:
    """Print what stands above a table."""
    for line in lines:
        print(line)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what is to be said of each."""
    table = Table(title=Text(title, "table.title"), title_justify="left", box=None, show_header=False)
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    print_table(table)


def say(message: str) -> None:
    """Tell, on standard error, what is going on."""
    print(message, file=sys.stderr, flush=True)


def _finite(data: Data) -> Data:
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
