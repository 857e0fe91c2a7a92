"""MAML: weights from which one gradient step on a little experience of a task makes a policy for it.

Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400) with PPO within and without. Within a
trial the actor acts for some steps as it is; one step down PPO's loss on what came of them adapts it to the task
(equation 1), and so it acts for the rest. Learned is what that is worth: PPO's loss of the adapted actors on the rest
of their trials, with the gradient taken through their adaptation (equation 4). As PPO goes through a rollout several
times, the inner loss too weighs actions by how much likelier they have become (as in ProMP, arXiv 1810.06784). Many
tasks are one `vmap`.

Ours: each stream adapts to what it lived through alone; the critic, which is not adapted, is this code base's
(`actor_critic.py`), in place of a linear one for each task.

Metrics: those of PPO, of the adapted actors, and `inner/change`, how far the step moves an actor's weights (norm).

Axes: B streams, each with a task; H steps before adaptation and T in a trial, seen at H + 1 and T + 1 moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key
from tyro.conf import arg

from reverie.agents.actor_critic import (
    ActorCritic,
    Judgement,
    Learner,
    critic_loss,
    foreseen,
    fresh,
    judge,
)
from reverie.agents.core import Rollout
from reverie.agents.heads import SetTower, Tower
from reverie.agents.ppo import PPOConfig, in_minibatches, surrogate
from reverie.envs.core import ActionSpec, ArraySpec, TimeStep, select
from reverie.nn.layers import masked_mean
from reverie.ranges import Count, Positive, checked


@dataclass(frozen=True)
@checked
class MAMLConfig:
    """PPO's settings, and those of adaptation."""

    name: ClassVar[str] = "maml"
    """What tables call the agent."""
    ppo: Annotated[PPOConfig, arg(name="")] = field(default_factory=PPOConfig)
    """Of the outer loss; the inner one has its discount, its lambda and its clip."""
    inner_rate: Positive = 0.1
    """Step size of adaptation (alpha)."""
    inner_steps: Count = 130
    """Steps after which the actor adapts (H), the last of an episode counted as one too; it does so once in a trial."""

    def __post_init__(self):
        if self.ppo.network.memory:
            raise ValueError(
                f"MAMLConfig: adaptation is by gradient, so there is no memory; got {self.ppo.network.memory}"
            )


class Lived(NamedTuple):
    """What a stream lived through [H + 1, ...], and did [H, ...]."""

    timestep: TimeStep
    action: Array


@dataclass(frozen=True)
class MAML:
    """The algorithm, for one kind of world."""

    config: MAMLConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks. The critic starts at exactly 0, the actor near uniform."""
        return fresh(self.config.ppo, self.observation_spec, self.action_spec, key)

    def policy(self, networks: ActorCritic, greedy: bool = False) -> "MAMLPolicy":
        """The agent as a `Policy`; `greedy` takes the likeliest action of the adapted actor instead of drawing one."""
        return MAMLPolicy(networks, self.config, tuple(self.observation_spec.items()), greedy)

    def update(
        self, learner: Learner, rollout: Rollout, key: Key[Array, ""]
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """PPO's gradient steps on whole trials of the present policy.

        Errors: ValueError where the streams cannot be cut into equal minibatches, or a rollout is no longer than
        adaptation takes; RuntimeError where rollouts are not whole trials.
        """
        c, (length, streams) = self.config.ppo, rollout.action.shape[:2]
        if length <= self.config.inner_steps:
            raise ValueError(
                f"MAML: a rollout has {length} steps, and adaptation takes {self.config.inner_steps} (inner_steps): "
                "give more steps"
            )
        whole = rollout.is_trial_first[0].all() & rollout.is_trial_first[-1].all()
        timestep, action = eqx.error_if(
            (rollout.timestep, rollout.action),
            ~whole,
            "MAML: rollouts must be whole trials, of episodes that have one length: steps must be that of a trial",
        )
        net, split = learner.networks, self.config.inner_steps
        before, after = self.parts(timestep, action)
        seen = net.inputs.see(timestep.observation)
        value = net.value(seen)
        judged = judge(c, value, timestep)
        later = jax.tree.map(lambda x: x[split:], judged)  # what the adapted actors did, beside those before too
        was = jax.vmap(lambda lived: log_prob(net, net.actor, lived)[0], 1, 1)(before)
        adapted = jax.vmap(lambda lived, p: adapt(self.config, net, lived, p), 1)(before, was)
        did = jax.vmap(lambda actor, lived: log_prob(net, actor, lived)[0], (0, 1), 1)(adapted, after)
        rows = before, after, judged, later, was, did

        def part(chosen: Array) -> tuple:
            return jax.tree.map(lambda x: x[:, chosen], rows)

        learner, metrics = in_minibatches(c, learner, self.loss, part, streams, key)
        return learner, metrics | foreseen(value, judged)

    def parts(self, timestep: TimeStep, action: Array) -> tuple[Lived, Lived]:
        """What was lived before adaptation, and after it; the moment of adaptation belongs to both."""
        split = self.config.inner_steps
        before, after = (
            jax.tree.map(lambda x, m=moments: x[m], timestep) for moments in (slice(split + 1), slice(split, None))
        )
        return Lived(before, action[:split]), Lived(after, action[split:])

    def loss(
        self,
        networks: ActorCritic,
        before: Lived,
        after: Lived,
        judged: Judgement,
        later: Judgement,
        was: Float[Array, "H B"],
        did: Float[Array, "L B"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """PPO's loss of the actors that these networks adapt to, and the critic's on whole trials; metrics.

        Arguments: `later`, what is said of actions after adaptation; `was` and `did`, log-probabilities of actions when
        they were chosen, before adaptation and after it.
        """
        c = self.config.ppo
        adapted = jax.vmap(lambda lived, p: adapt(self.config, networks, lived, p), 1)(before, was)
        now, entropy = jax.vmap(lambda actor, lived: log_prob(networks, actor, lived), (0, 1), 1)(adapted, after)
        actor_loss, clipped = surrogate(c, now - did, later)
        entropy = masked_mean(entropy, later.counts)
        moments = jax.tree.map(
            lambda x, y: jnp.concatenate([x[:-1], y[:-1]]), before.timestep.observation, after.timestep.observation
        )
        judging_loss = critic_loss(networks.value(networks.inputs.see(moments)), judged)
        change = jax.vmap(lambda actor: optax.tree.norm(optax.tree.sub(actor, networks.actor)))(adapted)
        metrics = {
            "actor/loss": actor_loss,
            "actor/entropy": entropy,
            "actor/ratio_clipped": clipped,
            "critic/loss": judging_loss,
            "inner/change": change.mean(),
        }
        return actor_loss - c.entropy * entropy + c.critic * judging_loss, metrics


def adapt(
    config: MAMLConfig, networks: ActorCritic, lived: Lived, was: Float[Array, " H"] | None = None
) -> Tower | SetTower:
    """The actor after one step down PPO's loss on what a stream lived through. `was`: log-probabilities of its actions
    when they were chosen, those of now unless given."""
    value = jax.lax.stop_gradient(networks.value(networks.inputs.see(lived.timestep.observation)))
    judged = judge(config.ppo, value[:, None], jax.tree.map(lambda x: x[:, None], lived.timestep))

    def loss(actor: Tower | SetTower) -> Float[Array, ""]:
        now = log_prob(networks, actor, lived)[0]
        before = jax.lax.stop_gradient(now) if was is None else was
        return surrogate(config.ppo, (now - before)[:, None], judged)[0]

    slope = jax.grad(loss)(networks.actor)
    return jax.tree.map(lambda weight, change: weight - config.inner_rate * change, networks.actor, slope)


def log_prob(
    networks: ActorCritic, actor: Tower | SetTower, lived: Lived
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """Of what was done, by another actor, and the entropy of its policy."""
    observation = jax.tree.map(lambda x: x[:-1], lived.timestep.observation)
    policy = of(networks, actor).act(networks.inputs.see(observation), observation)
    return policy.log_prob(lived.action), policy.entropy()


def of(networks: ActorCritic, actor: Tower | SetTower) -> ActorCritic:
    """The same with another actor."""
    return eqx.tree_at(lambda net: net.actor, networks, actor)


class Adapting(NamedTuple):
    """Where B trials stand."""

    lived: Lived
    """Until adaptation, leaves [B, H + 1, ...] and [B, H, ...]."""
    actor: Tower | SetTower
    """One for each, leaves [B, ...]."""
    steps: Int[Array, " B"]
    """Moments seen so far."""


class MAMLPolicy(eqx.Module):
    """The agent as a `Policy`: it remembers what it lived through until it adapts to it."""

    networks: ActorCritic
    config: MAMLConfig = eqx.field(static=True)
    spec: tuple[tuple[str, ArraySpec], ...] = eqx.field(static=True)
    """Of observations."""
    greedy: bool = eqx.field(static=True)
    """Once adapted, take the likeliest action instead of drawing one; what is adapted to is drawn in any case."""

    def initial_state(self, batch: int) -> Adapting:
        steps = self.config.inner_steps
        moments = batch, steps + 1
        seen = {
            name: jnp.zeros((*moments, *entry.shape), bool if entry.kind == "mask" else jnp.float32)
            for name, entry in self.spec
        }
        no = jnp.zeros(moments, bool)
        done = jnp.repeat(self.networks.spec.nothing(batch)[:, None], steps, 1)
        actor = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), self.networks.actor)
        return Adapting(Lived(TimeStep(seen, jnp.zeros(moments), no, no, no), done), actor, jnp.zeros(batch, jnp.int32))

    def act(self, state: Adapting, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, Adapting]:
        each, at = jnp.arange(state.steps.shape[0]), state.steps

        def put(kept: Array, new: Array) -> Array:
            return kept.at[each, at].set(new, mode="drop")  # what comes after adaptation is not kept

        lived = state.lived._replace(timestep=jax.tree.map(put, state.lived.timestep, timestep))
        due = at == self.config.inner_steps
        actor = jax.lax.cond(
            due.any(),
            lambda: select(due, jax.vmap(lambda x: adapt(self.config, self.networks, x))(lived), state.actor),
            lambda: state.actor,
        )
        keys = jax.random.split(key, each.shape[0])
        action = jax.vmap(self.choose)(actor, timestep, keys, self.greedy & (at >= self.config.inner_steps))
        return action, Adapting(lived._replace(action=put(lived.action, action)), actor, at + 1)

    def choose(self, actor: Tower | SetTower, timestep: TimeStep, key: Key[Array, ""], likeliest: Array) -> Array:
        """The action of one stream."""
        policy = of(self.networks, actor).act(self.networks.inputs.see(timestep.observation), timestep.observation)
        drawn = policy.sample(key)
        return jnp.where(likeliest, policy.mode().astype(drawn.dtype), drawn)
