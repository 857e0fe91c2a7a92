"""The twin of `models/counts.py`: what it knows of servers and arrivals after one more was seen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reverie.serve.layers import ONE, ZERO, Array, Part, Weights, gru, symlog

SPANS = np.array([8.0, 40.0], np.float32)
"""As in the model: spans over which rates are averaged, in arrivals per server."""


class State(NamedTuple):
    """See `CountsState`."""

    servers: Array
    count: Array
    age: Array
    so_far: Array
    """Jobs seen to end, then time in which there was work, of each span [2 S, N]."""
    told: Array
    """What networks read of these numbers [3 + 2 S, N]."""
    arrivals: Array
    gap: float
    elapsed: float


class CountsTwin:
    """For the view `counts`."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, servers: int):
        self._unit, self._deter, self._servers = config["unit"], config["deter"], servers
        self._server_gru, self._arrival_gru = gru(weights.of(".server_gru"), servers), gru(weights.of(".arrival_gru"))
        units = np.repeat(np.array([1, self._unit, 1, self._unit], np.float32), [2, 1, len(SPANS), len(SPANS)])
        self._units, self._kept = np.repeat(units[:, None], servers, 1), self._kept_of(servers)

    def initial(self) -> State:
        nothing, memories = (np.zeros((rows, self._servers), np.float32) for rows in (2 * len(SPANS), self._deter))
        none = nothing[0]
        return State(memories, none, none, nothing, self._told(none, none, nothing), memories[:, 0], 0.0, 0.0)

    def observe(self, state: State, servers: Array, job: Array, mask: Array | None, action: int | None) -> State:
        """The state after seeing `servers` [1, N] and the `job` [1]; `action` led there, None begins an episode."""
        count, time = servers[0] if mask is None else np.where(mask, servers[0], ZERO), job[0, ...]
        gap = time.item()
        if action is None:
            new = self.initial()
            return new._replace(count=count, told=self._told(count, new.age, new.so_far), gap=gap)
        held, led = state.count.copy(), state.told.copy()
        held[action] += 1
        led[1, action] = 1
        completed = np.maximum(held - count, ZERO)
        between = time / (completed + ONE)
        empty, age = count <= ZERO, state.age + time
        np.copyto(age, between, where=completed > ZERO)
        np.copyto(age, ZERO, where=empty)
        busy = np.where(empty, time - between, time)
        np.copyto(busy, ZERO, where=held <= ZERO)
        so_far = state.so_far * (self._kept if mask is None else self._kept_of(int(mask.sum())))
        so_far += np.array([completed] * len(SPANS) + [busy] * len(SPANS))
        return State(
            self._server_gru(state.servers, led, np.log1p(completed)[None], [self._log(gap)]),
            count,
            age,
            so_far,
            self._told(count, age, so_far),
            self._arrival_gru(state.arrivals, [self._log(state.gap)]),
            gap,
            gap * (sum(held.tolist()) - sum(completed.tolist()) / 2),
        )

    def features(self, state: State) -> tuple[Sequence[Part], Sequence[Array]]:
        """The context [D], and of each server [G, N], in parts."""
        return ([self._log(state.gap), self._log(state.elapsed)], state.arrivals), (state.told, state.servers)

    def reward(self, state: State) -> float:
        """What is told of the last gap where nobody measured it: minus the integral of the number of jobs."""
        return -state.elapsed

    def _told(self, count: Array, age: Array, so_far: Array) -> Array:
        told = np.empty_like(self._units)
        told[:2], told[2], told[3:] = 0, age, so_far
        told /= self._units
        np.log1p(told, told)
        told[0] = symlog(count)
        told[3:-2] -= told[-2:]
        return told

    def _log(self, time: float) -> float:
        return math.log1p(time / self._unit)

    def _kept_of(self, servers: int) -> Array:
        """What each arrival leaves of the numbers so far [2 S, N]."""
        kept = np.tile(np.exp(-1 / (SPANS * np.float32(servers))), 2)
        return np.repeat(kept[:, None], self._servers, 1)
