"""Lower bounds on the response time of given jobs on a given fleet: what no dispatcher can beat, however clever.

`lower_bound` is the best bound we have for one episode. How far a policy is above it is the statistics' business.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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
