"""Reading a trace from a file of any known format: see the table in docs/traces.md."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from reverie.envs.fleet.formats import (
    azure_functions,
    azure_llm,
    burstgpt,
    columns,
    envoy,
    haproxy,
    mooncake,
    nginx,
    plain,
    swf,
    vidur,
    wikibench,
)
from reverie.envs.fleet.formats.core import Jobs, Line, Text
from reverie.envs.fleet.records import Fault, TraceError, Unit, read_lines, shorten, split_json, stem
from reverie.envs.fleet.traces import DEFAULT_COST, Failed, Requests, TokenCost, Trace
from reverie.ranges import PositiveOrNone, Weight, checked

_READERS = (
    mooncake.read,
    azure_llm.read,
    burstgpt.read,
    vidur.read,
    azure_functions.read,
    swf.read,
    nginx.read,
    haproxy.read,
    envoy.read,
    wikibench.read,
    plain.read,
)
"""Asked in this order whether a file is theirs."""
_LONGEST = 100 * 365 * 86_400.0
"""Seconds: what is longer has broken times or another unit."""


@dataclass(frozen=True)
@checked
class Reading:
    """How the file of a trace is read, where it does not say so itself."""

    unit: Unit | None = None
    """Unit of arrival times, where the file does not show it."""
    columns: str | None = None
    """Which columns are read, for a file of no known format: arrival=NAME,size=NAME,unit=ms; or context=NAME and
    generated=NAME (tokens) instead of a size; for `reverie fit` server=NAME too, where sizes are how long it took.
    Columns without names are counted from 1."""
    drop: str = ""
    """Leave lines out, and count them: zero (jobs without work), broken (lines that cannot be read), or zero,broken."""
    sort: bool = False
    """Put lines in order of time, and count those that were not."""

    start: Annotated[Weight, tyro.conf.arg(name="from")] = 0.0
    """Only jobs that arrive so many seconds after the first, or later."""
    end: Annotated[PositiveOrNone, tyro.conf.arg(name="to")] = None
    """Only jobs that arrive fewer seconds after the first."""

    def __post_init__(self):
        if self.end is not None and self.start >= self.end:
            raise TraceError(f"--from {self.start:g} --to {self.end:g}: expected from < to, in seconds")
        for word in self._dropped:
            if word not in ("zero", "broken"):
                raise TraceError(f"--drop {self.drop}: expected zero, broken or zero,broken; got {word!r}")
        if self.columns is not None:
            said = columns.unit_of(columns.parse_columns(self.columns), "unit")
            if None not in (said, self.unit) and said != self.unit:
                raise TraceError(f"--unit {self.unit} and --columns unit={said} disagree: give one of them")

    def cut(self, trace: Trace) -> Trace:
        """The stretch of a trace that is asked for."""
        return trace.between(self.start, math.inf if self.end is None else self.end)

    @property
    def _dropped(self) -> list[str]:
        return [word.strip() for word in self.drop.split(",") if word.strip()]

    @property
    def forgiven(self) -> set[Fault]:
        """Faults of lines that do not stop the reading."""
        faults: tuple[Fault, ...] = ("zero", "broken")
        return {fault for fault in faults if fault in self._dropped} | ({"order"} if self.sort else set())


AS_IT_IS = Reading()
"""Nothing but what the file says."""


def read_trace(path: str | Path, cost: TokenCost = DEFAULT_COST, reading: Reading = AS_IT_IS) -> Trace:
    """Read a recorded trace, plain or packed, in the format that its content shows or `reading` says.

    Columns and fields that are not needed are ignored, blank lines are skipped.

    Args:
        path: the file.
        cost: turns tokens into work; not used where the file gives sizes.
        reading: what the file does not say, and which faults are forgiven.

    Raises:
        TraceError: the file is not there, not readable, too large, in no known format, of an unknown unit of time, or
            has broken lines: missing columns, values that are no finite numbers or negative, jobs without work, or
            times that go backwards.
    """
    jobs, sound, order, provenance = _read([Path(path)], cost, reading)
    seconds = jobs.seconds[sound][order]
    columns = {name: values[sound][order] for name, values in jobs.columns.items()}
    return reading.cut(Trace(stem(Path(path)), seconds - seconds[0], jobs.work[sound][order], columns, provenance))


def read_requests(paths: Sequence[Path], reading: Reading = AS_IT_IS) -> Requests:
    """What a balancer's log, or several of one format, tell of requests and who served them.

    Requests that a server answered with an error (5xx) are kept apart: they were there, and their works mean nothing.

    Raises:
        TraceError: as for `read_trace`; the log does not name servers, or its times are too coarse.
    """
    jobs, sound, _, provenance = _read(paths, DEFAULT_COST, reading)
    files = _listed(paths)
    if (served := jobs.served) is None:
        raise TraceError(
            f"{files}, {jobs.format}, does not say which server served a request, so it tells nothing of a fleet; "
            "expected a log of HAProxy or Envoy, one of nginx with upstream=$upstream_addr "
            "urt=$upstream_response_time msec=$msec, or --columns arrival=NAME,size=NAME,server=NAME. "
            "Or say your servers: reverie fit FILE --fleet fleet.toml"
        )
    since = served.came - jobs.seconds[sound].min()
    within = sound & (since >= reading.start) & (since < (math.inf if reading.end is None else reading.end))
    rows = np.flatnonzero(within & ~served.failed)
    rows = rows[np.argsort(served.came[rows], kind="stable")]
    if len(rows) == 0:
        raise TraceError(f"{files} has no request in this stretch that a server answered without an error")
    middle = float(np.median(served.ended[rows] - served.sent[rows]))
    if served.resolution > middle:
        raise TraceError(
            f"{files} has times to {served.resolution:g} s, and half of its requests took {middle:.3g} s or less: "
            "how many were at a server at once cannot be seen. For nginx, add msec=$msec to log_format"
        )
    all_names = np.array(served.server, object)
    names, server = np.unique(all_names[rows].astype(str), return_inverse=True)
    times = (each[rows] - served.came[rows[0]] for each in (served.came, served.sent, served.ended))
    errors = np.flatnonzero(within & served.failed)
    errors = errors[np.isin(all_names[errors].astype(str), names)]
    there = Failed(
        np.searchsorted(names, all_names[errors].astype(str)),
        *(each[errors] - served.came[rows[0]] for each in (served.sent, served.ended)),
    )
    if failed := int(served.failed[sound].sum()):
        stay = np.where(sound, served.ended - served.sent, 0.0)
        part = stay[served.failed].sum() / max(stay.sum(), 1e-9)
        said = f"{failed:,} of {sound.sum():,}, {part:.1%} of the time at servers"
        provenance += (("errors of servers (5xx)", f"{said}: counted as there, not as works"),)
    return Requests(tuple(map(str, names)), server, *times, served.resolution, stem(paths[0]), provenance, there)


def _read(
    paths: Sequence[Path], cost: TokenCost, reading: Reading
) -> tuple[Jobs, np.ndarray, np.ndarray, tuple[tuple[str, str], ...]]:
    """The lines of files as one: which are sound, the order of these in time, and what is to be said of the reading."""
    named = None if reading.columns is None else columns.parse_columns(reading.columns)
    unit = reading.unit if named is None else reading.unit or columns.unit_of(named, "unit")

    def found(path: Path, lines: list[Line]) -> Jobs:
        text = Text(path, lines, unit, cost)
        return _recognised(text) if named is None else columns.read(text, named)

    texts = [read_lines(path) for path in paths]
    for path, lines in zip(paths, texts, strict=True):
        _refuse_document(path, lines)
    parts = [found(path, lines) for path, lines in zip(paths, texts, strict=True)]
    jobs = parts[0]
    forgiven = reading.forgiven | ({"order"} if jobs.at_the_end or len(paths) > 1 else set())
    if len(paths) > 1:  # what is wrong is said of the file that it is in
        for path, part in zip(paths, parts, strict=True):
            part.records.refuse(forgiven)
            if (part.format, part.records.header) != (jobs.format, jobs.records.header):
                raise TraceError(
                    f"{path} {_looks(part)}, and {paths[0]} {_looks(jobs)}: expected files that look alike"
                )
        jobs = found(paths[0], [*texts[0], *(line for part in parts[1:] for line in part.records.lines)])
    jobs.records.require_order(jobs.seconds)
    sound, counts = jobs.records.check(forgiven)
    seconds = jobs.seconds[sound]
    order = np.argsort(seconds, kind="stable")
    span = float(seconds[order[-1]] - seconds[order[0]])
    if span > _LONGEST:
        raise TraceError(
            f"{_listed(paths)}: it lasts {span:.3g} s, which is {span / (365 * 86_400):,.0f} years; expected "
            "at most 100: is a time broken, or is the unit another (--unit)?"
        )
    provenance = [("format", jobs.format), ("times", jobs.clock)]
    provenance += [("reading", jobs.remark)] if jobs.remark else []
    said: tuple[tuple[Fault, str], ...] = (
        ("broken", "lines dropped that cannot be read"),
        ("zero", "lines dropped that bring no work"),
        ("order", "lines that were not in order of time: sorted"),
    )
    provenance += [(what, f"{counts[fault]:,} of {len(sound):,}") for fault, what in said if fault in counts]
    return jobs, sound, order, tuple(provenance)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _looks(jobs: Jobs) -> str:
    return f"is {jobs.format}" + (f" with the columns {','.join(jobs.records.header)}" if jobs.records.header else "")


def _recognised(text: Text) -> Jobs:
    for read in _READERS:
        if (jobs := read(text)) is not None:
            return jobs
    raise TraceError(
        f"{text.path} is in no known format; its first line is {shorten(text.first)}. Expected a CSV file with the "
        "header TIMESTAMP,ContextTokens,GeneratedTokens or arrival,size, JSON lines with timestamp, input_length and "
        "output_length, or another format of docs/traces.md; any other is read with "
        "--columns arrival=NAME,size=NAME,unit=ms"
    )


def _refuse_document(path: Path, lines: list[tuple[int, str]]) -> None:
    """Raise TraceError for one JSON document over the whole file, of which no line stands for itself."""
    first = lines[0][1]
    whole = re.match(r'\[\s*([{\["]|-?\d+\s*[,.\]]|$)', first) is not None  # logs have dates and words in brackets
    if first.startswith("{") and len(lines) > 1 and not lines[1][1].startswith("{"):
        try:
            split_json(first)
        except TraceError:
            whole = True
    if whole:
        raise TraceError(
            f"{path} is one JSON document: expected JSON lines, one object for each job on a line of its own "
            f"(`jq -c '.[]' {path.name}` makes them of a list)"
        )
