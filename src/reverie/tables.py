"""Tidy tables as CSV files: what `evaluate` writes, `report` and the command line read.

A table is a list of rows, a row a dict from column to number, text, truth value or None (missing). Every row has the
same columns. What is written is what is read back; nothing here computes.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from reverie.files import write_text

type Cell = bool | int | float | str | None
type Row = dict[str, Cell]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|-?inf")
_TRUTH = {"true": True, "false": False}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table, whole or not at all.

    The first row gives the columns and their order. A column holds numbers (NaN and infinities included), or text, or
    truth values; None is an empty cell. NumPy scalars count as what they stand for.

    Raises:
        ValueError: no rows, rows with different columns, or text that would not be read back as the same text.
        TypeError: a value of another type.
    """
    if not rows:
        raise ValueError(f"{path}: a table needs at least one row (it gives the columns)")
    columns = list(rows[0])
    if not columns or "" in columns:
        raise ValueError(f"{path}: a table needs columns, each with a name; the first row has {columns}")
    for number, row in enumerate(rows, start=1):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"{path}: row {number} has the columns {sorted(row)}, the first row has {sorted(columns)}; "
                "give every row the same columns, with None where a value is missing"
            )
    written = {column: [_text(row[column], f"{path}: column {column!r}") for row in rows] for column in columns}
    for column, cells in written.items():
        _check_kinds([row[column] for row in rows], cells, f"{path}: column {column!r}")

    # Quotes where the csv module forgets them: an empty line is no row, and a carriage return is a line's end for it.
    cells = [*columns, *(cell for cells in written.values() for cell in cells)]
    quote_all = len(columns) == 1 or any("\r" in cell for cell in cells)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerow(columns)
    writer.writerows(zip(*written.values(), strict=True))
    write_text(path, out.getvalue())


def read_csv(path: Path) -> list[Row]:
    """Read a table; columns in which every cell is a number (or `true` or `false`) become numbers (truth values).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no header, a column without a name or with the name of another, a line with too few or too many
            cells (named by number).
    """
    data = path.read_bytes()
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8: {error}") from error
    lines = []
    try:
        columns = next(reader, [])
        if not columns or "" in columns or len(set(columns)) != len(columns):
            raise ValueError(f"{path}: the first line must name the columns, each once; it reads {columns}")
        for cells in reader:
            if len(cells) != len(columns):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has {len(columns)} columns"
                )
            lines.append(cells)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is not CSV: {error}") from error
    parsed = [_parse(list(cells)) for cells in zip(*lines, strict=True)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*parsed, strict=True)]


def _text(value: object, where: str) -> str:
    match value:
        case None:
            return ""
        case bool() | np.bool_():
            return "true" if value else "false"
        case Integral():
            return str(int(value))
        case Real():
            return repr(float(value))
        case str():
            return value
    raise TypeError(f"{where}: {value!r} is a {type(value).__name__}; a cell is a number, text, a truth value or None")


def _check_kinds(values: list[object], cells: list[str], where: str) -> None:
    kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) > 1:
        raise ValueError(f"{where} mixes {' and '.join(sorted(kinds))}; a column holds one kind of value")
    if kinds == {"text"}:
        if "" in values:
            raise ValueError(f"{where} holds empty text, which reads as missing; use None")
        if any(not isinstance(value, str) for value in _parse(cells) if value is not None):
            raise ValueError(f"{where} holds only text that reads as numbers ({cells[0]!r}, …); name them otherwise")


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    return "truth values" if isinstance(value, (bool, np.bool_)) else "numbers"


def _parse(cells: Sequence[str]) -> list[Cell]:
    """One column, as the narrowest kind that fits all of its cells."""
    present = [cell for cell in cells if cell]
    if all(_REAL.fullmatch(cell) for cell in present):
        return [None if not cell else int(cell) if _INTEGER.fullmatch(cell) else float(cell) for cell in cells]
    if all(cell in _TRUTH for cell in present):
        return [_TRUTH[cell] if cell else None for cell in cells]
    return [cell or None for cell in cells]
