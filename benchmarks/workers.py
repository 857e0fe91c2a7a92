"""How many jobs per CPU-second the simulator dispatches to servers of several slots that do not slow each other.

    python benchmarks/workers.py [--slots 8] [--tasks 256] [--repeats 7]

Tasks of 1,000 jobs on Park's ten servers, loads from 0.5 to 0.9, exponential sizes, all in one compiled batch on one
core; beside servers of one slot (FIFO), and beside the same servers by the loop over departures, which is what servers
that share need. Runs alternate; the table shows medians, and mean responses as a check that the work is the same.
"""

import argparse
import os
import time

if hasattr(os, "sched_setaffinity"):  # before XLA starts its threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task, responses
from reverie.envs.fleet.families import PARK_MEAN_SIZE, PARK_SPEEDS
from reverie.envs.fleet.sharing import sharing
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

JOBS = 1000
PLAYED = [("shortest-wait", "full", "admission"), ("jsq", "counts", "elapsed"), ("ewma", "latency", "elapsed")]


@eqx.filter_jit
def mean_response(env, rule, tasks, key):
    ended, record = rollout(env, rule, tasks, key, JOBS, lambda state, *_: state.record)
    return responses(record, ended.states).mean()


def main(slots: int, count: int, repeats: int) -> None:
    speeds, sizes = PARK_SPEEDS[::-1].copy(), workload.exponential(PARK_MEAN_SIZE)
    gaps = PARK_MEAN_SIZE / (np.linspace(0.5, 0.9, count) * speeds.sum())
    workers = sharing(np.full(len(speeds), float(slots)), 0.0, slots)
    hows = {
        "one slot": None,
        f"{slots} slots": workers,
        f"{slots} slots, by departures": workers._replace(b=jnp.zeros(len(speeds))),
    }
    runs = {}
    for name, view, reward in PLAYED:
        rule = rules(speeds, [PARK_MEAN_SIZE], [name])[name]
        for how, servers in hows.items():
            task = [fleet_task(constant_speeds(speeds), workload.poisson(gap, sizes)) for gap in gaps]
            tasks = stack_tasks([each._replace(sharing=servers) for each in task])
            paid = "elapsed" if "departures" in how else reward
            runs[name, view, how] = FleetEnv(len(speeds), JOBS, view, paid), rule, tasks
    seconds, means = ({run: [] for run in runs} for _ in range(2))
    for repeat in range(-1, repeats):  # the first round compiles
        for run, arguments in runs.items():
            began = time.process_time()
            mean = float(mean_response(*arguments, jax.random.key(repeat + 1)))
            if repeat >= 0:
                seconds[run].append(time.process_time() - began)
                means[run].append(mean)
    for run, taken in seconds.items():
        rate = count * JOBS / np.median(taken) / 1e6
        print(f"{run[0]:14} {run[1]:8} {run[2]:24} {rate:6.2f} million jobs / CPU-s   mean {np.mean(means[run]):8.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=8, help="of each server")
    parser.add_argument("--tasks", type=int, default=256, help="played at once")
    parser.add_argument("--repeats", type=int, default=7, help="measured runs of each")
    asked = parser.parse_args()
    main(asked.slots, asked.tasks, asked.repeats)
