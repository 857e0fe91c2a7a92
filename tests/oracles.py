"""Queueing theory that the simulator must meet: closed forms, and the optimal dispatcher by value iteration.

Plain NumPy in float64, independent of the package.
"""

from typing import NamedTuple

import numpy as np


def mm1_response(rate: float, speed: float) -> float:
    """Mean response time of M/M/1: Poisson arrivals of `rate`, exponential service of rate `speed`."""
    return 1 / (speed - rate)


def mg1_response(rate: float, mean: float, second_moment: float) -> float:
    """Mean response time of M/G/1, first come, first served (Pollaczek-Khinchine), from the service time's moments."""
    return mean + rate * second_moment / (2 * (1 - rate * mean))


def mmk_response(rate: float, speed: float, servers: int) -> float:
    """Mean response time of M/M/k by Erlang's C formula, with the recursion for Erlang's B."""
    offered, blocked = rate / speed, 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    load = offered / servers
    wait = blocked / (1 - load * (1 - blocked))
    return wait / (servers * speed - rate) + 1 / speed


def split_by_speed_response(load: float, speeds: np.ndarray) -> float:
    """Mean response time where unequal M/M/1 servers get Poisson streams in proportion to their speeds."""
    return len(speeds) / (np.sum(speeds) * (1 - load))


class Optimum(NamedTuple):
    """The best that a dispatcher that sees the numbers of jobs in progress can do, and how."""

    response: float
    """Mean response time."""
    action: np.ndarray
    """The best server for a job that finds n_i jobs in progress at server i, [n_1, n_2, ...]."""


def optimal_dispatch(rate: float, speeds: np.ndarray, most: tuple[int, ...], tolerance: float = 1e-7) -> Optimum:
    """Relative value iteration for exponential jobs of mean 1 on FIFO servers; Puterman 1994, section 8.5.

    Arguments: `rate` of the Poisson arrivals, `speeds` [N], `most`, the longest queue of each server that is followed
    (a job that finds all of them full is lost; choose them so large that this never matters), `tolerance`, relative.
    """
    clock = rate + np.sum(speeds)  # of the uniformised chain
    jobs = sum(np.ix_(*(np.arange(longest + 1.0) for longest in most)))
    value = np.zeros_like(jobs)
    while True:
        joined = []
        for axis in range(len(most)):
            full = np.full_like(np.take(value, [0], axis), np.inf)
            joined.append(np.concatenate([np.delete(value, 0, axis), full], axis))
        best = np.minimum.reduce(joined)
        best[(-1,) * len(most)] = value[(-1,) * len(most)]
        new = jobs + rate * best
        for axis, speed in enumerate(speeds):
            new += speed * np.concatenate([np.take(value, [0], axis), np.delete(value, -1, axis)], axis)
        new /= clock
        change = new - value
        value = new - new.flat[0]
        # The average cost lies between the least and the largest change: mean number of jobs over the clock.
        if np.ptp(change) < tolerance * change.mean():
            in_system = change.mean() * clock
            return Optimum(in_system / rate, np.argmin(joined, axis=0))
