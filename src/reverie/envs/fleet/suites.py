"""Suites of fleets, to learn all at once: the world, and its tasks by name.

In `fleets` four kinds of fleet, each of another size, meet four kinds of traffic. What is common to them, and what is
not, is known by construction: tasks of one row share their fleet, tasks of one column their traffic. All are at one
load, where the mean response times of rules are of one order. `corners` are four of them that share neither fleet nor
traffic; `schemas` the same, seen in unlike views. In `loads` one fleet has four loads. The numbers are our choice;
units are those of Park (`families.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reverie.envs.core import Numbered, Suite, TaskFamily, suite
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Reward, Task, View, constant_speeds, fleet_task, stack_fleets
from reverie.envs.fleet.families import PARK_MEAN_SIZE, calm_sizes, park_sizes
from reverie.envs.fleet.load import offered_load
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.schemas import SeveralViews, Shown
from reverie.envs.fleet.workload import Workload, sample_size

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


def _task(fleet: str, traffic: str, load: float) -> TaskFamily:
    def draw(rng: np.random.Generator) -> Task:
        return fleet_task(FLEETS[fleet](), TRAFFIC[traffic](PARK_MEAN_SIZE / (load * WORK), rng))

    return draw


_CORNERS = {f"{fleet}/{traffic}": _task(fleet, traffic, 0.8) for fleet, traffic in zip(FLEETS, TRAFFIC, strict=True)}
SUITES: Mapping[str, Mapping[str, TaskFamily]] = MappingProxyType(
    {
        "fleets": {f"{fleet}/{traffic}": _task(fleet, traffic, 0.8) for fleet in FLEETS for traffic in TRAFFIC},
        "corners": _CORNERS,
        "schemas": _CORNERS,
        "loads": {f"load-{load}": _task("two-speeds", "steady", load) for load in (0.5, 0.65, 0.8, 0.9)},
    }
)
"""By name; each has its tasks by name."""


VIEWS: Mapping[str, tuple[View, ...]] = MappingProxyType({"schemas": ("full", "counts", "latency", "full")})
"""Of suites whose tasks are seen in views of their own, that of each task."""


def find_suite(name: str, only: Sequence[str] = ()) -> Mapping[str, TaskFamily]:
    """The tasks of a suite, all or those named, in its order.

    Raises:
        ValueError: there is no such suite, or no such task in it.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; there are {', '.join(SUITES)}")
    tasks = SUITES[name]
    for task in only:
        if task not in tasks:
            raise ValueError(f"the suite {name} has no task {task!r}; it has {', '.join(tasks)}")
    return {task: draw for task, draw in tasks.items() if not only or task in only}


DESCRIBED = 14
"""Numbers of a descriptor."""


def describe(task: Task) -> Float[np.ndarray, " D"]:
    """What an operator could say of a task beforehand: the speeds of ten servers from the fastest on, as shares of what
    all of them do; how uneven a server's speed is over time, the load, how unequal jobs are in size, and how uneven
    their arrivals are over time (coefficients of variation, over 2)."""
    speeds = [jax.tree.map(lambda leaf, i=i: leaf[i], task.speed) for i in np.flatnonzero(task.mask)]
    means = np.sort([schedules.mean(speed) for speed in speeds])[::-1][:10]
    shares = np.pad(means / means.sum(), (0, 10 - len(means)))
    # Of 500 even quantiles, as the variance of heavy tails does not exist.
    survival = (jnp.arange(500) + 0.5) / 500
    sizes = np.asarray(jax.vmap(sample_size, (None, 0))(task.workload.sizes, survival))
    unequal = sizes.std() / sizes.mean()
    uneven = max(_variation(speed) for speed in speeds), unequal, _variation(task.workload.rate)
    down, unequal, bursts = (float(each) / 2 for each in uneven)
    return np.array([*shares, down, offered_load(task), unequal, bursts], np.float32)


def _variation(schedule: Schedule) -> float:
    """The coefficient of variation of a schedule over time."""
    squared = schedule._replace(value=schedule.value**2)
    return float(np.sqrt(max(0.0, schedules.mean(squared) / schedules.mean(schedule) ** 2 - 1)))


def suite_fleets(name: str, draws: int = 1, seed: int = 0, only: Sequence[str] = ()) -> Numbered:
    """`draws` of each task of a suite, or of those named `only`, which differ where the traffic is drawn. Whichever are
    drawn, fleets have the rows, and tasks the numbers, that they have in the whole suite.

    Raises:
        ValueError: as `find_suite`.
    """
    wanted, names = find_suite(name, only), tuple(find_suite(name))
    drawn = {
        task: [draw(np.random.default_rng((seed, number, i))) for i in range(draws if task in wanted else 1)]
        for number, (task, draw) in enumerate(find_suite(name).items())
    }
    tasks = suite(drawn, stack_fleets, describe)  # all, so that padding is that of the whole suite
    kept = np.flatnonzero(np.isin(np.asarray(tasks.index), [names.index(task) for task in wanted]))
    return jax.tree.map(lambda leaf: leaf[kept], tasks)


def fleet_suite(
    name: str, fleets: Numbered, jobs: int, view: View, reward: Reward = "admission"
) -> tuple[Suite, Numbered]:
    """The world of a suite, and its `fleets` as they are seen there: in one view, but for tasks that have their own
    (`VIEWS`), and are `Shown`."""
    servers, names = fleets.task.mask.shape[-1], tuple(find_suite(name))
    if name not in VIEWS:
        return Suite(FleetEnv(servers, jobs, view, reward), names, DESCRIBED), fleets
    world = SeveralViews(servers, jobs, tuple(dict.fromkeys(VIEWS[name])), reward)
    seen = jnp.asarray([world.views.index(each) for each in VIEWS[name]])
    return Suite(world, names, DESCRIBED), fleets._replace(task=Shown(seen[fleets.index], fleets.task))
