"""The twin of `DreamerPolicy` in `agents/dreamer.py`: a model of the fleet, the memory of RL2 and the actor."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from reverie.serve.counts import CountsTwin
from reverie.serve.layers import ZERO, Array, Part, Weights, gru, linear, shared_rows
from reverie.serve.queue import QueueTwin


class Model(Protocol):
    """What a twin of a world model gives."""

    def initial(self) -> Any: ...

    def observe(self, state: Any, servers: Array, job: Array, mask: Array | None, action: int | None) -> Any: ...

    def features(self, state: Any) -> tuple[Sequence[Part], Sequence[Array]]: ...

    def reward(self, state: Any) -> float: ...


MODELS: Mapping[str, Callable[[Mapping[str, Any], Weights, int], Model]] = {
    "QueueConfig": QueueTwin,
    "CountsConfig": CountsTwin,
}


class DreamerTwin:
    """Scores the servers, and remembers."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, servers: int):
        """Errors: ValueError for a world model that has no twin."""
        model = config["model"]
        if model["class"] not in MODELS:
            raise ValueError(
                f"a policy with the world model {model['class']} decides by JAX alone (`reverie compare`); those with "
                f"{' and '.join(MODELS)} (presets cpu and hidden) decide without"
            )
        self._model = MODELS[model["class"]](model, weights.of(".model"), servers)
        self._scale, self._units = config["reward_scale"], config["memory"]
        self._memory = gru(weights.of(".memory")) if self._units else None
        self._shared = shared_rows(weights.of(".actor.shared"), servers)
        self._head = linear(weights.of(".actor.head"), servers)
        self.reset()

    def reset(self) -> None:
        """Forget all: another trial begins."""
        self._state: Any = self._model.initial()
        self._recurrent = np.zeros(self._units, np.float32)
        self._action: int | None = None

    def logits(self, observation: Mapping[str, Array], mask: Array | None, reward: float | None) -> Array:
        """A number [N] for each server; the largest is best. `reward` of the action before, in the world's units; None
        takes the model's word for it."""
        model = self._model
        self._state = state = model.observe(self._state, observation["servers"], observation["job"], mask, self._action)
        context, rows = model.features(state)
        if mask is not None:
            rows = [np.where(mask, part, ZERO) for part in rows]
        if self._memory is not None:  # told of the chosen server, what it paid, and whether none was
            chosen, paid, first = [np.zeros(len(part), np.float32) for part in rows], 0.0, 1.0
            if self._action is not None:
                chosen, first = [part[:, self._action] for part in rows], 0.0
                paid = _symlog(self._scale * (model.reward(state) if reward is None else reward))
            self._recurrent = self._memory(self._recurrent, *context, *chosen, [paid, first])
            context = *context, self._recurrent
        return self._head(self._shared(rows, context))[0]

    def done(self, action: int) -> None:
        """What was decided."""
        self._action = action


def _symlog(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x)
