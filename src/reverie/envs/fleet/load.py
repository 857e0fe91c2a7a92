"""The load that a task offers: the work that its jobs bring over what its servers can do."""

import jax
import numpy as np

from reverie.envs.fleet import PARK_SERVICE_RATES, sharing
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import Task

PARK_SPEEDS = np.array(PARK_SERVICE_RATES)
"""Park's ten servers, the fastest seven times as fast as the slowest [work per time unit]."""


def offered_load(task: Task, until: float = np.inf) -> float:
    """Mean work that arrives per time unit, that of others included, over the mean capacity of all servers: in the long
    run or, where schedules do not repeat, up to `until`."""
    brings = workloads.work_rate(task.workload, until) + others_work_rate(task)
    return brings / capacity(task, until)


def others_work_rate(task: Task) -> float:
    """Work that others bring per time unit."""
    return 0.0 if task.others is None else float(task.others.rate) * workloads.moments(task.others.sizes)[0]


def capacity(task: Task, until: float = np.inf) -> float:
    """Work per time unit that all servers together can do while they are there and all slots taken, in the long run or,
    where speeds do not repeat, up to `until`."""
    here = task.speed._replace(value=task.speed.value * task.member)
    if task.sharing is not None:
        prompt = workloads.prompt_of_work(task.workload)
        here = here._replace(value=here.value * sharing.most(task.sharing, prompt)[:, None])
    per_server = [jax.tree.map(lambda leaf, i=i: leaf[i], here) for i in np.flatnonzero(task.mask)]
    return sum(schedules.mean(s, until) for s in per_server)


def with_load(task: Task, load: float, jobs: int = 1000) -> Task:
    """The same task at another offered load: its arrivals' clock runs faster or slower, which keeps the bursts.

    The load is the average over one period of what repeats, and over the time that an episode of `jobs` jobs is to be
    expected to last of what does not: levels that change once and for all count by how long they hold.
    Errors: ValueError where a load is not positive and finite: the wanted one, or that of the task itself.
    """
    w = task.workload
    until = workloads.span(w, jobs)
    brings = workloads.work_rate(w, until) + others_work_rate(task)
    total = capacity_met(task, positive_load(brings) * until, positive_load(load))
    factor = load / (brings / total)
    rate = w.rate._replace(value=w.rate.value * factor)
    rate, scale = (s._replace(start=s.start / factor, period=s.period / factor) for s in (rate, w.scale))
    recording = w.recording._replace(gap=w.recording.gap / factor)
    others = task.others and task.others._replace(rate=task.others.rate * factor)
    return task._replace(workload=w._replace(rate=rate, scale=scale, recording=recording), others=others)


def capacity_met(task: Task, work: float, load: float) -> float:
    """The capacity, on average until that much work has come at `load`: speeds do not run on the arrivals' clock."""
    if task.speed.start.shape[-1] == 1:
        return capacity(task)
    task = jax.tree.map(np.asarray, task)  # on the host: it is asked for time and again
    before, until = 0.0, 1.0
    while capacity(task, until) * until < work / load:
        before, until = until, 2 * until
    for _ in range(50):
        middle = (before + until) / 2
        enough = capacity(task, middle) * middle >= work / load
        before, until = (before, middle) if enough else (middle, until)
    return capacity(task, until)


def positive_load(load: float) -> float:
    if not 0 < load < np.inf:
        raise ValueError(f"offered load must be a positive number, got {load}")
    return load
