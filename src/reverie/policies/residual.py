"""Mean residual life: how long will what is in progress at a server still take, given how long it has been there?

Where sizes have heavy tails, a job that has been in service for long will be there for long: an age tells what a count
does not. A balancer knows when it sent each of its jobs, and how long those before took (llm-d's scorer for LLM
servers, 2026, keeps a digest of past durations and sums the mean residual life of all requests in flight).
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep
from reverie.policies.views import Checked, View, as_speeds, latency_view, pick
from reverie.ranges import Positive

BINS = 32
"""Classes of durations (K), each half as long again as the one before."""
AGES = 16
"""Jobs in progress at a server whose age is remembered (Q); those beyond count as the oldest of them."""


class Lives(NamedTuple):
    """What is remembered of each server."""

    age: Float[Array, "B N Q"]
    """Time since each of the last Q jobs was sent there, the newest first."""
    count: Float[Array, "B N K"]
    """Past responses of each class of durations."""
    total: Float[Array, "B N K"]
    """Their sums."""


class ResidualLife(Checked):
    """The least sum of mean residual lives, the new job's own included: what a response takes in the mean.

    The view tells how many jobs finished and how long they took together, not which: they are taken to be the oldest,
    and to have taken as long as each other. A job that is older than any that has ended is expected to take as long
    again, as under a Pareto tail of shape 2. Both are ours, and so is counting the new job. Memory lives through a
    trial; jobs in progress end with an episode. A server of which nothing is known is tried when it is idle.
    """

    view: ClassVar[View] = "latency"
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """1 for a server, 0 for padding."""
    unit: Positive
    """A usual service time, in time units: the classes of durations begin at a tenth of it."""

    def initial_state(self, batch: int) -> Lives:
        n = self.servers.shape[0]
        none = jnp.zeros((batch, n, BINS))
        return Lives(jnp.zeros((batch, n, AGES)), none, none)

    def act(self, state: Lives, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], Lives]:
        seen = latency_view(timestep, self.servers)
        finished = jnp.where(timestep.is_first[:, None], 0.0, seen.finished)
        mean = jnp.where(finished > 0, seen.total / jnp.maximum(finished, 1.0), 0.0)
        hit = jax.nn.one_hot(self._bin(mean), BINS)
        lives = Lives(
            state.age + seen.gap[..., None],
            state.count + finished[..., None] * hit,
            state.total + (finished * mean)[..., None] * hit,
        )
        own = self.residual(lives, jnp.zeros_like(seen.jobs)[..., None])[..., 0]  # of the new job
        here = jnp.arange(AGES) < seen.jobs[..., None]
        beyond = jnp.maximum(seen.jobs - AGES, 0.0)
        left = self.residual(lives, lives.age)
        score = own + jnp.where(here, left, 0.0).sum(-1) + beyond * left[..., -1]
        unknown = jnp.where(seen.jobs > 0, jnp.finfo(jnp.float32).max / 1e6 * (1 + seen.jobs), 0.0)
        score = jnp.where(lives.count.sum(-1) > 0, score, unknown)
        action = pick(score, jnp.ones_like(score), seen.allowed)
        chosen = jax.nn.one_hot(action, score.shape[-1], dtype=bool)[..., None]
        sent = jnp.concatenate([jnp.zeros_like(lives.age[..., :1]), lives.age[..., :-1]], -1)
        return action, lives._replace(age=jnp.where(chosen, sent, lives.age))

    def residual(self, lives: Lives, age: Float[Array, "B N Q"]) -> Float[Array, "B N Q"]:
        """E[response - age | response > age] by the responses of all longer classes, of each server."""
        longer = self._bin(age) + (age > 0)  # the class of the age itself does not tell which of it were longer

        def above(x: Float[Array, "B N K"]) -> Float[Array, "B N Q"]:
            tail = jnp.flip(jnp.cumsum(jnp.flip(x, -1), -1), -1)
            return jnp.take_along_axis(jnp.pad(tail, [(0, 0), (0, 0), (0, 1)]), longer, -1)

        count = above(lives.count)
        return jnp.where(count > 0, above(lives.total) / jnp.maximum(count, 1e-30) - age, age)

    def _bin(self, duration: Float[Array, "..."]) -> Int[Array, "..."]:
        place = jnp.log(jnp.maximum(duration / (0.1 * self.unit), 1.0)) / np.log(1.5)
        return jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
