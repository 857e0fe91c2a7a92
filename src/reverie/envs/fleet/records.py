"""Files of records, line by line: numbers and times out of text, and complaints that name the line and what is wrong.

What the columns mean is the business of `formats/` and `measured.py`.
"""

import bz2
import codecs
import csv
import gzip
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

Unit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNIT_NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

Fault = Literal["broken", "zero", "order"]
"""What can be wrong with a line: it cannot be read, its job brings no work, its time is earlier than the one before."""

MOST_BYTES = 2**29
"""Of a file, unpacked: what a machine of 8 GB can hold as text and as numbers."""
_LARGEST = 1e18
_SHOWN_BROKEN_LINES = 5
_REMEDIES: dict[Fault, str] = {
    "broken": "--drop broken leaves lines out that cannot be read",
    "zero": "--drop zero leaves jobs without work out",
    "order": "--sort puts lines in order of time",
}


class TraceError(ValueError):
    """A recording that cannot be used; the message names the file, the line and what is wrong."""


def stem(path: Path) -> str:
    """The name of a file without its endings: `conv` of `conv.csv.gz`."""
    name = path.name
    for ending in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(ending)
    return Path(name).stem


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The numbered lines of a text file, plain or packed by gzip, bzip2 or xz, without the blank ones; at least one.

    Raises:
        TraceError: the file cannot be read as text, holds nothing, or more than `MOST_BYTES`.
    """
    try:
        content = _unpacked(path, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise TraceError(
                f"{path} holds more than {MOST_BYTES / 2**20:,.0f} MiB of text: expected less; cut out a part, "
                "such as its first million lines"
            )
        text = content.decode(
            "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        )
    except FileNotFoundError:
        raise TraceError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise TraceError(
            f"{path} is not a text file in UTF-8 or UTF-16: {error.reason} at byte {error.start}"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    lines = [(number, line.strip(" \r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise TraceError(f"{path} is empty: expected one record per line")
    return lines


def _unpacked(path: Path, count: int) -> bytes:
    """The first `count` bytes; the packing is known by how the file begins."""
    with path.open("rb") as file:
        begin = file.read(6)
        file.seek(0)
        if begin.startswith(b"\x28\xb5\x2f\xfd"):
            raise TraceError(f"{path} is packed by zstd, which is not read: unpack it with `zstd -d`")
        if begin.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=file).read(count)
        if begin.startswith(b"BZh"):
            return bz2.BZ2File(file).read(count)
        if begin == b"\xfd7zXZ\x00":
            return lzma.LZMAFile(file).read(count)
        return file.read(count)


def delimiter_of(line: str) -> str:
    """What stands between the columns of CSV: a tab, a semicolon, a comma or a bar, the first of them that is in the
    line."""
    bare = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in "\t;,|" if mark in bare), ",")


def split_csv(line: str, delimiter: str) -> list[str]:
    """The values of one line of CSV, without the blanks around them."""
    try:
        values = next(csv.reader([line], delimiter=delimiter)) if '"' in line else line.split(delimiter)
    except csv.Error as error:
        raise TraceError(f"not CSV ({error})") from None
    return [value.strip() for value in values]


def split_json(line: str) -> Any:
    """What a line of JSON says."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not JSON ({getattr(error, 'msg', error)})") from None


class _Complaint(NamedTuple):
    fault: Fault
    said: str


class Records:
    """Columns of raw values that are turned into numbers and times while complaints about lines are collected.

    A value that cannot be used becomes NaN, and the first complaint about a line is kept; `check` raises them all.
    """

    def __init__(
        self,
        path: Path,
        lines: list[tuple[int, str]],
        names: Sequence[str],
        split: Callable[[str], Sequence[Any]],
        decimal_comma: bool = False,
    ):
        """The values that `split` finds in each line, in the order of `names`; it raises TraceError for a broken one.

        With `decimal_comma` numbers may be written 0,5.
        """
        if not lines:
            raise TraceError(f"{path} has a header but no records")
        self.path = path
        self.lines = lines
        self.header: list[str] = []
        """Names of all columns, where the text has them."""
        self._complaints: dict[int, _Complaint] = {}  # by index into the lines
        self._decimal_comma = decimal_comma
        rows: list[Sequence[Any]] = []
        for index, (_, text) in enumerate(lines):
            try:
                rows.append(split(text))
            except TraceError as error:
                self._complaints[index] = _Complaint("broken", str(error))
                rows.append([None] * len(names))
        self._columns: dict[str, list[Any]] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))

    @classmethod
    def from_csv(
        cls,
        path: Path,
        header: list[str],
        lines: list[tuple[int, str]],
        names: Sequence[str],
        delimiter: str,
        cut: Callable[[str, str], list[str]] = split_csv,
    ) -> "Records":
        """The columns `names` of lines that `cut` cuts at a delimiter, whatever their case.

        Raises:
            TraceError: the header lacks a column, or no line follows it.
        """
        known = [name.casefold() for name in header]
        missing = [name for name in names if name.casefold() not in known]
        if missing:
            raise TraceError(
                f"{path}: the header {shorten(delimiter.join(header))} lacks {', '.join(missing)}; "
                f"expected {delimiter.join(names)}"
            )
        positions = [known.index(name.casefold()) for name in names]

        def split(text: str) -> list[str]:
            values = cut(text, delimiter)
            if len(values) != len(header):
                raise TraceError(f"{len(values)} columns where the header names {len(header)}")
            return [values[position] for position in positions]

        records = cls(path, lines, names, split, decimal_comma=delimiter != ",")
        records.header = header
        return records

    @classmethod
    def from_json(cls, path: Path, lines: list[tuple[int, str]], names: Sequence[str]) -> "Records":
        """The fields `names` of a file with one JSON object per line."""

        def split(text: str) -> list[Any]:
            fields = split_json(text)
            missing = [name for name in names if not isinstance(fields, dict) or name not in fields]
            if missing:
                raise TraceError(f"no {', no '.join(missing)}")
            return [fields[name] for name in names]

        return cls(path, lines, names, split)

    def texts(self, name: str) -> list[str]:
        """The values of a column; an empty one draws a complaint."""
        values = [value or "" for value in self._columns[name]]
        self.complain(np.array([not value for value in values]), f"{name} is missing")
        return values

    def numbers(self, name: str, least: float = 0.0) -> Float64[np.ndarray, " J"]:
        """The finite numbers of a column, none below `least` or absurdly large."""
        values = np.full(len(self.lines), math.nan)
        expected = f"a finite number of at least {least:g}, at most {_LARGEST:g}"
        for index, (raw, value) in enumerate(zip(self._columns[name], self._plain(name), strict=True)):
            number = math.nan if (found := _number(value)) is None else float(found)
            if least <= number <= _LARGEST:
                values[index] = number
            else:
                self._complain(index, "broken", f"{name} is {shorten(raw)}, expected {expected}")
        return values

    def times(
        self, name: str, unit: Unit | None = None, usual: Unit | None = None
    ) -> tuple[Float64[np.ndarray, " J"], str]:
        """Seconds from the first time of a column to each, and in words how the column gives them.

        Texts are ISO 8601. Numbers are in `unit`; unless it is given, numbers that can only be times since 1970 (years
        2000 to 2100) show theirs, and others are in the `usual` unit of their format.

        Raises:
            TraceError: numbers do not show their unit, their format has none, and none is given.
        """
        values = self._plain(name)
        sample = next((value for value in values if value is not None), None)
        if isinstance(sample, str) and _number(sample) is None:
            ticks: list[Decimal | None] = [_nanoseconds(value) for value in values]
            said, per_second, expected = "ISO 8601", PER_SECOND["ns"], f"a time such as {_SAMPLE}"
        else:
            ticks = [_number(value) for value in values]
            finite = np.array([float(tick) for tick in ticks if tick is not None and abs(tick) <= _LATEST_NS])
            since_1970 = _unit_since_1970(finite)
            unit = unit or since_1970 or usual or (None if len(finite) else "s")
            if unit is None:
                raise TraceError(
                    f"{self.path}: the unit of {name} cannot be seen from numbers such as {shorten(sample)}; "
                    "say it with --unit s, ms, us or ns"
                )
            said, per_second = UNIT_NAMES[unit], PER_SECOND[unit]
            expected = f"a finite number, at most {_LATEST_NS:.2g}"
            if since_1970 == unit:
                low, high = _YEARS[0] * per_second, _YEARS[1] * per_second
                ticks = [tick if tick is not None and low <= tick < high else None for tick in ticks]
                said, expected = f"{said} since 1970", f"{said} since 1970, as others are"
            else:
                ticks = [tick if tick is not None and abs(tick) <= _LATEST_NS else None for tick in ticks]
        for index, (raw, tick) in enumerate(zip(self._columns[name], ticks, strict=True)):
            if tick is None:
                self._complain(index, "broken", f"{name} is {shorten(raw)}, expected {expected}")
        first = next((tick for tick in ticks if tick is not None), Decimal(0))
        if "since 1970" in said or said == "ISO 8601":
            said += f", the first {datetime.fromtimestamp(float(first / per_second), UTC):%Y-%m-%d %H:%M:%S}"
        # The difference comes first: nanoseconds since 1970 do not fit into a float.
        return np.array([math.nan if tick is None else float((tick - first) / per_second) for tick in ticks]), said

    def complain(self, where: Bool[np.ndarray, " J"], what: str, fault: Fault = "broken") -> None:
        """Note what is wrong with some lines."""
        for index in np.flatnonzero(where).tolist():
            self._complain(index, fault, what)

    def require_order(self, seconds: Float64[np.ndarray, " J"]) -> None:
        """Complain about each line whose time is earlier than that of the sound line before."""
        sound = np.array([index for index in range(len(seconds)) if index not in self._complaints], int)
        back = -np.diff(seconds[sound])
        for index in np.flatnonzero(back > 0).tolist():
            self._complain(int(sound[index + 1]), "order", f"time goes back by {back[index]:g} s")

    def refuse(self, forgiven: Collection[Fault] | None = None) -> None:
        """Nothing where all faults are forgiven.

        Raises:
            TraceError: other faults: the first few with line number and text, the count of all and, where faults can be
                forgiven, by which option.
        """
        faulty = [index for index in sorted(self._complaints) if self._complaints[index].fault not in (forgiven or ())]
        if faulty:
            message = [f"{self.path} has {len(faulty)} broken line{'s' if len(faulty) > 1 else ''}:"]
            for index in faulty[:_SHOWN_BROKEN_LINES]:
                number, text = self.lines[index]
                message.append(f"  line {number}: {self._complaints[index].said}: {shorten(text)}")
            if len(faulty) > _SHOWN_BROKEN_LINES:
                message.append(f"  and {len(faulty) - _SHOWN_BROKEN_LINES} more")
            if forgiven is not None:
                kinds = dict.fromkeys(self._complaints[index].fault for index in faulty)
                message.append(f"{'; '.join(_REMEDIES[kind] for kind in kinds)} (and counts them)")
            raise TraceError("\n".join(message))

    def check(self, forgiven: Collection[Fault] | None = None) -> tuple[Bool[np.ndarray, " J"], dict[Fault, int]]:
        """Which lines are sound, and how many have a fault that is forgiven.

        Raises:
            TraceError: as for `refuse`, or no line is sound.
        """
        self.refuse(forgiven)
        sound = np.ones(len(self.lines), bool)
        counts: dict[Fault, int] = {}
        for index, complaint in self._complaints.items():
            counts[complaint.fault] = counts.get(complaint.fault, 0) + 1
            sound[index] = complaint.fault == "order"
        if not sound.any():
            raise TraceError(f"{self.path}: all {len(sound)} lines were dropped; expected at least one sound line")
        return sound, counts

    def _complain(self, index: int, fault: Fault, said: str) -> None:
        self._complaints.setdefault(index, _Complaint(fault, said))

    def _plain(self, name: str) -> list[Any]:
        """The values of a column with a point where a decimal comma was, unless both occur: that would be a guess."""
        values = self._columns[name]
        if not self._decimal_comma or any(value and "." in value for value in values):
            return values
        return [value and value.replace(",", ".") for value in values]


_ISO_8601 = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
_SAMPLE = "2023-11-16 18:17:03.9799600"
_YEARS = 946_684_800, 4_102_444_800
"""2000 and 2100 in seconds since 1970."""
_LATEST_NS = _YEARS[1] * 10**9


def _unit_since_1970(numbers: Float64[np.ndarray, " J"]) -> Unit | None:
    """The unit in which the median lies between 2000 and 2100, if there is one: no two of them overlap."""
    if len(numbers) == 0:
        return None
    middle = float(np.median(numbers))
    return next((unit for unit, per in PER_SECOND.items() if _YEARS[0] * per <= middle < _YEARS[1] * per), None)


def _number(value: Any) -> Decimal | None:
    """A number with all its digits, if it is one that a float can hold; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = Decimal(value)
        return number if math.isfinite(float(number)) else None
    except (ArithmeticError, ValueError):
        return None


def _nanoseconds(value: Any) -> Decimal | None:
    """Nanoseconds of an ISO 8601 text since 1970 (UTC where it names no zone)."""
    match = _ISO_8601.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    try:
        since = datetime.fromisoformat(seconds + (zone or "Z")) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return Decimal((since.days * 86_400 + since.seconds) * PER_SECOND["ns"] + int((fraction or "").ljust(9, "0")))


def is_number(text: str) -> bool:
    """Whether a text is a finite number, with a point or a decimal comma."""
    return _number(text.replace(",", ".")) is not None


def is_time(text: str) -> bool:
    """Whether a text is a number or a time in ISO 8601."""
    return is_number(text) or _nanoseconds(text) is not None


def shorten(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else text[:90] + " ..." + text[-1]
