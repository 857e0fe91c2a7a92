"""Recorded requests: reading them, scaling them to a load, describing them, and one workload that imitates them.

A trace is two columns of numbers on the host, in NumPy: when each job arrives and how much work it brings. How a trace
becomes the workload of a simulated fleet is not decided here, nor is how its description is drawn or printed.
"""

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

_SHOWN_BROKEN_LINES = 5
_NANOSECONDS = 10**9


class TraceError(ValueError):
    """A recording that cannot be used; the message names the file, the line and what is wrong."""


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise TraceError(f"{name} is {value}: expected a finite number above 0")


@dataclass(frozen=True)
class TokenCost:
    """Work of a request to a language model: context / prefill_rate + generated / decode_rate.

    The work is in seconds on a server of speed 1. The rates are our cost model, not a property of any trace.
    """

    prefill_rate: float = 5000.0
    """Tokens of context that a server of speed 1 reads per second."""
    decode_rate: float = 40.0
    """Tokens that a server of speed 1 generates per second."""

    def __post_init__(self):
        for name in ("prefill_rate", "decode_rate"):
            _require_positive(f"TokenCost.{name}", getattr(self, name))

    def work(
        self, context_tokens: Float64[np.ndarray, " J"], generated_tokens: Float64[np.ndarray, " J"]
    ) -> Float64[np.ndarray, " J"]:
        """The work of requests with these counts of tokens."""
        return context_tokens / self.prefill_rate + generated_tokens / self.decode_rate


DEFAULT_COST = TokenCost()


@dataclass(frozen=True)
class Trace:
    """J jobs in order of arrival.

    Raises:
        TraceError: there is no job, the columns differ in length, an arrival is earlier than the one before or the
            first is not 0, or a job's work is not finite and above 0.
    """

    name: str
    """What reports call it."""
    arrival: Float64[np.ndarray, " J"]
    """Time of arrival in seconds from the first."""
    work: Float64[np.ndarray, " J"]
    """Work of each job in work units: the time it takes on a server of speed 1."""
    columns: Mapping[str, Float64[np.ndarray, " J"]] = field(default_factory=dict)
    """What the work was computed from, by name; empty where the recording gives the work itself."""

    def __post_init__(self):
        if len(self.arrival) == 0:
            raise TraceError(f"trace {self.name} is empty: expected at least one job")
        if len({len(column) for column in (self.arrival, self.work, *self.columns.values())}) > 1:
            raise TraceError(f"trace {self.name}: the columns differ in length")
        if self.arrival[0] != 0:
            raise TraceError(
                f"trace {self.name}: the first arrival is {self.arrival[0]}; subtract it from all, to be 0"
            )
        backwards = np.flatnonzero(~(np.diff(self.arrival) >= 0) | ~np.isfinite(self.arrival[1:]))
        if len(backwards):
            job = backwards[0] + 1
            raise TraceError(
                f"trace {self.name}: job {job} arrives at {self.arrival[job]}, the one before at "
                f"{self.arrival[job - 1]}; expected finite times in ascending order"
            )
        wrong = np.flatnonzero(~((self.work > 0) & np.isfinite(self.work)))
        if len(wrong):
            raise TraceError(
                f"trace {self.name}: the work of job {wrong[0]} is {self.work[wrong[0]]}; "
                "expected a finite number above 0"
            )

    @property
    def span(self) -> float:
        """Seconds between the first arrival and the last."""
        return float(self.arrival[-1])


# Reading


def read_trace(path: str | Path, cost: TokenCost = DEFAULT_COST) -> Trace:
    """Read a recorded trace, plain or gzipped, in the format that its content shows.

    - CSV with the columns TIMESTAMP (ISO 8601, up to nanoseconds), ContextTokens and GeneratedTokens, as Azure's LLM
      inference traces (Patel et al., Splitwise, ISCA 2024);
    - JSON lines with `timestamp` (milliseconds, or ISO 8601), `input_length` and `output_length` (tokens), as
      Mooncake's traces (Qin et al., FAST 2025);
    - CSV with the columns arrival (seconds) and size (work units); without a header the two columns are in that order.

    Other columns and fields are ignored, blank lines are skipped.

    Args:
        path: the file.
        cost: turns tokens into work; not used where the file gives sizes.

    Raises:
        TraceError: the file is not there, not readable, in no known format, or has broken lines: missing columns,
            values that are no finite numbers or negative, jobs without work, or times that go backwards.
    """
    path = Path(path)
    lines = read_lines(path)
    first = lines[0][1]
    if first.startswith("{"):
        names = ("timestamp", "input_length", "output_length")
        return _token_trace(Records.from_json(path, lines, names), names, cost)
    header = split_csv(first)
    if "TIMESTAMP" in header:
        names = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
        return _token_trace(Records.from_csv(path, header, lines[1:], names), names, cost)
    names = ("arrival", "size")
    if "arrival" in header or "size" in header:
        return _plain_trace(Records.from_csv(path, header, lines[1:], names))
    if len(header) == 2 and all(map(_is_number, header)):
        return _plain_trace(Records.from_csv(path, list(names), lines, names))
    raise TraceError(
        f"{path} is in no known format; its first line is {_shorten(first)}. Expected a CSV file with the header "
        "TIMESTAMP,ContextTokens,GeneratedTokens or arrival,size, or JSON lines with timestamp, input_length and "
        "output_length"
    )


def _token_trace(records: "Records", names: tuple[str, str, str], cost: TokenCost) -> Trace:
    time, context, generated = names
    arrival = records.times(time)
    columns = {"context_tokens": records.numbers(context), "generated_tokens": records.numbers(generated)}
    work = cost.work(**columns)
    records.complain(work == 0, "a request without tokens brings no work")
    records.require_order(arrival)
    records.check()
    return Trace(stem(records.path), arrival, work, columns)


def _plain_trace(records: "Records") -> Trace:
    arrival, work = records.numbers("arrival", least=-math.inf), records.numbers("size")
    records.complain(work == 0, "a size of 0 brings no work")
    records.require_order(arrival)
    records.check()
    return Trace(stem(records.path), arrival - arrival[0], work)


def stem(path: Path) -> str:
    """The name of a file without its endings: `conv` of `conv.csv.gz`."""
    return Path(path.name.removesuffix(".gz")).stem


# Reading, line by line (the public names serve `measured.py` too)


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
                f"{path}: the header {_shorten(','.join(header))} lacks {', '.join(missing)}; "
                f"expected {','.join(names)}"
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
                self._complaints.setdefault(index, f"{name} is {_shorten(value)}, expected {expected}")
        return values

    def times(self, name: str) -> Float64[np.ndarray, " J"]:
        """Seconds from the first time of a column to each; texts are ISO 8601, numbers are milliseconds."""
        ticks: list[int | None] = []
        for index, value in enumerate(self._columns[name]):
            tick = _nanoseconds(value)
            if tick is None:
                self._complaints.setdefault(index, f"{name} is {_shorten(value)}, expected a time such as {_SAMPLE}")
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
            message.append(f"  line {number}: {self._complaints[index]}: {_shorten(text)}")
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:90] + " ..." + text[-1]


# Scaling


def scale_to_load(trace: Trace, load: float, total_speed: float) -> Trace:
    """Stretch or shrink the clock by one constant so that total work / (span * total_speed) = load.

    Gaps keep their proportions and their order, so bursts stay bursts.

    Args:
        load: the offered load to reach; above 1 the fleet falls behind.
        total_speed: sum of the servers' speeds, in work per second.

    Raises:
        TraceError: load or total_speed is not above 0 and finite, or all jobs arrive at the same time.
    """
    _require_positive("load", load)
    _require_positive("total_speed", total_speed)
    _require_span(trace)
    return replace(trace, arrival=trace.arrival * (trace.work.sum() / (load * total_speed * trace.span)))


def _require_span(trace: Trace) -> None:
    if trace.span == 0:
        raise TraceError(
            f"trace {trace.name}: all {len(trace.arrival)} jobs arrive at the same time; "
            "expected at least two different times"
        )


# Describing


@dataclass(frozen=True)
class TraceSummary:
    """Statistics of a trace; NaN where it is too short for one of them."""

    count: int
    """Jobs."""
    span: float
    """Seconds between the first arrival and the last."""
    rate: float
    """Arrivals per second."""
    gap_cv: float
    """Standard deviation of the gaps between arrivals over their mean; 1 for Poisson arrivals."""
    gap_autocorrelation: float
    """Correlation of each gap with the next; 0 for Poisson arrivals."""
    dispersion_1s: float
    """Index of dispersion: variance over mean of the number of arrivals in windows of 1 s; 1 for Poisson arrivals."""
    dispersion_10s: float
    """The same in windows of 10 s."""
    dispersion_60s: float
    """The same in windows of 60 s."""
    peak_to_mean: float
    """Arrivals in the busiest whole minute over those in a mean one."""
    size_mean: float
    """Mean work of a job, in work units."""
    size_cv: float
    """Standard deviation of the work over its mean; 1 for exponential sizes."""
    size_p50: float
    """Median work."""
    size_p90: float
    """90th percentile of the work."""
    size_p99: float
    """99th percentile of the work."""
    size_max: float
    """Largest work."""
    size_tail_index: float
    """Hill's estimate from the largest 5 % of the jobs (at least 200 jobs); at most 2 means a heavy tail."""
    size_top_share: float
    """Share of all work that is in the largest 1 % of the jobs (at least one job)."""

    @property
    def size_c2(self) -> float:
        """Squared coefficient of variation of the work."""
        return self.size_cv**2

    @property
    def work_rate(self) -> float:
        """Work per second: how many servers of speed 1 the trace keeps busy."""
        return self.rate * self.size_mean


def describe(trace: Trace) -> TraceSummary:
    """Summarise when the jobs of a trace arrive and how large they are.

    Raises:
        TraceError: all jobs arrive at the same time.
    """
    _require_span(trace)
    gaps, work = np.diff(trace.arrival), trace.work
    counts, minutes = _window_counts(trace.arrival, 60.0)
    p50, p90, p99 = np.percentile(work, [50, 90, 99]).tolist()
    return TraceSummary(
        count=len(work),
        span=trace.span,
        rate=len(work) / trace.span,
        gap_cv=float(gaps.std() / gaps.mean()),
        gap_autocorrelation=_correlation(gaps[:-1], gaps[1:]),
        dispersion_1s=_dispersion(trace.arrival, 1.0),
        dispersion_10s=_dispersion(trace.arrival, 10.0),
        dispersion_60s=_dispersion(trace.arrival, 60.0),
        peak_to_mean=float(counts.max() * minutes / counts.sum()) if minutes > 0 else math.nan,
        size_mean=float(work.mean()),
        size_cv=float(work.std() / work.mean()),
        size_p50=p50,
        size_p90=p90,
        size_p99=p99,
        size_max=float(work.max()),
        size_tail_index=_tail_index(work),
        size_top_share=float(np.sort(work)[-max(1, len(work) // 100) :].sum() / work.sum()),
    )


def _window_counts(arrival: Float64[np.ndarray, " J"], window: float) -> tuple[Int64[np.ndarray, " K"], int]:
    """Arrivals in each whole window that has any, and the number of whole windows."""
    windows = int(arrival[-1] // window)
    _, counts = np.unique(arrival[arrival < windows * window] // window, return_counts=True)
    return counts, windows


def _dispersion(arrival: Float64[np.ndarray, " J"], window: float) -> float:
    counts, windows = _window_counts(arrival, window)
    if windows < 2:
        return math.nan
    mean = counts.sum() / windows
    return float((np.sum(counts**2) - windows * mean**2) / (windows - 1) / mean)


def _correlation(a: Float64[np.ndarray, " K"], b: Float64[np.ndarray, " K"]) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _tail_index(work: Float64[np.ndarray, " J"]) -> float:
    """Hill (1975): the inverse of the mean log excess of the largest 5 % over the next largest."""
    k = len(work) // 20
    if k < 10:
        return math.nan
    largest = np.sort(work)[-k - 1 :]
    excess = np.log(largest[1:] / largest[0]).mean()
    return float(1 / excess) if excess > 0 else math.nan


# A workload of our own


@dataclass(frozen=True)
class _Stream:
    """Poisson arrivals whose rate is redrawn at random times: gamma distributed, held for exponential times."""

    share: float  # of all arrivals
    level_cv: float  # of the rate
    mean_hold: float  # seconds


_CONVERSATION_RATE = 5.53  # arrivals per second
_CONVERSATION_STREAMS = (
    _Stream(share=0.5, level_cv=0.48, mean_hold=80.0),  # the tide: dispersion that still grows at 60 s
    _Stream(share=0.5, level_cv=0.36, mean_hold=0.7),  # the ripple: dispersion within seconds
)
_CONTEXT_MEAN, _CONTEXT_CV = 1155.0, 0.96  # tokens
_LONG_ANSWERS = 0.34  # share of the requests
_SHORT_MEAN, _SHORT_CV = 101.0, 0.46  # tokens generated for the others
_LONG_MEAN, _LONG_CV = 422.0, 0.17  # tokens generated for these


def conversation_like(num_jobs: int, seed: int) -> Trace:
    """Make a workload with the statistics of Azure's conversation trace of 2023, for use without a recording.

    The model is ours, fitted to published statistics (Patel et al., Splitwise, ISCA 2024): 5.5 arrivals per second
    with gap CV about 1.09 and index of dispersion about 1.4, 4 and 16 in windows of 1, 10 and 60 s (in the mean over
    seeds: an hour holds few turns of the tide); on average 1155 tokens of context (lognormal, CV 0.96) and 210
    generated (short or long answers, CV 0.77), independent of one another; work by `TokenCost()`, mean 5.5, squared
    CV 0.54. Arrivals are a sum of two Poisson streams whose rates are redrawn every 80 s and 0.7 s on average.

    Args:
        num_jobs: J, at least 1.
        seed: of the random numbers, at least 0.

    Raises:
        TraceError: num_jobs or seed is too small.
    """
    if num_jobs < 1:
        raise TraceError(f"num_jobs is {num_jobs}: expected at least 1")
    if seed < 0:
        raise TraceError(f"seed is {seed}: expected at least 0")
    rng = np.random.default_rng(seed)
    first, second = _CONVERSATION_STREAMS
    of_first = round(first.share * num_jobs)
    arrival = np.sort(
        np.concatenate(
            [
                _modulated_poisson(of_first, first, rng),
                _modulated_poisson(num_jobs - of_first, second, rng),
            ]
        )
    )
    context = np.ceil(_lognormal(_CONTEXT_MEAN, _CONTEXT_CV, num_jobs, rng))
    long = rng.random(num_jobs) < _LONG_ANSWERS
    generated = np.ceil(
        np.where(long, _gamma(_LONG_MEAN, _LONG_CV, num_jobs, rng), _gamma(_SHORT_MEAN, _SHORT_CV, num_jobs, rng))
    )
    columns = {"context_tokens": context, "generated_tokens": generated}
    return Trace("conversation-like", arrival - arrival[0], DEFAULT_COST.work(context, generated), columns)


def _modulated_poisson(count: int, stream: _Stream, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    """`count` arrival times, unsorted, of a stream over the time in which it has that many on average.

    Given their number, the arrivals of such a stream are independent, with a density in proportion to the rate.
    """
    span = count / (stream.share * _CONVERSATION_RATE)
    redrawn = rng.uniform(0, span, rng.poisson(span / stream.mean_hold))
    edges = np.concatenate([[0.0], np.sort(redrawn), [span]])
    levels = _gamma(1.0, stream.level_cv, len(edges) - 1, rng)
    expected = np.concatenate([[0.0], np.cumsum(levels * np.diff(edges))])
    return np.interp(rng.uniform(0, expected[-1], count), expected, edges)


def _gamma(mean: float, cv: float, count: int, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    return rng.gamma(cv**-2, mean * cv**2, count)


def _lognormal(mean: float, cv: float, count: int, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    variance = math.log1p(cv**2)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
