"""Rules that set the weights of a proxy's servers for an interval (`envs/fleet/weights.py`), rather than send each job.

What they give is the action of that world: a number in [-1, 1] for each server, its weight by logarithm.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpy.typing import ArrayLike

from reverie.envs.core import TimeStep
from reverie.envs.fleet.weights import FEATURES, LEAST, action_of
from reverie.policies.adaptive import AdaptiveLeastConnections, ServerEstimates
from reverie.policies.views import Checked, Rule, View
from reverie.ranges import Weight

COLUMN = {name: place for place, name in enumerate(FEATURES)}


class HeldWeights(eqx.Module):
    """Configured weights that nobody changes: weighted `leastconn`, with the proxy's caps and queue."""

    view: ClassVar[View] = "weights"
    weights: Float[Array, "*B N"]
    """Of any scale; 0 for padding. With an axis B, for each of the B environments that it plays in."""

    def initial_state(self, batch: int) -> tuple[()]:
        return ()

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Float[Array, "B N"], tuple[()]]:
        mask = _seen(timestep, self.weights.shape[-1])[2]
        return jnp.broadcast_to(action_of(self.weights), mask.shape), state


class AdaptiveWeights(Checked):
    """Each server's estimated rate, to a power, for its weight: `reverie serve`'s rule.

    Rates are those of adaptive least-connections, of what a proxy tells once in an interval: what a server completed in
    it, and whether it has jobs at its end, which counts for the time that it was busy. Where they lie so far apart that
    more than half of the servers would have the least weight, the nominal speeds are the weights, as in `serve`.
    """

    view: ClassVar[View] = "weights"
    estimates: AdaptiveLeastConnections
    """The estimator: nominal speeds and time constant; its `c` is not used."""
    gain: Weight = 1.0
    """Weights are rates to this power: below 1 they are kept together, at 0 equal."""

    def initial_state(self, batch: int) -> ServerEstimates:
        return self.estimates.initial_state(batch)

    def act(
        self, state: ServerEstimates, timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B N"], ServerEstimates]:
        rows, proxy, mask = _seen(timestep, self.estimates.speeds.shape[0])
        jobs, lasted = rows[..., COLUMN["in progress"]], proxy[..., 2:]  # [B, N], [B, 1]
        kept = jnp.exp(-lasted / self.estimates.tau)
        state = ServerEstimates(
            jobs=jobs,
            completed=kept * state.completed + rows[..., COLUMN["completions"]],
            busy=kept * state.busy + jnp.where(jobs > 0, lasted, 0.0),
        )
        weights = self.estimates.rates(state) ** self.gain
        least = mask & (weights <= LEAST * weights.max(-1, keepdims=True))
        apart = least.sum(-1, keepdims=True) > mask.sum(-1, keepdims=True) / 2
        return action_of(jnp.where(apart, self.estimates.speeds, weights)), state


def weight_rules(nominal: ArrayLike, patience: float) -> dict[str, Rule]:
    """The rules by name, for servers of `nominal` speeds [N], 0 for padding; `patience` is the time constant."""
    speeds = jnp.asarray(nominal, jnp.float32)
    return {
        "equal-weights": HeldWeights(jnp.where(speeds > 0, 1.0, 0.0)),
        "nominal-weights": HeldWeights(speeds),
        "adaptive-weights": AdaptiveWeights(AdaptiveLeastConnections(nominal, tau=patience)),
    }


def _seen(timestep: TimeStep, servers: int) -> tuple[Array, Array, Array]:
    seen = timestep.observation
    if "proxy" not in seen or seen["servers"].shape[-2] != servers:
        shapes = {name: entry.shape for name, entry in seen.items()}
        raise ValueError(
            f"this rule sets weights of {servers} servers from what a proxy tells (servers [B, {servers}, "
            f"{len(FEATURES)}], proxy [B, 3]), but the observation has {shapes}: play it on a WeightsEnv of that size"
        )
    return seen["servers"], seen["proxy"], seen["mask"]
