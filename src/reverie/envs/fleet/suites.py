"""A suite of fleets: four kinds of fleet, each of another size, under four kinds of traffic, to learn all at once.

What is common to them, and what is not, is known by construction: tasks of one row share their fleet, tasks of one
column their traffic. All are at one load, where the mean response times of rules are of one order. The numbers are our
choice; units are those of Park (`families.py`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from reverie.envs.core import Numbered, Suite, suite
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Task, View, constant_speeds, fleet_task, stack_fleets
from reverie.envs.fleet.families import PARK_MEAN_SIZE, calm_sizes, park_sizes
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.workload import Workload

WORK = 6.0
"""Work per time unit that each fleet does in the mean, as Park's does."""


def _shared(speeds: list[float]) -> Schedule:
    return constant_speeds(np.array(speeds) * (WORK / sum(speeds)))


def _failing() -> Schedule:
    """Six equal servers, of which each is down for an eighth of the time, one after the other."""
    count, share, period = 6, 1 / 8, 24_000.0
    speed = WORK / count / (1 - share)
    begins = period * np.arange(count) / count
    return schedules.stack(
        [schedules.schedule([0.0, down, down + share * period], [speed, 0.0, speed], period) for down in begins]
    )


FLEETS: Mapping[str, Callable[[], Schedule]] = MappingProxyType(
    {
        "equal": lambda: _shared([1.0] * 4),
        "two-speeds": lambda: _shared([3.0] * 4 + [1.0] * 4),
        "one-fast": lambda: _shared([7.0] + [1.0] * 9),
        "failing": _failing,
    }
)
"""4 equal servers; 4 three times as fast as 4 others; one as fast as 7 of its 9 others; 6 that fail in turn."""


def _heavy(interval: float, rng: np.random.Generator) -> Workload:
    return workloads.poisson(interval, park_sizes())


def _steady(interval: float, rng: np.random.Generator) -> Workload:
    return workloads.poisson(interval, calm_sizes())


def _bursty(interval: float, rng: np.random.Generator) -> Workload:
    """A third of the time arrivals come three times as fast as in the rest."""
    slow = interval * 5 / 3
    return workloads.modulated((slow, slow / 3), (4_000.0, 2_000.0), calm_sizes(), rng)


def _daily(interval: float, rng: np.random.Generator) -> Workload:
    return workloads.diurnal(interval, swing=0.5, day=25_000.0, sizes=calm_sizes())


TRAFFIC: Mapping[str, Callable[[float, np.random.Generator], Workload]] = MappingProxyType(
    {"steady": _steady, "heavy": _heavy, "bursty": _bursty, "daily": _daily}
)
"""Poisson arrivals of sizes with squared CV 1, or of Park's; bursts; a day whose load swings by half."""


def fleet_suite(jobs: int, view: View, draws: int = 1, load: float = 0.8, seed: int = 0) -> tuple[Suite, Numbered]:
    """The world, and its tasks: `draws` of each of the 16, which differ where the traffic is drawn."""
    named: dict[str, list[Task]] = {}
    for fleet, speeds in FLEETS.items():
        for traffic, arrivals in TRAFFIC.items():
            rngs = [np.random.default_rng((seed, len(named), i)) for i in range(draws)]
            interval = PARK_MEAN_SIZE / (load * WORK)
            named[f"{fleet}/{traffic}"] = [fleet_task(speeds(), arrivals(interval, rng)) for rng in rngs]
    tasks = suite(named, stack_fleets)
    return Suite(FleetEnv(tasks.task.mask.shape[-1], jobs, view), tuple(named)), tasks
