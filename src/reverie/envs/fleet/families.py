"""Named families of tasks, and the means to make one from levels, a trace or measured speeds.

A family draws a task from a generator. All tasks of a family have the same shapes, so they stack into one batch.
The numbers are our choice: those of Redovian (2025) are not public. Park's ten speeds sum to 6 and its sizes have mean
300, so Poisson arrivals `interval` apart offer a load of 50 / interval.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from reverie.envs.core import TaskFamily
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import (
    Fleet,
    Others,
    Task,
    constant_speeds,
    fleet_task,
    stack_fleets,
)
from reverie.envs.fleet.load import PARK_SPEEDS, capacity_met, positive_load
from reverie.envs.fleet.measured import draw_fleet, read_speeds, speed_paths
from reverie.envs.fleet.pools import llm, shared, workers
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.traces import Trace, scale_to_load
from reverie.envs.fleet.workload import Sizes

PARK_MEAN_SIZE = 300.0
"""Mean of Park's Pareto sizes (shape 1.5, scale 100), in work units."""
INTERVALS = {"easy": 110.0, "medium": 75.0, "hard": 55.0, "overload": 45.0}
"""Mean gap between arrivals: offered load 0.455, 0.667, 0.909 (Park's default) and 1.111."""


def park_sizes() -> Sizes:
    return workloads.pareto(shape=1.5, scale=100.0)


def level(interval: float) -> TaskFamily:
    """Park's fleet and sizes under Poisson arrivals; every draw is the same task."""

    @cache
    def task() -> Task:  # not before it is wanted: to import this module computes nothing
        return fleet_task(constant_speeds(PARK_SPEEDS), workloads.poisson(interval, park_sizes()))

    return lambda rng: task()


def mixed(rng: np.random.Generator) -> Task:
    """Easy, medium or hard, each as likely: to train on all three at once."""
    return _MIXTURE[rng.integers(len(_MIXTURE))](rng)


_MIXTURE = [level(INTERVALS[name]) for name in ("easy", "medium", "hard")]


def drift(rng: np.random.Generator) -> Task:
    """Which server is fast changes two to four times in an episode of 1,000 jobs, at load 0.667; half of the time one
    fails and comes back. A rule that knows the speeds stays stable; one that trusts those of the start does not."""
    changes = rng.integers(2, 5)
    times = np.sort(rng.uniform(0, 75_000, changes))
    start = np.concatenate([[0.0], times])
    speeds = np.stack([rng.permutation(PARK_SPEEDS) for _ in start], -1)  # [N, P]
    if rng.random() < 0.5:
        server, fails = rng.integers(len(PARK_SPEEDS)), rng.uniform(0, 60_000)
        start, speeds = _cut(start, speeds, fails, fails + 5_000)
        speeds[server, (start >= fails) & (start < fails + 5_000)] = 0.0
    start, speeds = _padded(start, speeds, segments=7)
    speed = schedules.stack([schedules.schedule(start, row) for row in speeds])
    return fleet_task(speed, workloads.poisson(INTERVALS["medium"], park_sizes()))


def burst(rng: np.random.Generator) -> Task:
    """A third of the time arrivals come three times as fast, at load 1.25, for about 50 jobs; the mean load is 0.69."""
    workload = workloads.modulated((120.0, 40.0), (4_000.0, 2_000.0), park_sizes(), rng)
    return fleet_task(constant_speeds(PARK_SPEEDS), workload)


def diurnal(rng: np.random.Generator) -> Task:
    """Load 0.667 on average, from 0.33 to 1.0 over a day of about 330 jobs; the hour at the start is drawn."""
    workload = workloads.diurnal(INTERVALS["medium"], swing=0.5, day=25_000.0, sizes=park_sizes())
    shift = rng.integers(workload.rate.value.shape[0])
    rate = workload.rate._replace(value=jnp.asarray(np.roll(workload.rate.value, -shift)))
    return fleet_task(constant_speeds(PARK_SPEEDS), workload._replace(rate=rate))


def unlike(loads: tuple[float, float] = (0.3, 1.0), ratios: tuple[float, float] = (1.0, 10.0)) -> TaskFamily:
    """Load and speeds' spread (the fastest over the slowest, at most) from these ranges, tail shape in [1.4, 2.5], half
    of the tasks bursty: to train on.

    The speeds sum to 6 and the sizes have mean 300, as Park's do, whatever is drawn.
    """

    def draw(rng: np.random.Generator) -> Task:
        load, shape, ratio = rng.uniform(*loads), rng.uniform(1.4, 2.5), rng.uniform(*ratios)
        speeds = ratio ** rng.uniform(0, 1, len(PARK_SPEEDS))
        speeds *= PARK_SPEEDS.sum() / speeds.sum()
        sizes = workloads.pareto(shape, PARK_MEAN_SIZE * (shape - 1) / shape)
        interval = PARK_MEAN_SIZE / (load * PARK_SPEEDS.sum())
        # The mean rate is 1 / interval: a third of the time `peak` times the rate of the rest.
        peak = rng.uniform(2, 4) if rng.random() < 0.5 else 1.0
        slow = interval * (2 + peak) / 3
        workload = workloads.modulated((slow, slow / peak), (4_000.0, 2_000.0), sizes, rng)
        return fleet_task(constant_speeds(speeds), workload)

    return draw


def shifting(rng: np.random.Generator) -> Task:
    """Servers up to tenfold apart at load 0.4 to 0.95 whose speeds do not stay: to train on where speeds are hidden.

    Half of the time all servers change places up to eight times in 1,000 jobs, the other half each wanders by steps of
    about a quarter. The speeds sum to 6 at any time.
    """
    load, ratio, segments = rng.uniform(0.4, 0.95), rng.uniform(1.0, 10.0), 25
    interval = PARK_MEAN_SIZE / (load * PARK_SPEEDS.sum())
    start = np.arange(segments) * (1000 * interval / segments)
    value = rng.uniform(0, 1, len(PARK_SPEEDS))[:, None] * np.log(ratio)  # [N, P] logarithms
    if rng.random() < 0.5:
        after = np.sort(rng.integers(1, segments, rng.integers(9)))
        orders = np.stack([rng.permutation(len(value)) for _ in range(1 + len(after))])
        value = value[orders[np.searchsorted(after, np.arange(segments), side="right")].T, 0]
    else:
        value = value + np.cumsum(rng.normal(0, 0.25, (len(value), segments)), 1)
    speeds = np.exp(value)
    speeds *= PARK_SPEEDS.sum() / speeds.sum(0)
    speed = schedules.stack([schedules.schedule(start, row) for row in speeds])
    return fleet_task(speed, workloads.poisson(interval, park_sizes()))


def neighbours(rng: np.random.Generator) -> Task:
    """Park's fleet at load 0.5 to 0.9, of which other balancers bring 20 to 45 points that nobody counts: each server
    has its own part of them, up to eight times as much of its speed as another's."""
    theirs, ours = rng.uniform(0.2, 0.45), rng.uniform(0.3, 0.45)
    rate = PARK_SPEEDS.sum() / PARK_MEAN_SIZE  # jobs per time unit of load 1
    weights = PARK_SPEEDS * rng.uniform(0.2, 1.6, len(PARK_SPEEDS))
    task = fleet_task(constant_speeds(PARK_SPEEDS), workloads.poisson(1 / (ours * rate), park_sizes()))
    return task._replace(others=Others(jnp.float32(theirs * rate), jnp.asarray(weights, jnp.float32), park_sizes()))


def calm_sizes() -> Sizes:
    """As large as Park's in the mean, but of squared CV 1, where those have no finite variance."""
    return workloads.lognormal(mean=PARK_MEAN_SIZE, scv=1.0)


def levels(
    intervals: Sequence[float] = tuple(INTERVALS.values()),
    jobs: int = 1000,
    changes: int = 3,
    sizes: Callable[[], Sizes] = park_sizes,
) -> TaskFamily:
    """Park's fleet under a load that changes `changes` times at unknown moments of an episode of `jobs` jobs.

    Each stretch has one of the mean gaps `intervals`, never that of the stretch before.
    """
    if len(intervals) < 2 or changes < 1 or jobs < 1:
        raise ValueError(f"levels: two intervals, one change and one job at least; got {intervals}, {changes}, {jobs}")

    def draw(rng: np.random.Generator) -> Task:
        order = [rng.integers(len(intervals))]
        for _ in range(changes):
            order.append((order[-1] + rng.integers(1, len(intervals))) % len(intervals))
        gaps = np.asarray(intervals, float)[order]
        # Borders in jobs, at least a twentieth of the episode apart, turned into times by the gaps between them.
        share = rng.dirichlet(np.ones(changes + 1)) * (1 - 0.05 * (changes + 1)) + 0.05
        start = np.concatenate([[0.0], np.cumsum(share * jobs * gaps)[:-1]])
        return fleet_task(constant_speeds(PARK_SPEEDS), workloads.stepped(start, gaps, sizes()))

    return draw


FAMILIES: dict[str, TaskFamily] = {name: level(interval) for name, interval in INTERVALS.items()} | {
    "mixed": mixed,
    "drift": drift,
    "burst": burst,
    "diurnal": diurnal,
    "continuous": unlike(),
    "shifting": shifting,
    "neighbours": neighbours,
    "workers": workers,
    "shared": shared,
    "llm": llm,
    "levels": levels(),
    "calm": levels(sizes=calm_sizes),
}


def family(name: str) -> TaskFamily:
    """The family of that name; ValueError that lists them where there is none."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown task family {name!r}: {hint}the known ones are {', '.join(FAMILIES)}")
    return FAMILIES[name]


type Load = float | Literal["recorded"]
"""The offered load that a trace is brought to by stretching its clock, or that which its own clock gives."""


def at_load(trace: Trace, load: Load, total_speed: float) -> Trace:
    """The trace at an offered load of servers of this speed together, or as it was recorded."""
    return trace if load == "recorded" else scale_to_load(trace, load, total_speed)


def traced(
    trace: Trace,
    load: Load,
    jobs: int,
    fleet: Fleet | None = None,
    per_window: bool = False,
) -> TaskFamily:
    """Windows of `jobs` consecutive jobs of a trace on `fleet`, or Park's, at the offered load of the whole trace or,
    with `per_window`, each at that load.

    Times in `fleet` are seconds of the trace after its clock was scaled to the load, counted from the beginning of each
    window; where its capacity changes, the load is that of a window on average.

    Work and clock are both scaled so that the mean job brings 300 work units, which changes nothing but the units
    (speeds stay): an agent trained on such jobs sees the sizes it knows. `trace_unit` leads back to the trace's units.
    Errors: ValueError where the trace is shorter than `jobs`, the load is not positive, or all jobs arrive at once, in
    the trace or in a window that has a load of its own; or windows of a trace as recorded are to have one.
    """
    tasks = _window_at(trace, load, jobs, fleet, per_window)

    def draw(rng: np.random.Generator) -> Task:
        return tasks(int(rng.integers(len(trace.arrival) - jobs + 1)))

    return draw


def windows(
    trace: Trace, load: Load, jobs: int, fleet: Fleet | None = None, per_window: bool = False
) -> Iterator[Task]:
    """Disjoint windows of a trace from its first job on, as `traced` makes them; what is left over is no window.

    Errors: as for `traced`.
    """
    return map(_window_at(trace, load, jobs, fleet, per_window), range(0, len(trace.arrival) - jobs + 1, jobs))


def _window_at(trace: Trace, load: Load, jobs: int, fleet: Fleet | None, per_window: bool) -> Callable[[int], Task]:
    if per_window and load == "recorded":
        raise ValueError("a load per window changes the clock, and a recorded load keeps it; choose one")
    if not 1 <= jobs <= len(trace.arrival):
        raise ValueError(f"traced: jobs must lie in [1, {len(trace.arrival)}], the length of {trace.name}; got {jobs}")
    unit = trace_unit(trace)
    work = trace.work * unit
    if fleet is None:
        fleet, total = Fleet.constant(PARK_SPEEDS), float(PARK_SPEEDS.sum())
    else:
        speed = fleet.speed._replace(start=fleet.speed.start * unit, period=fleet.speed.period * unit)
        fleet = fleet._replace(speed=speed)
        one = fleet.task(workloads.recorded([1.0], [1.0]))
        total = 1.0 if load == "recorded" else capacity_met(one, jobs * PARK_MEAN_SIZE, positive_load(load))
    gaps = np.diff(at_load(trace, load, total).arrival, prepend=0.0) * unit

    def window(first: int) -> Task:
        taken = slice(first, first + jobs)
        if per_window:
            of_window = np.diff(at_load(trace.part(taken), load, total).arrival, prepend=0.0) * unit
            return fleet.task(workloads.recorded(of_window, work[taken]))
        return fleet.task(workloads.recorded(gaps[taken], work[taken]))

    return window


def trace_unit(trace: Trace) -> float:
    """Work units of a `traced` task for one unit of the trace's work, and time units for one unit of its time."""
    return PARK_MEAN_SIZE / float(trace.work.mean())


def measured(path: Path, servers: int = 10, load: float = 0.667, segments: int = 1, jobs: int = 1000) -> TaskFamily:
    """Fleets of real machines, their speeds scaled to a sum of 6 in the long run, under Park's sizes.

    With one segment each server keeps the speed at which one machine was once measured. With more it goes through that
    many measurements in a row of one machine, again and again; an episode of `jobs` jobs sees them about once.
    Errors: ValueError where the file cannot be read or holds too little, or the load is not positive.
    """
    recording = read_speeds(path)
    workload = workloads.poisson(PARK_MEAN_SIZE / positive_load(load) / PARK_SPEEDS.sum(), park_sizes())
    span = jobs / float(workload.rate.value[0])

    def draw(rng: np.random.Generator) -> Task:
        if segments == 1:
            speed = constant_speeds(draw_fleet(recording, servers, rng))
        else:
            start, value = speed_paths(recording, servers, segments, rng)  # [N, P], in hours
            lasts = start[:, -1] * segments / (segments - 1)  # the last measurement holds as long as the mean one
            tempo = span / lasts.mean()
            rows = zip(start * tempo, value, lasts * tempo, strict=True)
            speed = schedules.stack([schedules.schedule(*row) for row in rows])
        total = sum(schedules.mean(Schedule(*row)) for row in zip(*speed, strict=True))
        return fleet_task(speed._replace(value=speed.value * (PARK_SPEEDS.sum() / total)), workload)

    return draw


def draw_tasks(draw: Callable[[np.random.Generator], Task], count: int, seed: int) -> Task:
    """`count` tasks of a family [K, ...], each from its own stream: a longer pool begins with a shorter one."""
    return stack_fleets([draw(np.random.default_rng((seed, i))) for i in range(count)])


def _cut(start: np.ndarray, speeds: np.ndarray, *borders: float) -> tuple[np.ndarray, np.ndarray]:
    """Add borders to a schedule without changing it."""
    everything = np.union1d(start, borders)
    return everything, speeds[:, np.searchsorted(start, everything, side="right") - 1]


def _padded(start: np.ndarray, speeds: np.ndarray, segments: int) -> tuple[np.ndarray, np.ndarray]:
    extra = segments - len(start)
    return np.append(start, [start[-1]] * extra), np.concatenate([speeds, np.repeat(speeds[:, -1:], extra, 1)], 1)
