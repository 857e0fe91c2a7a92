"""A rule of about 90 numbers: a good formula and a small network that corrects it, the same for every server.

The logarithm of the formula and the network's word are added up, so a network of zeros leaves the formula as it is.
Every input is a ratio of like quantities: what was tuned in one unit holds in all. `train/evolve.py` finds the numbers.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep
from reverie.policies.adaptive import AdaptiveLeastConnections, ServerEstimates
from reverie.policies.views import View, full_view, pick

HIDDEN = 12
"""Width of the network's one layer."""
INPUTS = 5
"""Ratios that it reads of each server (F)."""


class Correction(NamedTuple):
    """The network: F inputs, H tanh units, one output for each server."""

    inner: Float[Array, "F H"]
    bias: Float[Array, " H"]
    outer: Float[Array, " H"]

    def __call__(self, inputs: list[Float[Array, "*B N"]]) -> Float[Array, "*B N"]:
        """Written out term by term: on a CPU the terms become one loop, where products of such small matrices would
        cost four times as much."""
        word = jnp.zeros_like(inputs[0])
        for h in range(self.bias.shape[0]):
            sum_ = self.bias[h] + sum(x * self.inner[f, h] for f, x in enumerate(inputs))
            word = word + self.outer[h] * jnp.tanh(sum_)
        return word


def no_correction() -> Correction:
    """The network that says nothing."""
    return Correction(jnp.zeros((INPUTS, HIDDEN)), jnp.zeros(HIDDEN), jnp.zeros(HIDDEN))


class ScoredWork(eqx.Module):
    """Where work, speeds and sizes are seen: the formula is waiting time + c times the job's own service time."""

    view: ClassVar[View] = "full"
    c: Float[Array, ""]
    correction: Correction
    service: float
    """Mean job size over the mean speed of servers, the unit of times."""

    def initial_state(self, batch: int) -> tuple[()]:
        return ()

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = full_view(timestep)
        wait, service = seen.work / seen.speed / self.service, seen.size / seen.speed / self.service
        capacity = jnp.where(seen.allowed, seen.speed, 0.0).sum(-1, keepdims=True)  # [B, 1]
        drain = jnp.where(seen.allowed, seen.work, 0.0).sum(-1, keepdims=True) / capacity / self.service
        mean_speed = capacity / seen.allowed.sum(-1, keepdims=True)
        inputs = [
            jnp.log1p(wait),
            jnp.log1p(service),
            jnp.log(seen.speed / mean_speed),
            jnp.broadcast_to(jnp.log1p(drain), wait.shape),
            jnp.broadcast_to(jnp.log1p(seen.size / mean_speed / self.service), wait.shape),
        ]
        score = (wait + self.c * service + 1e-3) * jnp.exp(self.correction(inputs))
        return pick(score, seen.speed, seen.allowed), state


class ScoredCounts(eqx.Module):
    """Where only jobs in progress are seen: the formula is that of adaptive least-connections, (jobs + c) / rate."""

    view: ClassVar[View] = "counts"
    c: Float[Array, ""]
    correction: Correction
    estimates: AdaptiveLeastConnections
    """What estimates the rates."""
    service: float
    """A usual service time, in time units."""

    def initial_state(self, batch: int) -> ServerEstimates:
        return self.estimates.initial_state(batch)

    def act(
        self, state: ServerEstimates, timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], ServerEstimates]:
        seen, state = self.estimates.watch(state, timestep)
        rates = self.estimates.rates(state)
        count = seen.allowed.sum(-1, keepdims=True)  # [B, 1]
        mean_rate = jnp.where(seen.allowed, rates, 0.0).sum(-1, keepdims=True) / count
        mean_jobs = jnp.where(seen.allowed, seen.jobs, 0.0).sum(-1, keepdims=True) / count
        inputs = [
            jnp.log1p(seen.jobs),
            jnp.log(rates / mean_rate),
            jnp.log1p(state.busy / self.service) - jnp.log1p(state.completed),
            jnp.broadcast_to(jnp.log1p(mean_jobs), rates.shape),
            jnp.broadcast_to(jnp.log1p(seen.gap / self.service), rates.shape),
        ]
        score = (seen.jobs + self.c) / rates * jnp.exp(self.correction(inputs))
        action = pick(score, rates, seen.allowed)
        return action, self.estimates.dispatched(state, action)
