"""The twin of `ActorCriticPolicy` in `agents/actor_critic.py`: the policies of A2C and PPO, with or without memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reverie.serve.layers import Array, Layer, Weights, gru, linear, masked_pool, shared_rows, symlog
from reverie.serve.queue import SLOWEST


class ActorCriticTwin:
    """Scores the servers, and remembers where it has a memory."""

    def __init__(self, config: Mapping[str, Any], weights: Weights):
        network = config["network"]
        self._scale, self._units = config["reward_scale"], network["memory"]
        self._as_set, self._queues = network["servers"] != "flat", network["servers"] == "queue"
        self._memory = gru(weights.of(".memory")) if self._units else None
        actor = weights.of(".actor")
        self._output = linear(actor.of(".output"))
        if self._as_set:
            self._summary, self._rows = shared_rows(actor.of(".summary")), shared_rows(actor.of(".rows"))
        else:
            self._hidden: list[Layer] = [linear(actor.of(f".hidden[{i}]")) for i in range(network["layers"])]

    def reset(self, servers: int) -> None:
        """Forget all: another trial begins."""
        self._servers = servers
        self._recurrent = np.zeros((servers, self._units) if self._as_set else self._units, np.float32)
        self._action: int | None = None

    def logits(self, observation: Mapping[str, Array], mask: Array | None, reward: float | None) -> Array:
        """A number [N] for each server; the largest is best.

        Errors: ValueError where `reward` of the action before is not given and the memory has to be told.
        """
        vectors = [symlog(observation[name]) for name in sorted(observation) if observation[name].ndim == 1]
        rows = symlog(observation["servers"]) if "servers" in observation else np.empty((0, 0), np.float32)
        if not self._as_set:
            vectors.append(rows.ravel())
        if self._queues:
            rows = np.concatenate([rows, _queue_scores(observation["servers"], observation["job"])], -1)
        context = np.concatenate(vectors)
        if self._memory is not None:
            told = self._told(context, rows, self._servers, reward)
            self._recurrent = self._memory(self._recurrent, told)
            if self._as_set:
                rows = np.concatenate([rows, self._recurrent], -1)
            else:
                context = np.concatenate([context, self._recurrent])
        if self._as_set:
            context = np.concatenate([context, masked_pool(self._summary(rows, context), mask)])
            return self._output(self._rows(rows, context))[:, 0]
        for layer in self._hidden:
            context = np.tanh(layer(context))
        return self._output(context)

    def done(self, action: int) -> None:
        """What was decided."""
        self._action = action

    def _told(self, context: Array, rows: Array, actions: int, reward: float | None) -> Array:
        first = self._action is None
        if reward is None and not first:
            raise ValueError(
                "this policy remembers rewards: give act() the reward of the action before, in the units of its world"
            )
        done = np.zeros(actions, np.float32)
        if self._action is not None:
            done[self._action] = 1
        heard = symlog(np.array([0 if first or reward is None else reward * self._scale], np.float32))
        rest = np.concatenate([heard, np.array([first], np.float32)])
        if not self._as_set:
            return np.concatenate([context, done, rest])
        shared = np.concatenate([context, rest])
        return np.concatenate([rows, done[:, None], np.broadcast_to(shared, (actions, len(shared)))], -1)


def _queue_scores(servers: Array, job: Array) -> Array:
    """See `queue_scores` in `agents/inputs.py`."""
    backlog, speed = servers[:, 0], np.maximum(servers[:, 1], SLOWEST)
    wait, service = backlog / speed, job[0] / speed
    return np.stack([*symlog(np.stack([wait, service, wait + service])), backlog == 0], -1, dtype=np.float32)
