"""A world model that knows what a queue is, and learns what nobody can know: which jobs will come, and when.

A backlog grows by the job placed on its server and falls with the server's speed (Lindley 1952), and a job's response
time follows from both; so much need not be learned, and dreams of it are exact. A recurrent state over the jobs so far
predicts size and gap of the next, as two discrete tokens. Dreams may therefore be long, and are full of jobs like those
seen. MetaDreamer (arXiv 2311.06673) likewise puts known physics into its decoder; this form of it is our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Needed, Sequence, WorldModel, shifted
from reverie.models.encoders import Entries
from reverie.models.tokens import draw, token, token_head
from reverie.nn.distributions import Bernoulli, Categorical, TwoHot, symlog
from reverie.nn.layers import GRU, Dense, Head, over_time
from reverie.ranges import Horizon, Positive, Width, checked

SLOWEST = 1e-3
"""The speed that a server which stands still is taken to have: a job given to it waits long, but not for ever."""


@dataclass(frozen=True)
@checked
class QueueConfig:
    """Sizes of the model, and what it is told."""

    kind: ClassVar[str] = "queue"
    units: Width = 64
    """Width of all hidden layers."""
    deter: Width = 64
    """Width of the recurrent state."""
    unit: Positive = 300.0
    """Work of a usual job, and a usual time: what networks read is measured in it."""
    largest: Positive = 16.0
    """Units of work beyond which jobs that wait look alike to actor and critic: too rare to learn from, and networks
    that never saw such a number do with it what they please. In dreams they have their full size."""
    rewards: Literal["response", "any"] = "response"
    """`response`: rewards are minus a price times the response time of the job just placed, which is the fleet's
    `admission`; only the price is learned. `any`: rewards are learned from what is seen."""
    horizon: Horizon = 333.0
    """Steps that the discount 1 - 1 / horizon looks ahead."""

    @property
    def needs(self) -> Needed | None:
        """The fleet's reward that it can read, where it is one alone."""
        if self.rewards == "any":
            return None
        return Needed(
            "admission",
            "the queue model takes rewards for response times (`admission`), unless it is told that they may be any "
            "(--agent.model.rewards any)",
        )


class QueueState(NamedTuple):
    """What is known of the servers and the job that waits, and a recurrent state made from the jobs before it."""

    deter: Float[Array, "*B D"]
    """Made from all jobs but the one that waits."""
    backlog: Float[Array, "*B N"]
    speed: Float[Array, "*B N"]
    mask: Bool[Array, "*B N"]
    size: Float[Array, "*B"]
    """Of the job that waits."""
    gap: Float[Array, "*B"]
    """Time between its arrival and the one before."""
    response: Float[Array, "*B"]
    """Response time of the job placed last, 0 where there was none."""


class QueueModel(WorldModel):
    """A model for observations that show true work and speeds: the fleet's view `full`."""

    job_layer: Dense
    gru: GRU
    size_head: Head
    gap_head: Head
    price: Float[Array, ""] | None
    """Logarithm of what a `unit` of response time costs, where that is all there is to learn."""
    reward_head: Head | None
    continue_head: Head
    config: QueueConfig = eqx.field(static=True)
    entries: Entries = eqx.field(static=True)

    def __init__(
        self, config: QueueConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """Errors: ValueError where an observation is not (backlog, speed) of each server and (size, gap) of a job, or
        where there is not one action for each server."""
        self.config, self.entries = config, Entries.of(observation_spec)
        if not self.entries.one_set_and_job((actions, 2), 2):
            raise ValueError(
                "QueueModel reads (backlog, speed) of each server, (size, gap) of one job, and takes one action for "
                f"each server, which is a fleet's view `full`; got {dict(observation_spec)} and {actions} actions. "
                "SetRSSM reads any view that shows servers one by one (`reverie train --preset learned`), RSSM anything"
            )
        c, (layer_key, gru_key, size_key, gap_key, reward_key, continue_key) = config, jax.random.split(key, 6)
        context = c.deter + 3
        self.job_layer = Dense(2, c.units, key=layer_key)
        self.gru = GRU(c.units, c.deter, key=gru_key)
        self.size_head, self.gap_head = (token_head(c.deter, c.units, key=k) for k in (size_key, gap_key))
        self.price = self.reward_head = None
        if c.rewards == "any":
            self.reward_head = Head(context, TwoHot.BINS, c.units, 2, scale=0.0, key=reward_key)
        else:
            self.price = jnp.zeros(())
        self.continue_head = Head(context, 1, c.units, 1, key=continue_key)

    def initial(self, batch: int) -> QueueState:
        n = self.entries.servers[0][1].shape[0]
        each, nothing = jnp.zeros((batch, n)), jnp.zeros((batch,))
        deter = jnp.zeros((batch, self.config.deter))
        return QueueState(deter, each, each, jnp.ones((batch, n), bool), nothing, nothing, nothing)

    def observe(self, state: QueueState, sequence: Sequence, key: Key[Array, ""]) -> tuple[QueueState, QueueState]:
        """What is seen is known; nothing is drawn, and `key` is not used."""
        observation, action, begins = sequence.observation, sequence.action, self.borders(sequence)
        (servers, _), (job, _) = self.entries.servers[0], self.entries.vectors[0]
        mask = jnp.broadcast_to(self.entries.present(observation, servers), action.shape)
        backlog, speed = (jnp.where(mask, observation[servers][..., i], 0.0) for i in range(2))
        size, gap = (observation[job][..., i] for i in range(2))

        def previous(first: Array, rest: Array) -> Array:  # [B, ...], [B, T, ...] -> [B, T, ...]
            return jnp.where(begins.reshape(*begins.shape, *[1] * (rest.ndim - 2)), 0.0, shifted(first, rest))

        last_size, last_gap = previous(state.size, size), previous(state.gap, gap)
        response = _response(previous(state.backlog, backlog), previous(state.speed, speed), last_size, action)
        inputs = self.gru.project(self._read_job(last_size, last_gap))

        def step(h, now):
            row, begins = now
            h = self.gru.step(jnp.where(begins[:, None], 0.0, h), row)
            return h, h

        _, deter = over_time(step, state.deter, (inputs, begins))
        states = QueueState(deter, backlog, speed, mask, size, gap, jnp.where(begins, 0.0, response))
        return jax.tree.map(lambda x: x[:, -1], states), states

    def imagine(self, state: QueueState, action: Float[Array, "B A"], key: Key[Array, ""]) -> QueueState:
        """Speeds stay as they were last seen; of the next job, size and gap are drawn."""
        deter = self.gru(state.deter, self._read_job(state.size, state.gap))
        size, gap = (
            draw(head(deter), jax.random.uniform(k, (2, *state.size.shape)), self.config.unit)
            for head, k in zip((self.size_head, self.gap_head), jax.random.split(key), strict=True)
        )
        response = _response(state.backlog, state.speed, state.size, action)
        work = state.backlog + action * state.size[..., None]
        backlog = jnp.maximum(0.0, work - state.speed * gap[..., None])
        return QueueState(deter, backlog, state.speed, state.mask, size, gap, response)

    def features(self, state: QueueState) -> Features:
        """One row per server: backlog, speed, waiting time, the job's service time, their sum, and whether it is idle.
        The context: the job, the response time of the one before, and the recurrent state."""
        unit = self.config.unit
        speed = jnp.maximum(state.speed, SLOWEST)
        size = jnp.minimum(state.size, self.config.largest * unit)
        wait, service = state.backlog / speed, size[..., None] / speed
        lengths = jnp.stack([state.backlog, wait, service, wait + service], -1)
        others = jnp.stack([state.speed, (state.backlog == 0).astype(jnp.float32)], -1)
        rows = jnp.concatenate([jnp.log1p(lengths / unit), others], -1)
        numbers = jnp.log1p(jnp.stack([size, state.gap, state.response], -1) / unit)
        return Features(
            jnp.concatenate([numbers, state.deter], -1), jnp.where(state.mask[..., None], rows, 0.0), state.mask
        )

    def reward(self, state: QueueState) -> Float[Array, "*B"]:
        if self.reward_head is not None:
            return TwoHot(self.reward_head(self.features(state).context)).mean()
        assert self.price is not None, "it has the one or the other"
        return -jnp.exp(self.price) * jnp.expm1(jnp.log1p(state.response / self.config.unit))

    def continues(self, state: QueueState) -> Float[Array, "*B"]:
        return Bernoulli(self.continue_head(self.features(state).context)[..., 0]).mean()

    def loss(
        self, state: QueueState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[QueueState, dict[str, Float[Array, ""]]]]:
        _, states = self.observe(state, sequence, key)
        features = self.features(states)
        waits = ~sequence.is_last  # after an episode's last job there is none
        heads = (self.size_head, states.size), (self.gap_head, states.gap)
        jobs = sum(Categorical.from_logits(head(states.deter)).loss(token(x, self.config.unit)) for head, x in heads)
        if self.reward_head is None:
            error = jnp.square(symlog(self.reward(states)) - symlog(sequence.reward))
        else:
            error = TwoHot(self.reward_head(features.context)).loss(sequence.reward)
        goes_on = (1.0 - sequence.is_terminal) * self.discount
        losses = {
            "model/jobs": (jobs * waits).mean(),
            "model/reward": error.mean(),
            "model/continue": Bernoulli(self.continue_head(features.context)[..., 0]).loss(goes_on).mean(),
        }
        return sum(losses.values(), jnp.zeros(())), (states, losses)

    def _read_job(self, size: Float[Array, "*B"], gap: Float[Array, "*B"]) -> Float[Array, "*B U"]:
        return self.job_layer(jnp.log1p(jnp.stack([size, gap], -1) / self.config.unit))


def _response(
    backlog: Float[Array, "*B N"], speed: Float[Array, "*B N"], size: Float[Array, "*B"], action: Float[Array, "*B N"]
) -> Float[Array, "*B"]:
    """How long a job of `size` takes from arrival to finish on the server that `action` marks; 0 if it marks none."""
    work = (action * backlog).sum(-1) + action.sum(-1) * size
    return work / jnp.maximum((action * speed).sum(-1), SLOWEST)
