"""What agents are examined on: the trials that every verdict rests on, and their results in the units of their source.

A `Setting` is a set of episodes: of a task family, or windows of a trace. `examine` plays the standard and adaptive
trials of all settings. Comparing the results is `statistics.py`, choosing the agents is done elsewhere.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from reverie.envs.fleet.env import Task
from reverie.envs.fleet.families import draw_tasks, family, levels, trace_unit, traced, with_load
from reverie.envs.fleet.traces import Trace
from reverie.evaluate import trials
from reverie.evaluate.opponents import opponents
from reverie.evaluate.trials import Contestant, Tables
from reverie.tables import Row
from reverie.train.config import stream_seed

STANDARD = ("easy", "medium", "hard")
"""The families of standard trials."""
ADAPTIVE = "levels"
"""What tasks of adaptive trials are called."""

_TIMES = ("mean", "median", "p95", "p99", "mean_size")
"""Columns of results that are in the units of the tasks; slowdowns are ratios of work to work."""


@dataclass(frozen=True)
class Exam:
    """How many episodes, how long, and of what random numbers."""

    episodes: int = 200
    """Evaluation episodes of each task; at least 200 for a claim."""
    jobs: int = 1000
    """Length of an episode in jobs."""
    seed: int = 0
    """Of tasks and jobs; all contestants meet the same."""

    def __post_init__(self):
        if self.episodes < 2:
            raise ValueError(f"episodes must be at least 2, for an interval; got {self.episodes}")
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


class Setting(NamedTuple):
    """The episodes of one task."""

    name: str
    tasks: Task
    """Leaves [E, ...]."""
    unit: float = 1.0
    """Work and time units of the tasks for one of the source: of a trace, for a second."""


def of_family(name: str, exam: Exam, load: float | None = None) -> Setting:
    """Tasks of a family, at its own load or at another.

    Errors: ValueError for an unknown family or an impossible load.
    """
    draw = family(name)
    if load is None:
        return Setting(name, draw_tasks(draw, exam.episodes, _seed(exam)))
    tasks = draw_tasks(lambda rng: with_load(draw(rng), load), exam.episodes, _seed(exam))
    return Setting(f"{name} at load {load:g}", tasks)


def of_trace(trace: Trace, exam: Exam, load: float) -> Setting:
    """Windows of a trace at an offered load, for Park's fleet; results come in the trace's own seconds.

    Errors: ValueError where the trace is shorter than an episode, or for an impossible load.
    """
    tasks = draw_tasks(traced(trace, load, exam.jobs), exam.episodes, _seed(exam))
    return Setting(f"{trace.name} at load {load:g}", tasks, trace_unit(trace))


def play_standard(setting: Setting, contestants: Sequence[Contestant], exam: Exam) -> Tables:
    """One episode for each of the setting's tasks."""
    tables = trials.standard(contestants, {setting.name: setting.tasks}, _key(exam), exam.jobs)
    return _in_units(tables, setting.unit)


def play_adaptive(
    agents: Sequence[Contestant], exam: Exam, view: trials.View, episodes_of_trial: int = 2
) -> Tables:
    """Trials of Park's fleet under loads that change at unknown moments; the rules play as well."""
    draw = levels(jobs=exam.jobs)
    tasks = draw_tasks(draw, episodes_of_trial * exam.episodes, _seed(exam))
    contestants = [*agents, *opponents(tasks, view)]
    shape = episodes_of_trial, exam.episodes
    tasks = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), tasks)
    return trials.adaptive(contestants, {ADAPTIVE: tasks}, _key(exam), exam.jobs)
