"""The twin of `models/queue.py`: what it knows of servers and jobs after one more was seen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reverie.serve.layers import ZERO, Array, Part, Weights, dense, gru

SLOWEST = np.array(1e-3, np.float32)


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

    def __init__(self, config: Mapping[str, Any], weights: Weights, servers: int):
        self._unit, self._largest = config["unit"], config["largest"] * config["unit"]
        self._deter, self._rewards, self._servers = config["deter"], config["rewards"], servers
        self._read_job, self._gru = dense(weights.of(".job_layer")), gru(weights.of(".gru"))
        self._one, self._rows = np.array(self._unit, np.float32), np.empty((6, servers), np.float32)
        self._views, self._times = tuple(self._rows), self._rows[:4]

    def _units(self, *amounts: float) -> list[float]:
        return [math.log1p(amount / self._unit) for amount in amounts]

    def initial(self) -> State:
        nothing = np.zeros(self._servers, np.float32)
        return State(np.zeros(self._deter, np.float32), nothing, nothing, 0.0, 0.0, 0.0)

    def observe(self, state: State, servers: Array, job: Array, mask: Array | None, action: int | None) -> State:
        """The state after seeing `servers` [2, N] and a `job` [2]; `action` led there, None begins an episode."""
        backlog, speed = servers if mask is None else np.where(mask, servers, ZERO)
        response = 0.0
        if action is not None:
            response = (state.backlog.item(action) + state.size) / max(state.speed.item(action), SLOWEST.item())
        deter = self._gru(state.deter, self._read_job(self._units(state.size, state.gap)))
        return State(deter, backlog, speed, *job.tolist(), response)

    def features(self, state: State) -> tuple[Sequence[Part], Sequence[Array]]:
        """The context [D] and the numbers of each server [6, N], in parts."""
        work, wait, service, response, speed, idle = self._views
        size = min(state.size, self._largest)
        np.maximum(state.speed, SLOWEST, out=speed)
        work[...] = state.backlog
        np.divide(work, speed, wait)
        service.fill(size)
        np.divide(service, speed, service)
        np.add(wait, service, response)
        np.divide(self._times, self._one, self._times)
        np.log1p(self._times, self._times)
        speed[...] = state.speed
        idle[...] = state.backlog == ZERO
        return (self._units(size, state.gap, state.response), state.deter), (self._rows,)

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
