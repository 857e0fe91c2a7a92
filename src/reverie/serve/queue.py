"""The twin of `models/queue.py`: what it knows of servers and jobs after one more was seen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from reverie.serve.layers import Array, Weights, dense, gru

SLOWEST = np.float32(1e-3)


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
        self._unit, self._largest = np.float32(config["unit"]), np.float32(config["largest"] * config["unit"])
        self._deter, self._rewards = config["deter"], config["rewards"]
        self._read_job, self._gru = dense(weights.of(".job_layer")), gru(weights.of(".gru"))

    def initial(self, servers: int) -> State:
        nothing = np.zeros(servers, np.float32)
        return State(np.zeros(self._deter, np.float32), nothing, nothing, 0.0, 0.0, 0.0)

    def observe(self, state: State, servers: Array, job: Array, mask: Array, action: int | None) -> State:
        """The state after seeing `servers` [N, 2] and a `job` [2]; `action` led there, None begins an episode."""
        seen = np.where(mask[:, None], servers, 0)
        response = 0.0
        if action is not None:
            work = state.backlog[action] + state.size
            response = float(work / max(state.speed[action], SLOWEST))
        told = np.log1p(np.array([state.size, state.gap], np.float32) / self._unit)
        deter = self._gru(state.deter, self._read_job(told))
        return State(deter, seen[:, 0], seen[:, 1], float(job[0]), float(job[1]), response)

    def features(self, state: State, mask: Array) -> tuple[Array, Array]:
        """The context, and a row for each server."""
        speed, size = np.maximum(state.speed, SLOWEST), min(state.size, self._largest)
        rows = np.empty((len(speed), 6), np.float32)
        rows[:, 0] = state.backlog
        rows[:, 1] = state.backlog / speed
        rows[:, 2] = size / speed
        rows[:, 3] = rows[:, 1] + rows[:, 2]
        rows[:, :4] = np.log1p(rows[:, :4] / self._unit)
        rows[:, 4] = state.speed
        rows[:, 5] = state.backlog == 0
        rows[~mask] = 0
        numbers = np.log1p(np.array([size, state.gap, state.response], np.float32) / self._unit)
        return np.concatenate([numbers, state.deter]), rows

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
