"""Lower bounds on the response time of given jobs on a given fleet: what no dispatcher can beat, however clever.

`lower_bound` is the best bound we have for one episode; `exponential_fleet` is the sharp one in the long run for
exponential sizes. How far a policy is above its bound is the statistics' business.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from reverie.envs.fleet import sharing
from reverie.envs.fleet.env import Task
from reverie.evaluate.capacity import speeds

Jobs = Float[np.ndarray, " J"]


def lower_bound(task: Task, arrival: Jobs, size: Jobs) -> float:
    """The larger of two bounds on the mean response time of an episode, valid for every policy and any speeds.

    No job is served faster than by the fastest server; and no fleet finishes more jobs by any time than one server
    that pools all speeds and always serves the job with the least work left (Schrage 1968). With heavy tails it is
    loose, as FIFO servers cannot interrupt a long job. Servers that share count with the rates of a job alone
    and of all slots taken. Arguments: one task without batch axis, arrival times from 0 on, sizes in work units.
    """
    value, first = np.asarray(task.speed.value), 1.0
    if task.sharing is not None:
        first = 1 / np.asarray(task.sharing.pace(np.ones(len(value), int)))[:, None]
        pooled = task.speed.value * sharing.most(task.sharing)[:, None]
        task = task._replace(speed=task.speed._replace(value=pooled))
    fastest = float(np.max((value * first)[np.asarray(task.mask)]))
    return max(float(size.mean()) / fastest, float(pooled_srpt(task, arrival, size).mean()))


def pooled_srpt(task: Task, arrival: Jobs, size: Jobs) -> Jobs:
    """Response times under preemptive shortest remaining processing time on one server as fast as the whole fleet."""
    until = float(arrival[-1])
    while True:  # until the pooled server has certainly drained
        start, each = speeds(task, until)
        speed = each.sum(-1)  # [M]
        done = np.concatenate([[0.0], np.cumsum(speed[:-1] * np.diff(start))])  # [M] work done by each start
        arrived = np.interp(arrival, start, done) + np.maximum(arrival - start[-1], 0) * speed[-1]
        if done[-1] + speed[-1] * (until - start[-1]) >= arrived[-1] + size.sum():
            break
        until = 2 * until + 1
    finished = _srpt(arrived.tolist(), size.tolist())
    # The first time at which that much is done: a pooled server that stands still finishes nothing.
    piece = np.maximum(np.searchsorted(done, finished, side="left") - 1, 0)
    return start[piece] + (finished - done[piece]) / speed[piece] - arrival


def _srpt(arrival: Sequence[float], size: Sequence[float]) -> Jobs:
    """When each job is finished at speed 1 if the one with the least work left is always served."""
    finished = np.zeros(len(arrival))
    left: list[tuple[float, int]] = []
    now = 0.0
    for job, until in enumerate([*arrival, np.inf]):
        while left and now < until:
            work, first = left[0]
            if now + work > until:
                heapq.heapreplace(left, (work - (until - now), first))
                break
            now += work
            finished[first] = now
            heapq.heappop(left)
        now = max(now, until)
        if job < len(arrival):
            heapq.heappush(left, (size[job], job))
    return finished


def exponential_fleet(rate: float, mean_size: float, speeds: ArrayLike) -> float:
    """A bound on the long-run mean response time of exponential jobs under any policy that does not see their sizes.

    With n jobs in the system the fleet works at most at the speed of its n fastest servers; this birth-death chain has
    the fewest jobs, and Little's law turns them into time. It does not bound episodes, which begin empty, nor policies
    that see sizes. Arguments: Poisson `rate` (jobs per time unit), `mean_size` (work), speeds (work per time unit).

    Errors: ValueError where the load rate x mean_size / sum of speeds is not below 1.
    """
    fastest_first = np.sort(np.asarray(speeds, float))[::-1]
    offered = rate * mean_size
    load = offered / fastest_first.sum()
    if not 0 < load < 1:
        raise ValueError(
            f"exponential_fleet: the load must lie between 0 and 1, got {load:g}; the queue would not settle"
        )
    weight = np.cumprod(np.concatenate([[1.0], offered / np.cumsum(fastest_first)]))  # [N + 1] of n jobs, n <= N
    n = np.arange(len(weight))
    beyond = weight[-1] * load / (1 - load)  # all n > N: a geometric series
    jobs = (weight @ n + beyond * (n[-1] + 1 / (1 - load))) / (weight.sum() + beyond)
    return float(jobs / rate)
