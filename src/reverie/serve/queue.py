"""The twin of `models/queue.py`: what it knows of servers and jobs after one more was seen."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from reverie.serve.layers import Array, Weights, dense, gru

SLOWEST = 1e-3


class State(NamedTuple):
    """See `QueueState`."""

    deter: Array
    backlog: Array
    speed: Array
    size: float
    gap: float
    response: float


class QueueTwin:
    """For the view `full`."""

    def __init__(self, config: Mapping[str, Any], weights: Weights):
        self._unit, self._largest = config["unit"], config["largest"] * config["unit"]
        self._deter, self._rewards = config["deter"], config["rewards"]
        self._read_job, self._gru = dense(weights.of(".job_layer")), gru(weights.of(".gru"))

    def _units(self, *amounts: float) -> Array:
        return np.array([math.log1p(amount / self._unit) for amount in amounts], np.float32)

    def initial(self, servers: int) -> State:
        nothing = np.zeros(servers, np.float32)
        return State(np.zeros(self._deter, np.float32), nothing, nothing, 0.0, 0.0, 0.0)

    def observe(self, state: State, servers: Array, job: Array, mask: Array | None, action: int | None) -> State:
        """The state after seeing `servers` [N, 2] and a `job` [2]; `action` led there, None begins an episode."""
        backlog, speed = (servers if mask is None else np.where(mask[:, None], servers, 0)).T
        response = 0.0
        if action is not None:
            response = (state.backlog.item(action) + state.size) / max(state.speed.item(action), SLOWEST)
        deter = self._gru(state.deter, self._read_job(self._units(state.size, state.gap)))
        return State(deter, backlog, speed, job.item(0), job.item(1), response)

    def features(self, state: State, mask: Array | None) -> tuple[Array, Array]:
        """The context, and a row for each server."""
        size = min(state.size, self._largest)
        numbers = np.empty((6, len(state.speed)), np.float32)
        work, wait, service, response, speed, idle = numbers
        np.maximum(state.speed, SLOWEST, out=speed)
        work[:] = state.backlog
        np.divide(work, speed, wait)
        np.divide(size, speed, service)
        np.add(wait, service, response)
        times = numbers[:4]
        times /= self._unit
        np.log1p(times, times)
        speed[:] = state.speed
        np.equal(work, 0, out=idle)
        rows = numbers.T
        if mask is not None:
            rows[~mask] = 0
        return np.concatenate([self._units(size, state.gap, state.response), state.deter]), rows

    def reward(self, state: State) -> float:
        """What is told of the job placed last where nobody measured it: minus its response time.

        Errors: ValueError where rewards were others in training.
        """
        if self._rewards == "any":
            raise ValueError(
                "this policy remembers rewards that are no response times: give act() the reward of the action before, "
                "in the units of its world"
            )
        return -state.response
