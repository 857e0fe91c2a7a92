"""The rule that estimates speeds by maximum likelihood and dispatches with them, in `envs/dispatch.py`.

Work is done at a constant speed, so what the first job at a server pays tells its speed exactly: nothing else is as
likely, and later jobs, and what is worked off between arrivals, say the same. Of a server that was never given a job
all speeds are as likely; it is taken for the mean one, which is 1.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import TimeStep
from reverie.policies.views import pick


class Estimates(NamedTuple):
    """What is known of a trial's task, and what was dispatched last."""

    speed: Float[Array, "B N"]
    """Work per time unit; 1 as long as it is not known."""
    work: Float[Array, "B N"]
    """After the last dispatch."""
    chosen: Bool[Array, "B N"]


class LikelyDelay(eqx.Module):
    """Shortest expected delay, (work + size) / speed, by speeds of maximum likelihood: a `Policy` that learns through a
    trial."""

    servers: int = eqx.field(static=True)

    def initial_state(self, batch: int) -> Estimates:
        one = jnp.ones((batch, self.servers))
        return Estimates(one, 0 * one, one < 0)

    def act(self, state: Estimates, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], Estimates]:
        work, size = timestep.observation["servers"][..., 0], timestep.observation["job"][:, :1]
        took = jnp.where(timestep.is_first, 1.0, -timestep.reward)[:, None]  # the response of the job before
        speed = jnp.where(state.chosen & ~timestep.is_first[:, None], state.work / took, state.speed)
        action = pick((work + size) / speed, speed, jnp.ones_like(speed, bool))
        chosen = jnp.arange(self.servers) == action[:, None]
        return action, Estimates(speed, work + jnp.where(chosen, size, 0.0), chosen)
