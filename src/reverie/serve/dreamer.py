"""The twin of `DreamerPolicy` in `agents/dreamer.py`: a model of the fleet, the memory of RL2 and the actor."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from reverie.serve.counts import CountsTwin
from reverie.serve.layers import Array, Weights, gru, linear, shared_rows
from reverie.serve.queue import QueueTwin


class Model(Protocol):
    """What a twin of a world model gives."""

    def initial(self, servers: int) -> Any: ...

    def observe(self, state: Any, servers: Array, job: Array, mask: Array | None, action: int | None) -> Any: ...

    def features(self, state: Any, mask: Array | None) -> tuple[Array, Array]: ...

    def reward(self, state: Any) -> float: ...


MODELS: Mapping[str, Callable[[Mapping[str, Any], Weights], Model]] = {
    "QueueConfig": QueueTwin,
    "CountsConfig": CountsTwin,
}


class DreamerTwin:
    """Scores the servers, and remembers."""

    def __init__(self, config: Mapping[str, Any], weights: Weights):
        """Errors: ValueError for a world model that has no twin."""
        model = config["model"]
        if model["class"] not in MODELS:
            raise ValueError(
                f"a policy with the world model {model['class']} decides by JAX alone (`reverie compare`); those with "
                f"{' and '.join(MODELS)} (presets cpu and hidden) decide without"
            )
        self._model = MODELS[model["class"]](model, weights.of(".model"))
        self._scale, self._units = config["reward_scale"], config["memory"]
        self._memory = gru(weights.of(".memory")) if self._units else None
        self._shared, self._head = shared_rows(weights.of(".actor.shared")), linear(weights.of(".actor.head"))

    def reset(self, servers: int) -> None:
        """Forget all: another trial begins."""
        self._state: Any = self._model.initial(servers)
        self._recurrent = np.zeros(self._units, np.float32)
        self._action: int | None = None

    def logits(self, observation: Mapping[str, Array], mask: Array | None, reward: float | None) -> Array:
        """A number [N] for each server; the largest is best. `reward` of the action before, in the world's units; None
        takes the model's word for it."""
        model = self._model
        self._state = state = model.observe(self._state, observation["servers"], observation["job"], mask, self._action)
        context, rows = model.features(state, mask)
        if self._memory is not None:
            told = np.zeros(rows.shape[-1] + 2, np.float32)  # the chosen row, what it paid, and whether none was
            if self._action is None:
                told[-1] = 1
            else:
                told[:-2] = rows[self._action]
                told[-2] = _symlog(self._scale * (model.reward(state) if reward is None else reward))
            inputs = np.concatenate([context, told])
            self._recurrent = self._memory(self._recurrent, inputs)
            context = np.concatenate([context, self._recurrent])
        return self._head(self._shared(rows, context))[:, 0]

    def done(self, action: int) -> None:
        """What was decided."""
        self._action = action


def _symlog(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x)
