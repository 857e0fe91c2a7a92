"""What every soft actor-critic here does: a distribution over actions, what critics say of it, targets that follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.heads import Flat, QNetwork, SetTower, action_distribution
from reverie.agents.inputs import Inputs
from reverie.envs.core import ActionSpec
from reverie.models.core import Features
from reverie.nn.distributions import Categorical, TanhNormal


def distribution(
    actor: Flat | SetTower, spec: ActionSpec, inputs: Inputs, seen: Features, observation: dict[str, Array]
) -> Categorical | TanhNormal:
    """That over actions, of what was seen of an observation."""
    return action_distribution(actor(seen), spec, inputs.as_set, inputs.allowed(observation), TanhNormal.from_outputs)


class Considered(NamedTuple):
    """Actions that stand for all that the policy may do in a state, and what the critics say of them: A discrete ones,
    or one continuous sample (a)."""

    probability: Float[Array, "*B a"]
    """A weight that sums to 1."""
    log_prob: Float[Array, "*B a"]
    q: Float[Array, "*B a"]
    """By the more pessimistic critic."""

    def mean(self, x: Float[Array, "*B a"]) -> Float[Array, "*B"]:
        """The expectation of `x` under the policy."""
        return (self.probability * x).sum(-1)


def considered(
    policy: Categorical | TanhNormal, critics: tuple[QNetwork, QNetwork], seen: Features, key: Key[Array, ""]
) -> Considered:
    """What a policy might do, and how good critics find it."""
    match policy:
        case Categorical():
            q = jnp.minimum(*(critic.all(seen) for critic in critics))
            return Considered(policy.probs, policy.log_probs, q)
        case TanhNormal():
            action, log_prob = policy.reparameterised(jax.random.normal(key, policy.center.shape))
            q = jnp.minimum(*(critic.of(seen, action) for critic in critics))
            return Considered(jnp.ones_like(q)[..., None], log_prob[..., None], q[..., None])


def followed[T: PyTree](slow: T, fast: T, rate: float) -> T:
    """Weights that follow others slowly, one step later."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), slow, fast)
