"""Families of servers that serve several jobs at once, at speeds that change unseen: workers, shared servers, replicas.

Which server is how fast changes two to four times in an episode of 1,000 jobs, as under noisy neighbours. The numbers
are our choice, but for the replicas' coefficients and the tokens, whose sources are named.
"""

from functools import cache

import numpy as np

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.conversation import conversation_like
from reverie.envs.fleet.env import Task, constant_speeds, fleet_task
from reverie.envs.fleet.load import PARK_SPEEDS, capacity, with_load
from reverie.envs.fleet.sharing import Sharing, sharing
from reverie.envs.fleet.workload import Workload

REPLICAS = np.array(
    [  # ms a step, us a token read, us a token generated
        (7.05, 19.5, 25.4),  # qwen2.5-7b, H100
        (16.4, 47.8, 18.2),  # llama-3.1-8b, A100
        (8.0, 26.4, 15.0),  # the same on two
        (13.6, 39.4, 27.3),  # qwen3-14b, H100
        (14.1, 10.0, 19.4),  # llama-3.3-70b, eight H100
        (26.6, 96.0, 57.0),  # codellama-34b, H100
        (18.2, 82.0, 54.0),  # phi-4, A100
        (4.4, 47.0, 23.0),  # phi-4, H100
    ]
)
"""Coefficients that inference-sim fitted to vLLM (its defaults.yaml before 90522ded): how unlike replicas are, rather
than how each of them is."""
_SIZE, _JOBS, _SEGMENTS = 300.0, 1000, 5


def workers(rng: np.random.Generator) -> Task:
    """Ten servers of Park's speeds, each of 2, 4 or 8 workers with an even part of it, whether or not the others are
    busy; load 0.5 to 0.85, sizes with squared CV 4."""
    slots = rng.choice([2, 4, 8], len(PARK_SPEEDS))
    return _park(rng, sharing(slots, 0.0, slots))


def shared(rng: np.random.Generator) -> Task:
    """Ten servers of Park's speeds that share them among up to 64 jobs, with up to as much again to be done for each as
    it takes alone while there are few; load 0.5 to 0.85, sizes with squared CV 4."""
    return _park(rng, sharing(rng.uniform(0.0, 1.0, len(PARK_SPEEDS)), 1.0, 64))


def llm(rng: np.random.Generator) -> Task:
    """Eight unlike replicas that batch up to 32 requests, in ms, their speeds up to 1.6 times apart; load 0.5 to 0.85.
    1,000 requests in a row of the trace `conversation-like`: bursts, prompts and generated tokens are its own."""
    a, prefill, b = REPLICAS.T
    speeds = 1.6 ** rng.uniform(-0.5, 0.5, (len(REPLICAS), _SEGMENTS))
    gap, prompt, generated = _conversation()
    window = slice(first := rng.integers(len(gap) - _JOBS), first + _JOBS)
    workload = workloads.recorded(gap[window], generated[window], prompt=prompt[window])
    return _drifting(rng, speeds, sharing(a, b / 1e3, 32, prefill / 1e3), workload)


@cache
def _conversation() -> np.ndarray:
    trace = conversation_like(50_000, seed=0)
    gap = np.diff(trace.arrival, prepend=0.0)
    return np.stack([gap, trace.columns["context_tokens"], trace.columns["generated_tokens"]])  # [3, J]


def _park(rng: np.random.Generator, how: Sharing) -> Task:
    speeds = np.stack([rng.permutation(PARK_SPEEDS) for _ in range(_SEGMENTS)], -1)
    return _drifting(rng, speeds, how, workloads.poisson(1.0, workloads.lognormal(_SIZE, 4.0)))


def _drifting(rng: np.random.Generator, speeds: np.ndarray, how: Sharing, workload: Workload) -> Task:
    """Servers [N] with the first three to five of these speeds [N, P] one after the other, at a load of 0.5 to 0.85."""
    load, changes = rng.uniform(0.5, 0.85), rng.integers(2, _SEGMENTS)
    at_first = fleet_task(constant_speeds(speeds[:, 0]), workload)._replace(sharing=how)
    work = workloads.work_rate(workload) * workloads.span(workload, _JOBS)
    times = np.sort(rng.uniform(0, work / (load * capacity(at_first)), changes))
    start, speeds = np.append(0.0, times), speeds[:, : 1 + changes]
    rows = [schedules.padded(schedules.schedule(start, row), _SEGMENTS) for row in speeds]
    return with_load(fleet_task(schedules.stack(rows), workload)._replace(sharing=how), load, _JOBS)
