"""Files of records, line by line: numbers and times out of text, and complaints that name the line and what is wrong.

What the columns mean is the business of `traces.py` and `measured.py`.
"""

import csv
import gzip
import json
import math
import re
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

_SHOWN_BROKEN_LINES = 5
_NANOSECONDS = 10**9


class TraceError(ValueError):
    """A recording that cannot be used; the message names the file, the line and what is wrong."""


def stem(path: Path) -> str:
    """The name of a file without its endings: `conv` of `conv.csv.gz`."""
    return Path(path.name.removesuffix(".gz")).stem


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The numbered lines of a text file, plain or gzipped, without the blank ones; at least one.

    Raises:
        TraceError: the file cannot be read as text, or holds nothing.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise TraceError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise TraceError(f"{path} is empty: expected one record per line")
    return lines


def split_csv(line: str) -> list[str]:
    """The values of one line of CSV, without the blanks around them."""
    try:
        values = next(csv.reader([line])) if '"' in line else line.split(",")
    except csv.Error as error:
        raise TraceError(f"not CSV ({error})") from None
    return [value.strip() for value in values]


class Records:
    """Columns of raw values that are turned into numbers and times while complaints about lines are collected.

    A value that cannot be used becomes NaN, and the first complaint about a line is kept; `check` raises them all.
    """

    def __init__(self, path: Path, lines: list[tuple[int, str]], names: tuple[str, ...]):
        if not lines:
            raise TraceError(f"{path} has a header but no records")
        self.path = path
        self._lines = lines
        self._columns: dict[str, list[Any]] = {name: [None] * len(lines) for name in names}
        self._complaints: dict[int, str] = {}  # by index into the lines

    @classmethod
    def from_csv(cls, path: Path, header: list[str], lines: list[tuple[int, str]], names: tuple[str, ...]) -> "Records":
        """The columns `names` of a CSV file; TraceError where the header lacks one or no line follows it."""
        missing = [name for name in names if name not in header]
        if missing:
            raise TraceError(
                f"{path}: the header {shorten(','.join(header))} lacks {', '.join(missing)}; expected {','.join(names)}"
            )
        records = cls(path, lines, names)
        positions = [(records._columns[name], header.index(name)) for name in names]
        for index, (_, text) in enumerate(lines):
            try:
                values = split_csv(text)
            except TraceError as error:
                records._complaints[index] = str(error)
                continue
            if len(values) != len(header):
                records._complaints[index] = f"{len(values)} columns where the header names {len(header)}"
                continue
            for column, position in positions:
                column[index] = values[position]
        return records

    @classmethod
    def from_json(cls, path: Path, lines: list[tuple[int, str]], names: tuple[str, ...]) -> "Records":
        """The fields `names` of a file with one JSON object per line."""
        records = cls(path, lines, names)
        for index, (_, text) in enumerate(lines):
            try:
                fields = json.loads(text)
            except ValueError as error:
                records._complaints[index] = f"not JSON ({getattr(error, 'msg', error)})"
                continue
            missing = [name for name in names if not isinstance(fields, dict) or name not in fields]
            if missing:
                records._complaints[index] = f"no {', no '.join(missing)}"
                continue
            for name in names:
                records._columns[name][index] = fields[name]
        return records

    def texts(self, name: str) -> list[str]:
        """The values of a column; an empty one draws a complaint."""
        values = [value or "" for value in self._columns[name]]
        self.complain(np.array([not value for value in values]), f"{name} is missing")
        return values

    def numbers(self, name: str, least: float = 0.0) -> Float64[np.ndarray, " J"]:
        """The finite numbers of a column, none below `least`."""
        values = np.full(len(self._lines), math.nan)
        for index, value in enumerate(self._columns[name]):
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number) and number >= least:
                values[index] = number
            else:
                expected = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
                self._complaints.setdefault(index, f"{name} is {shorten(value)}, expected {expected}")
        return values

    def times(self, name: str) -> Float64[np.ndarray, " J"]:
        """Seconds from the first time of a column to each; texts are ISO 8601, numbers are milliseconds."""
        ticks: list[int | None] = []
        for index, value in enumerate(self._columns[name]):
            tick = _nanoseconds(value)
            if tick is None:
                self._complaints.setdefault(index, f"{name} is {shorten(value)}, expected a time such as {_SAMPLE}")
            ticks.append(tick)
        first = next((tick for tick in ticks if tick is not None), 0)
        # The difference comes first: nanoseconds since 1970 do not fit into a float.
        return np.array([math.nan if tick is None else (tick - first) / _NANOSECONDS for tick in ticks])

    def complain(self, where: Bool[np.ndarray, " J"], what: str) -> None:
        """Note what is wrong with some lines."""
        for index in np.flatnonzero(where).tolist():
            self._complaints.setdefault(index, what)

    def require_order(self, seconds: Float64[np.ndarray, " J"]) -> None:
        """Complain about each line whose time is earlier than that of the line before."""
        for index in np.flatnonzero(seconds[1:] < seconds[:-1]).tolist():
            back = seconds[index] - seconds[index + 1]
            self._complaints.setdefault(index + 1, f"time goes back by {back:g} s (sort the file by time)")

    def check(self) -> None:
        """Raise TraceError if there are complaints: the first few with line number and text, and the count of all."""
        if not self._complaints:
            return
        count = len(self._complaints)
        message = [f"{self.path} has {count} broken line{'s' if count > 1 else ''}:"]
        for index in sorted(self._complaints)[:_SHOWN_BROKEN_LINES]:
            number, text = self._lines[index]
            message.append(f"  line {number}: {self._complaints[index]}: {shorten(text)}")
        if count > _SHOWN_BROKEN_LINES:
            message.append(f"  and {count - _SHOWN_BROKEN_LINES} more")
        raise TraceError("\n".join(message))


_ISO_8601 = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
_SAMPLE = "2023-11-16 18:17:03.9799600"


def _nanoseconds(value: Any) -> int | None:
    """Nanoseconds of an ISO 8601 text since 1970 (UTC where it names no zone), or of a number of milliseconds."""
    try:
        if isinstance(value, bool):
            return None
        if not isinstance(value, str):
            whole = math.floor(value)  # apart from the fraction, which would drown in a product
            return whole * 1_000_000 + round((value - whole) * 1_000_000)
        match = _ISO_8601.fullmatch(value)
        if match is None:
            return None
        seconds, fraction, zone = match.groups()
        since = datetime.fromisoformat(seconds + (zone or "Z")) - datetime(1970, 1, 1, tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * _NANOSECONDS + int((fraction or "").ljust(9, "0"))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:90] + " ..." + text[-1]
