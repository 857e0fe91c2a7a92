"""A2C: learn from each stretch of experience once, then act on (Mnih et al. 2016, arXiv 1602.01783, synchronous).

One gradient step per rollout, on the policy gradient with generalised advantages, the entropy of the policy and the
error of the critic. Networks and advantages are in `actor_critic.py`.

Metrics: `actor/loss`, `actor/entropy`, `critic/loss`, `critic/value` and `critic/explained_variance` (of symlogs),
`gradient/norm` (before clipping).
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, Key

from reverie.agents.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    Learner,
    OfRollouts,
    critic_loss,
    descend,
    foreseen,
    judge,
    remember,
)
from reverie.agents.core import Rollout
from reverie.nn.layers import masked_mean


@dataclass(frozen=True)
class A2CConfig(ActorCriticConfig):
    """A2C needs no more than the common settings."""

    kind: ClassVar[str] = "a2c"


@dataclass(frozen=True)
class A2C(OfRollouts):
    """The algorithm, for one kind of world."""

    config: A2CConfig

    def update(
        self, learner: Learner, rollout: Rollout, key: Key[Array, ""]
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """One gradient step on a rollout of the present policy."""
        gradient, metrics = eqx.filter_grad(self.loss, has_aux=True)(learner.networks, rollout)
        return descend(self.config, learner, gradient), metrics | {"gradient/norm": optax.tree.norm(gradient)}

    def loss(self, networks: ActorCritic, rollout: Rollout) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted sum of the losses, and metrics."""
        c = self.config
        features = remember(networks, rollout, c.reward_scale)  # [G, B, ...]
        value = networks.value(features)
        judged = judge(c, value, rollout.timestep)

        acted, observation = jax.tree.map(lambda x: x[:-1], (features, rollout.timestep.observation))
        policy = networks.act(acted, observation)
        entropy = masked_mean(policy.entropy(), judged.counts)
        actor_loss = -masked_mean(policy.log_prob(rollout.action) * judged.advantage, judged.counts)
        judging_loss = critic_loss(value[:-1], judged)
        metrics = {
            "actor/loss": actor_loss,
            "actor/entropy": entropy,
            "critic/loss": judging_loss,
        } | foreseen(value, judged)
        return actor_loss - c.entropy * entropy + c.critic * judging_loss, metrics
