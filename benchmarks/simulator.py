"""How many jobs per CPU-second the fleet simulator dispatches on one core, beside two other ways to simulate.

    python benchmarks/simulator.py [--repeats 9]

All three play the same: 64 tasks of 1,000 jobs each on Park's ten servers, loads from 0.5 to 0.9, exponential sizes,
under one rule. They are a pure-Python event simulation (a calendar in a heap, a queue per server), a loop over arrivals
compiled by numba, and `reverie` with all tasks in one compiled batch. Runs alternate; the table shows medians, and the
mean response time over all runs as a check that the work is the same.

Needs numba, one of the peers, which the group `dev` brings (`python -m uv run`, or `pip install numba`).
Takes a quarter of a minute.
"""

import argparse
import heapq
import os
import random
import time
from collections import deque
from collections.abc import Callable

if hasattr(os, "sched_setaffinity"):  # before XLA starts its threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import equinox as eqx
import jax

try:
    import numba
except ModuleNotFoundError:
    raise SystemExit("benchmarks/simulator.py: numba, a peer, is not installed: pip install numba") from None
import numpy as np

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.families import PARK_MEAN_SIZE, PARK_SPEEDS
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

JOBS = 1000
SPEEDS = PARK_SPEEDS[::-1].copy()  # the fastest first: where rules tie, the first server is taken
INTERVALS = PARK_MEAN_SIZE / (np.linspace(0.5, 0.9, 64) * SPEEDS.sum())
RULES = ("shortest-wait", "jsq")


def events(interval: float, by_count: bool) -> float:
    """Mean response time of one task, event by event in pure Python."""
    speeds, servers = SPEEDS.tolist(), range(len(SPEEDS))
    queues, free_at = [deque() for _ in servers], [0.0] * len(SPEEDS)
    calendar = [(random.expovariate(1 / interval), -1)]  # (time, server); -1 is an arrival
    arrived, total = 0, 0.0
    while calendar:
        now, server = heapq.heappop(calendar)
        if server < 0:
            arrived += 1
            if arrived < JOBS:
                heapq.heappush(calendar, (now + random.expovariate(1 / interval), -1))
            score = [len(queue) for queue in queues] if by_count else [max(free - now, 0.0) for free in free_at]
            server = score.index(min(score))
            service = random.expovariate(1 / PARK_MEAN_SIZE) / speeds[server]
            free_at[server] = max(free_at[server], now) + service
            queues[server].append((now, service))
            if len(queues[server]) == 1:
                heapq.heappush(calendar, (now + service, server))
        else:
            arrival, _ = queues[server].popleft()
            total += now - arrival
            if queues[server]:
                heapq.heappush(calendar, (now + queues[server][0][1], server))
    return total / JOBS


@numba.njit
def arrivals(interval: float, by_count: bool, speeds: np.ndarray, mean_size: float, jobs: int) -> float:
    """The same, arrival by arrival: a finish time is known at dispatch, and a count is a row of finish times."""
    free_at, finish = np.zeros(len(speeds)), np.zeros((len(speeds), jobs))
    head, tail = np.zeros(len(speeds), np.int64), np.zeros(len(speeds), np.int64)
    now, total = 0.0, 0.0
    for _ in range(jobs):
        now += np.random.exponential(interval)  # noqa: NPY002 - the generator that numba compiles
        best, least = 0, np.inf
        for server in range(len(speeds)):
            if by_count:
                while head[server] < tail[server] and finish[server, head[server]] <= now:
                    head[server] += 1
                score = float(tail[server] - head[server])
            else:
                score = max(free_at[server] - now, 0.0)
            if score < least:
                best, least = server, score
        free_at[best] = max(free_at[best], now) + np.random.exponential(mean_size) / speeds[best]  # noqa: NPY002
        finish[best, tail[best]] = free_at[best]
        tail[best] += 1
        total += free_at[best] - now
    return total / jobs


@eqx.filter_jit
def batch(rule, tasks, key: jax.Array) -> jax.Array:
    """The same for all tasks at once."""
    env = FleetEnv(len(SPEEDS), JOBS, rule.view)
    return rollout(env, rule, tasks, key, JOBS, lambda state, *_: state.record.response)[1].mean()


def simulators(name: str) -> dict[str, Callable[[int], float]]:
    """By name: the mean response over all 64 tasks under a rule, from a seed."""
    rule, by_count = rules(SPEEDS, [PARK_MEAN_SIZE], [name])[name], name == "jsq"
    sizes = workload.exponential(PARK_MEAN_SIZE)
    tasks = stack_tasks([fleet_task(constant_speeds(SPEEDS), workload.poisson(gap, sizes)) for gap in INTERVALS])

    def python(seed: int) -> float:
        random.seed(seed)
        return float(np.mean([events(interval, by_count) for interval in INTERVALS]))

    def compiled_loop(seed: int) -> float:
        seed_numba(seed)
        return float(np.mean([arrivals(gap, by_count, SPEEDS, PARK_MEAN_SIZE, JOBS) for gap in INTERVALS]))

    def reverie(seed: int) -> float:
        return float(batch(rule, tasks, jax.random.key(seed)))

    return {
        "Python, event by event": python,
        "numba, arrival by arrival": compiled_loop,
        "reverie, batch of 64": reverie,
    }


@numba.njit
def seed_numba(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002


def main(repeats: int) -> None:
    print(f"{'rule':14} {'simulator':26} {'million jobs / CPU-s':>20} {'against Python':>14} {'mean response':>20}")
    for name in RULES:
        contestants = simulators(name)
        seconds, means = ({label: [] for label in contestants} for _ in range(2))
        for repeat in range(-1, repeats):  # the first round compiles
            for label, play in contestants.items():
                began = time.process_time()
                mean = play(repeat + 1)
                if repeat >= 0:
                    seconds[label].append(time.process_time() - began)
                    means[label].append(mean)
        rate = {label: JOBS * len(INTERVALS) / np.median(times) / 1e6 for label, times in seconds.items()}
        for label, mean in means.items():
            error = np.std(mean, ddof=1) / np.sqrt(repeats)
            ratio = rate[label] / next(iter(rate.values()))
            print(f"{name:14} {label:26} {rate[label]:20.2f} {ratio:13.1f}x {np.mean(mean):12.1f} ± {error:5.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="measured runs of each, at least 2")
    main(max(parser.parse_args().repeats, 2))
