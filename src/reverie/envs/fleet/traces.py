"""Recorded requests: cutting them, scaling them to a load, describing them.

A trace is two columns of numbers on the host, in NumPy: when each job arrives and how much work it brings. How files
are read is in `formats/`. How a trace becomes the workload of a simulated fleet is not decided here, nor is how its
description is drawn or printed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from reverie.envs.fleet.records import TraceError
from reverie.ranges import Positive, checked


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise TraceError(f"{name} is {value}: expected a finite number above 0")


@dataclass(frozen=True)
@checked
class TokenCost:
    """Work of a request to a language model: context / prefill_rate + generated / decode_rate.

    The work is in seconds on a server of speed 1. The rates are our cost model, not a property of any trace.
    """

    prefill_rate: Positive = 5000.0
    """Tokens of context that a server of speed 1 reads per second."""
    decode_rate: Positive = 40.0
    """Tokens that a server of speed 1 generates per second."""

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
    provenance: tuple[tuple[str, str], ...] = ()
    """How it was read and what was done to it: names and what is to be said of each."""

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

    def halves(self) -> tuple["Trace", "Trace"]:
        """The first half of the jobs, to train on, and the second, to be examined on.

        Raises:
            TraceError: there is one job only.
        """
        if len(self.arrival) < 2:
            raise TraceError(
                f"trace {self.name} has {len(self.arrival)} job: expected two at least, to make two halves"
            )
        middle = len(self.arrival) // 2
        return (
            replace(self.part(slice(0, middle)), name=f"{self.name} (first half)"),
            replace(self.part(slice(middle, None)), name=f"{self.name} (second half)"),
        )

    def between(self, start: float = 0.0, end: float = math.inf) -> "Trace":
        """The jobs that arrive from `start` on and before `end`, in seconds from the first arrival.

        Raises:
            TraceError: no job arrives then.
        """
        inside = (self.arrival >= start) & (self.arrival < end)
        if not inside.any():
            raise TraceError(
                f"trace {self.name} has no job from {start:g} to {end:g} s: expected a stretch of its {self.span:g} s"
            )
        if inside.all():
            return self
        said = f"{inside.sum():,} of {len(inside):,} jobs, from {start:g} s to {min(end, self.span):g} s"
        part = self.part(slice(int(inside.argmax()), int(inside.argmax() + inside.sum())))
        return replace(part, provenance=(*self.provenance, ("stretch", said)))

    def part(self, jobs: slice) -> "Trace":
        """Some of the jobs, as a trace of its own."""
        columns = {column: values[jobs] for column, values in self.columns.items()}
        return replace(self, arrival=self.arrival[jobs] - self.arrival[jobs][0], work=self.work[jobs], columns=columns)


class Failed(NamedTuple):
    """Requests (F) of which only that they were at a server is to be used."""

    server: Int64[np.ndarray, " F"]
    sent: Float64[np.ndarray, " F"]
    ended: Float64[np.ndarray, " F"]

    def at(self, server: int) -> tuple[Float64[np.ndarray, " *"], Float64[np.ndarray, " *"]]:
        """When those of one server were sent, and ended."""
        mine = self.server == server
        return self.sent[mine], self.ended[mine]


NONE_FAILED = Failed(np.empty(0, np.int64), np.empty(0), np.empty(0))


class Requests(NamedTuple):
    """What a balancer's log tells of J requests, in order of arrival; times in seconds from the first arrival."""

    servers: tuple[str, ...]
    """Names (N)."""
    server: Int64[np.ndarray, " J"]
    """Which of them each was sent to."""
    arrival: Float64[np.ndarray, " J"]
    """When it came to the balancer."""
    sent: Float64[np.ndarray, " J"]
    """When it was sent to the server."""
    ended: Float64[np.ndarray, " J"]
    resolution: float
    """Seconds to which times are written."""
    name: str
    """What reports call the log."""
    provenance: tuple[tuple[str, str], ...] = ()
    """How it was read, as of a `Trace`."""
    failed: Failed = NONE_FAILED
    """Those that a server answered with an error (5xx), which are none of the J."""

    def part(self, jobs: slice) -> "Requests":
        """Some of them, with times as they were."""
        sent = self.sent[jobs]
        meanwhile = (self.failed.sent >= sent.min()) & (self.failed.sent <= sent.max())
        failed = Failed(*(each[meanwhile] for each in self.failed))
        return self._replace(
            server=self.server[jobs], arrival=self.arrival[jobs], sent=sent, ended=self.ended[jobs], failed=failed
        )


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


class Tenths(NamedTuple):
    """A trace in ten parts of as many jobs each: where its work comes, and how fast."""

    edges: Float64[np.ndarray, " 11"]
    """Where they begin and end, in seconds from the first arrival."""
    load: Float64[np.ndarray, " 10"]
    """Work per second in each over that of the whole trace: by how much a load that is asked for is missed there."""

    @property
    def unsteady(self) -> bool:
        """Whether no single load describes the trace: half of the jobs, or three tenths, meet another one.

        The limit is a factor of 1.5, which a tenth of an hour of Azure's traces keeps, ramps and days do not.
        """
        off = (self.load > _STEADY) | (self.load < 1 / _STEADY)
        return bool(off.sum() >= 3 or not 1 / _STEADY <= np.median(self.load) <= _STEADY)

    def steady_stretch(self) -> tuple[float, float]:
        """From where to where, in seconds, loads lie within a factor of 1.5 of that which most jobs meet."""
        middle = np.median(self.load)
        inside = (self.load <= _STEADY * middle) & (self.load >= middle / _STEADY)
        runs = [list(run) for kept, run in groupby(range(len(inside)), key=lambda k: inside[k]) if kept]
        longest = max(runs, key=len)
        return float(self.edges[longest[0]]), float(self.edges[longest[-1] + 1])

    def warning(self) -> str:
        """What to say of an unsteady trace, and what can be done."""
        low, middle, high = (float(f(self.load)) for f in (np.min, np.median, np.max))
        start, end = self.steady_stretch()
        bounds = [f"--from {start:.10g}"] if start > 0 else []
        bounds += [f"--to {end:.10g}"] if end < self.edges[-1] else []
        cut = f"`{' '.join(bounds)}` keeps a steady stretch; " if bounds and start < end else ""
        return (
            f"the load is not steady: in tenths of the jobs it is {low:.2g} to {high:.2g} times that of the whole, and "
            f"half of the jobs meet {middle:.2g} times or more, so one load for all of it is true of few. {cut}"
            "`--load-per-window` brings every episode to the load that is asked for"
        )


_STEADY = 1.5


def tenths(trace: Trace) -> Tenths | None:
    """The load over a trace; None where it has fewer than 100 jobs, of which chance alone would make any tenth uneven.

    Raises:
        TraceError: all jobs arrive at the same time.
    """
    _require_span(trace)
    if len(trace.work) < 100:
        return None
    borders = np.linspace(0, len(trace.work) - 1, 11).astype(int)
    edges = trace.arrival[borders]
    work = np.diff(np.concatenate([[0.0], np.cumsum(trace.work)])[borders])
    with np.errstate(divide="ignore"):  # a tenth that arrives at one moment
        return Tenths(edges, work / np.diff(edges) * (trace.span / trace.work.sum()))


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
