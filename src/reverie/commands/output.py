"""What the commands print: tables for people, JSON for machines."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Output = Literal["table", "json"]

type Data = Mapping[str, Data] | Sequence[Data] | str | float | int | bool | None


def print_json(data: Data) -> None:
    """Print JSON on standard output; NaN and infinities, which it lacks, become null."""
    json.dump(_finite(data), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table on standard output: the first column is text, the others are numbers in text form."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    _print(table, rows)


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what is to be said of each, on standard output."""
    _print(Table(title=title, title_justify="left", box=None, show_header=False), facts)


def _print(table: Table, rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe: the table decides the width
        console.width = max(console.width, console.measure(table).maximum)
    console.print(table)


def number(value: float | None) -> str:
    """A number as people read it: three digits, thousands apart."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(value: float, low: float, high: float) -> str:
    """A number and its interval."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _finite(data: Data) -> Data:
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
