"""The twin of `models/counts.py`: what it knows of servers and arrivals after one more was seen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from reverie.serve.layers import Array, Weights, gru, symlog

SPANS = np.array([8.0, 40.0], np.float32)
"""As in the model: spans over which rates are averaged, in arrivals per server."""


class State(NamedTuple):
    """See `CountsState`."""

    servers: Array
    count: Array
    age: Array
    completed: Array
    busy: Array
    arrivals: Array
    gap: np.float32
    elapsed: float


class CountsTwin:
    """For the view `counts`."""

    def __init__(self, config: Mapping[str, Any], weights: Weights):
        self._unit, self._deter = np.float32(config["unit"]), config["deter"]
        self._server_gru, self._arrival_gru = gru(weights.of(".server_gru")), gru(weights.of(".arrival_gru"))

    def initial(self, servers: int) -> State:
        each, spans = np.zeros(servers, np.float32), np.zeros((servers, len(SPANS)), np.float32)
        memories = np.zeros((servers, self._deter), np.float32)
        return State(memories, each, each, spans, spans, memories[0], np.float32(0), 0.0)

    def observe(self, state: State, servers: Array, job: Array, mask: Array | None, action: int | None) -> State:
        """The state after seeing `servers` [N, 1] and the `job` [1]; `action` led there, None begins an episode."""
        count, gap = servers[:, 0] if mask is None else np.where(mask, servers[:, 0], 0), job.item(0)
        if action is None:
            return self.initial(len(count))._replace(count=count, gap=gap)
        chosen = np.zeros(len(count), np.float32)
        chosen[action] = 1
        held = state.count + chosen
        completed = np.maximum(held - count, 0)
        between = gap / (completed + 1)
        age = np.where(count > 0, np.where(completed > 0, between, state.age + gap), 0)
        busy = np.where(held > 0, np.where(count > 0, gap, gap - between), 0)
        kept = np.exp(-1 / (SPANS * np.float32(len(count) if mask is None else mask.sum())))
        passes = np.full(len(count), np.log1p(gap / self._unit), np.float32)
        told = np.concatenate([self._told(state, chosen), np.stack([symlog(completed), passes], -1)], -1)
        return State(
            self._server_gru(state.servers, told),
            count,
            age,
            kept * state.completed + completed[:, None],
            kept * state.busy + busy[:, None],
            self._arrival_gru(state.arrivals, np.log1p(state.gap / self._unit)[None]),
            gap,
            float(gap * (held - completed / 2).sum()),
        )

    def features(self, state: State, mask: Array | None) -> tuple[Array, Array]:
        """The context, and a row for each server."""
        rows = np.concatenate([self._told(state, np.zeros_like(state.count)), state.servers], -1)
        if mask is not None:
            rows[~mask] = 0
        numbers = np.log1p(np.array([state.gap, state.elapsed], np.float32) / self._unit)
        return np.concatenate([numbers, state.arrivals]), rows

    def reward(self, state: State) -> float:
        """What is told of the last gap where nobody measured it: minus the integral of the number of jobs."""
        return -state.elapsed

    def _told(self, state: State, action: Array) -> Array:
        busy = np.log1p(state.busy / self._unit)
        numbers = np.stack([symlog(state.count), action, np.log1p(state.age / self._unit)], -1)
        return np.concatenate([numbers, np.log1p(state.completed) - busy, busy], -1)
