"""What agents are examined on: the trials that every verdict rests on, with results in the units of their source.

A `Setting` is a set of trials on one task; `hold` lets contestants play it. Contestants may come one after another: all
that are examined under one `Exam` meet the same jobs. Comparing the results is `statistics.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax

from reverie.envs.core import stack_tasks
from reverie.envs.fleet.env import Task
from reverie.envs.fleet.families import PARK_SPEEDS, Load, draw_tasks, levels, trace_unit
from reverie.envs.fleet.own import NOTHING_OWN, Own
from reverie.envs.fleet.traces import Trace
from reverie.envs.fleet.weights import USUAL, Proxy, View
from reverie.evaluate import trials
from reverie.evaluate.about import about_trace
from reverie.evaluate.contestants import Contestant, programs
from reverie.evaluate.opponents import AT_FIRST, nominal_speeds, opponents
from reverie.evaluate.trials import Tables, contenders
from reverie.evaluate.watch import Watched, watch
from reverie.ranges import Count, Seed, at_least, checked
from reverie.runs.tuned import load_rule
from reverie.settings.config import stream_seed
from reverie.tables import Row

STANDARD = ("easy", "medium", "hard")
"""The families of standard trials."""
TRACE_LOAD = 0.8
"""The offered load that a trace is brought to where none is asked for."""
EPISODES_OF_A_TRIAL = 2
"""Of an adaptive one; the load changes three times in each."""

MOST_JOBS = 10_000_000
"""Of an examination: they take 10 GB."""

_TIMES = ("mean", "median", "p95", "p99", "mean_size")
"""Columns of results in units of the tasks; slowdowns have none."""


@dataclass(frozen=True)
@checked
class Exam:
    """How many episodes, how long, and of what random numbers."""

    episodes: Annotated[int, *at_least(2, 1_000_000)] = 200
    """Evaluation episodes (trials) of each task; at least 200 for a claim."""
    jobs: Count = 1000
    """Length of an episode in jobs."""
    seed: Seed = 0
    """Of tasks and jobs; all contestants meet the same."""

    def __post_init__(self):
        if (all_jobs := self.episodes * self.jobs) > MOST_JOBS:
            raise ValueError(
                f"Exam: episodes x jobs must be at most {MOST_JOBS:,}, got {self.episodes} x {self.jobs} = {all_jobs:,}"
                ": of each job 50 bytes are kept for each of some 20 contestants"
            )

    @property
    def stream(self) -> int:
        """The seed of tasks and jobs, apart from those of training."""
        return stream_seed(self.seed, "examination")


class Setting(NamedTuple):
    """The trials of one task."""

    name: str
    tasks: Task
    """Leaves [E, ...]; [K, E, ...] in adaptive trials of K episodes."""
    unit: float = 1.0
    """Work and time units of the tasks for one of the source: of a trace, for a second."""
    experiment: Literal["standard", "adaptive"] = "standard"
    windows: int | None = None
    """How many disjoint windows of a recording they are; None where they are drawn independently."""
    about: tuple[str, ...] = ()
    """What is to be known before the results: of a trace, how it is played."""


def of_family(name: str, exam: Exam, load: float | None = None, own: Own = NOTHING_OWN) -> Setting:
    """Tasks of a family, at its own load or at another, with what is the user's own in its place.

    Errors: ValueError for an unknown family or an impossible load.
    """
    tasks = draw_tasks(own.tasks(name, load, exam.jobs), exam.episodes, exam.stream)
    return Setting(own.called(name) + ("" if load is None else f" at load {load:g}"), tasks)


def of_trace(trace: Trace, exam: Exam, load: Load, per_window: bool = False, own: Own = NOTHING_OWN) -> Setting:
    """Disjoint windows of a trace at an offered load, on Park's fleet or the user's; results come in the trace's own
    seconds.

    There are as many as the trace holds, and `exam.episodes` at most: windows that overlap are no independent episodes.
    Errors: ValueError where the trace is shorter than an episode, or for an impossible load.
    """
    tasks = stack_tasks(list(islice(own.windows(trace, load, exam.jobs, per_window), exam.episodes)))
    name = (
        f"{own.called(trace.name)} as recorded" if load == "recorded" else f"{own.called(trace.name)} at load {load:g}"
    )
    name = f"{name} in every window" if per_window else name
    count = tasks.mask.shape[0]
    speeds = PARK_SPEEDS if own.servers() is None else nominal_speeds(tasks)
    about = about_trace(trace, load, exam.jobs, count, per_window, speeds)
    return Setting(name, tasks, trace_unit(trace), windows=count, about=about)


def of_levels(exam: Exam, own: Own = NOTHING_OWN) -> Setting:
    """Adaptive trials: Park's fleet, or the user's, under loads that change at unknown moments."""
    draw = own.tasks(levels(jobs=exam.jobs), None, exam.jobs)
    tasks = draw_tasks(draw, EPISODES_OF_A_TRIAL * exam.episodes, exam.stream)
    axes = EPISODES_OF_A_TRIAL, exam.episodes
    tasks = jax.tree.map(lambda leaf: leaf.reshape(*axes, *leaf.shape[1:]), tasks)
    return Setting(own.called("levels"), tasks, experiment="adaptive")


def all_settings(
    exam: Exam, trace: Trace, load: Load, per_window: bool = False, own: Own = NOTHING_OWN
) -> list[Setting]:
    """Standard trials at three loads, windows of a trace, adaptive trials; with own arrivals, standard trials of these
    and no adaptive ones, as they have a load of their own."""
    played = of_trace(trace, exam, load, per_window, own.on_a_trace)
    if own.arrivals is not None:
        return [of_family(STANDARD[-1], exam, None, own), played]
    return [*(of_family(name, exam, None, own) for name in STANDARD), played, of_levels(exam, own)]


def rules_of(
    setting: Setting, view: View, names: Sequence[str] | None = None, proxy: Proxy = USUAL
) -> list[Contestant]:
    """The classical rules beside agents that see `view`, all of them or those named; a name that is a file is a rule
    that was tuned, called after it. `proxy`, whose weights are set by rules that do and were not tuned."""
    *axes, _ = setting.tasks.mask.shape
    tasks = jax.tree.map(lambda leaf: leaf.reshape(math.prod(axes), *leaf.shape[len(axes) :]), setting.tasks)
    if names is None:
        found = opponents(tasks, view, proxy=proxy)
        return [c for c in found if c.name != AT_FIRST or setting.experiment == "standard"]  # it knows of one episode
    files = [Path(name) for name in names if Path(name).is_file()]
    found = opponents(tasks, view, [name for name in names if Path(name) not in files], proxy)
    for path in files:
        tuned = load_rule(path)
        if tuned.rule.view == "weights" and (own := tuned.config.world.proxy) != proxy:
            raise ValueError(f"{path} was tuned with {own}, and the others are played with {proxy}: give it the same")
        found += contenders({path.stem: tuned.rule}, view, proxy=proxy)
    return found


def hold(setting: Setting, contestants: Sequence[Contestant], exam: Exam, deadline: float | None = None) -> Tables:
    """Let the contestants play the setting's trials; jobs beyond a `deadline` (units of the source) count as late."""
    tasks, key = {setting.name: setting.tasks}, jax.random.key(exam.stream)
    limit = None if deadline is None else deadline * setting.unit
    if setting.experiment == "standard":
        played = trials.standard(contestants, tasks, key, exam.jobs, windows=setting.windows, deadline=limit)
    else:
        played = trials.adaptive(contestants, tasks, key, exam.jobs, deadline=limit)
    return Tables(
        [_in_unit(row, setting.unit, _TIMES) for row in played.results],
        [_in_unit(row, setting.unit, ("response",)) for row in played.responses],
    )


def hold_in_turn(
    setting: Setting,
    contestants: Sequence[Contestant],
    exam: Exam,
    tell: Callable[[str], None],
    deadline: float | None = None,
) -> Tables:
    """`hold`, one compiled program after the other; `tell` is called with who plays next."""
    results, responses, done = [], [], 0
    for members in programs(contestants).values():
        playing = [contestants[number] for number in members]
        names = ", ".join(c.name for c in playing)
        tell(f"{done} of {len(contestants)} have played {setting.name}; now {names}")
        played = hold(setting, playing, exam, deadline)
        results, responses, done = [*results, *played.results], [*responses, *played.responses], done + len(playing)
    return Tables(results, responses)


def bounds(setting: Setting, exam: Exam) -> list[Row]:
    """Result rows for what no policy can go below in standard trials; none for adaptive ones."""
    if setting.experiment != "standard":
        return []
    tasks, key = {setting.name: setting.tasks}, jax.random.key(exam.stream)
    rows = trials.lower_bounds(tasks, key, exam.jobs, windows=setting.windows)
    return [_in_unit(row, setting.unit, _TIMES) for row in rows]


def episode_of(setting: Setting, contestants: Sequence[Contestant], exam: Exam, jobs: int) -> list[Watched]:
    """What the contestants do with the first `jobs` jobs of a task of standard trials, job by job."""
    task = jax.tree.map(lambda leaf: leaf[0], setting.tasks)
    return [watch(c, task, setting.name, jax.random.key(exam.stream), jobs) for c in contestants]


def _in_unit(row: Row, unit: float, columns: Iterable[str]) -> Row:
    return row | {name: value / unit for name in columns if isinstance(value := row[name], float)}
