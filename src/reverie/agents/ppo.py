"""PPO: learn from each stretch of experience several times, but never move far from the policy that gathered it.

Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347): A2C with a clipped ratio of probabilities,
several epochs over each rollout and minibatches of whole streams, so that memory is learned through time as it was
lived. Networks and advantages are in `actor_critic.py`.

Metrics: those of A2C, and `actor/ratio_clipped`, the share of actions beyond the clip. All are means over the update
but `critic/value` and `critic/explained_variance`, which are from before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from reverie.agents.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    Judgement,
    Learner,
    OfRollouts,
    critic_loss,
    descend,
    foreseen,
    judge,
    remember,
)
from reverie.agents.core import Rollout
from reverie.models.core import Features
from reverie.nn.layers import masked_mean
from reverie.ranges import Count, at_least, between, checked


@dataclass(frozen=True)
@checked
class PPOConfig(ActorCriticConfig):
    """The common settings, and how often and how carefully a rollout is used."""

    kind: ClassVar[str] = "ppo"

    epochs: Annotated[int, *at_least(1, 1_000)] = 4
    """How many times each rollout is gone through."""
    minibatches: Count = 4
    """Parts that the streams are cut into, one gradient step each."""
    ratio: Annotated[float, *between(0, 1, low_open=True, high_open=True)] = 0.2
    """How far the probability of an action may move away before it counts no more (epsilon)."""


@dataclass(frozen=True)
class PPO(OfRollouts):
    """The algorithm, for one kind of world."""

    config: PPOConfig

    def update(
        self, learner: Learner, rollout: Rollout, key: Key[Array, ""]
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """`epochs` times `minibatches` gradient steps on a rollout of the present policy.

        Errors: ValueError where the streams cannot be cut into equal minibatches.
        """
        c = self.config
        features = remember(learner.networks, rollout, c.reward_scale)
        value = learner.networks.value(features)
        judged = judge(c, value, rollout.timestep)
        before = self.log_prob(learner.networks, features, rollout)[0]

        def part(chosen: Array) -> tuple[Rollout, Judgement, Array]:
            carried = jax.tree.map(lambda x: x[chosen], rollout.before)
            rows = rollout._replace(before=None), judged, before
            part, *judgement = jax.tree.map(lambda x: x[:, chosen], rows)
            return part._replace(before=carried), *judgement

        learner, metrics = in_minibatches(c, learner, self.loss, part, rollout.action.shape[1], key)
        return learner, metrics | foreseen(value, judged)

    def loss(
        self, networks: ActorCritic, rollout: Rollout, judged: Judgement, before: Float[Array, "T B"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted sum of the losses, and metrics. `before`: log-probabilities when the actions were chosen."""
        c = self.config
        features = remember(networks, rollout, c.reward_scale)
        log_prob, entropy = self.log_prob(networks, features, rollout)
        actor_loss, clipped = surrogate(c, log_prob - before, judged)
        entropy = masked_mean(entropy, judged.counts)
        judging_loss = critic_loss(networks.value(features)[:-1], judged)
        metrics = {
            "actor/loss": actor_loss,
            "actor/entropy": entropy,
            "actor/ratio_clipped": clipped,
            "critic/loss": judging_loss,
        }
        return actor_loss - c.entropy * entropy + c.critic * judging_loss, metrics

    def log_prob(
        self, networks: ActorCritic, features: Features, rollout: Rollout
    ) -> tuple[Float[Array, "T B"], Float[Array, "T B"]]:
        """Log-probabilities of the actions of a rollout, and the entropy of the policy."""
        acted, observation = jax.tree.map(lambda x: x[:-1], (features, rollout.timestep.observation))
        policy = networks.act(acted, observation)
        return policy.log_prob(rollout.action), policy.entropy()


def in_minibatches(
    c: PPOConfig,
    learner: Learner,
    loss: Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]],
    part: Callable[[Int[Array, " S"]], tuple[PyTree, ...]],
    streams: int,
    key: Key[Array, ""],
) -> tuple[Learner, dict[str, Float[Array, ""]]]:
    """`epochs` times `minibatches` gradient steps, each on a `part` of all streams, and the means of metrics.

    Arguments: `loss`, that of networks on what `part` returns for some streams, and metrics.

    Errors: ValueError where the streams cannot be cut into equal minibatches.
    """
    if streams % c.minibatches:
        raise ValueError(f"{streams} streams cannot be cut into {c.minibatches} equal minibatches")

    def step(learner: Learner, chosen: Array) -> tuple[Learner, dict[str, Array]]:
        gradient, metrics = eqx.filter_grad(loss, has_aux=True)(learner.networks, *part(chosen))
        return descend(c, learner, gradient), metrics | {"gradient/norm": optax.tree.norm(gradient)}

    shuffled = jax.vmap(lambda k: jax.random.permutation(k, streams))(jax.random.split(key, c.epochs))
    learner, metrics = jax.lax.scan(step, learner, shuffled.reshape(c.epochs * c.minibatches, -1))
    return learner, jax.tree.map(jnp.mean, metrics)


def surrogate(
    c: PPOConfig, change: Float[Array, "T B"], judged: Judgement
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """PPO's clipped loss, where log-probabilities have changed by so much, and the share of actions beyond the clip."""
    ratio = jnp.exp(change)
    clipped = jnp.clip(ratio, 1 - c.ratio, 1 + c.ratio)
    loss = -masked_mean(jnp.minimum(ratio * judged.advantage, clipped * judged.advantage), judged.counts)
    return loss, masked_mean((ratio != clipped).astype(jnp.float32), judged.counts)
