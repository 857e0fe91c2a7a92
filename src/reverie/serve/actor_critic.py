"""The twin of `ActorCriticPolicy` in `agents/actor_critic.py`: the policies of A2C and PPO, with or without memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reverie.serve.layers import Array, Weights, gru, linear, masked_pool, shared_rows, symlog
from reverie.serve.queue import SLOWEST


class ActorCriticTwin:
    """Scores the servers, and remembers where it has a memory."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, servers: int):
        network = config["network"]
        self._scale, self._servers = config["reward_scale"], servers
        self._as_set, self._queues = network["servers"] != "flat", network["servers"] == "queue"
        apart = (servers,) if self._as_set else ()
        self._forgotten = np.zeros((network["memory"], *apart), np.float32)
        self._memory = gru(weights.of(".memory"), *apart) if network["memory"] else None
        actor = weights.of(".actor")
        self._output = linear(actor.of(".output"), *apart)
        if self._as_set:
            self._summary, self._rows = (shared_rows(actor.of(name), servers) for name in (".summary", ".rows"))
        else:
            self._hidden = [linear(actor.of(f".hidden[{i}]")) for i in range(network["layers"])]
        self.reset()

    def reset(self) -> None:
        """Forget all: another trial begins."""
        self._recurrent, self._action = self._forgotten, None

    def logits(self, observation: Mapping[str, Array], mask: Array | None, reward: float | None) -> Array:
        """A number [N] for each server; the largest is best.

        Errors: ValueError where `reward` of the action before is not given and the memory has to be told.
        """
        context = [symlog(observation[name]) for name in sorted(observation) if observation[name].ndim == 1]
        rows = [symlog(observation["servers"])] if "servers" in observation else []
        if not self._as_set:
            context += [part.T.ravel() for part in rows]
        if self._queues:
            rows.append(_queue_scores(observation["servers"], observation["job"]))
        if self._memory is not None:
            self._recurrent = self._memory(self._recurrent, *self._told(context, rows, reward))
            (rows if self._as_set else context).append(self._recurrent)
        if self._as_set:
            context.append(masked_pool(self._summary(rows, context), mask))
            return self._output(self._rows(rows, context))[0]
        x = context
        for layer in self._hidden:
            x = [np.tanh(layer(*x))]
        return self._output(*x)

    def done(self, action: int) -> None:
        """What was decided."""
        self._action = action

    def _told(self, context: Sequence[Array], rows: Sequence[Array], reward: float | None) -> list[Array]:
        """What the memory reads, in parts."""
        first = self._action is None
        if reward is None and not first:
            raise ValueError(
                "this policy remembers rewards: give act() the reward of the action before, in the units of its world"
            )
        done = np.zeros(self._servers, np.float32)
        if not first:
            done[self._action] = 1
        rest = symlog(np.array([0 if first or reward is None else reward * self._scale], np.float32)), np.array([first])
        if not self._as_set:
            return [*context, done, *rest]
        return [*rows, done[None], *(part[:, None] for part in (*context, *rest))]


def _queue_scores(servers: Array, job: Array) -> Array:
    """See `queue_scores` in `agents/inputs.py`."""
    backlog, speed = servers[0], np.maximum(servers[1], SLOWEST)
    wait, service = backlog / speed, job[0] / speed
    return np.stack([*symlog(np.stack([wait, service, wait + service])), backlog == 0], dtype=np.float32)
