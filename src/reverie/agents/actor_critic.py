"""What A2C and PPO have in common: their networks, the policy made of them, and what experience says about actions.

Rewards of a fleet are minus response times of 1e2 to 1e5 with heavy tails, and the values of its states differ by as
much. Two choices, ours, make one setting fit all of them without running statistics: the critic predicts returns
through `sinh` and is judged by its relative error, and advantages count relative to the value of their state.

Axes: B streams, T steps, G = T + 1 moments (the last one only tells what the step before led to), N servers,
A actions, M memory units.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from reverie.agents.core import Rollout
from reverie.agents.heads import SetTower, Tower, action_distribution, numbers_of
from reverie.agents.inputs import Inputs, Reading
from reverie.agents.rl2 import led_here
from reverie.envs.core import ActionSpec, ArraySpec, TimeStep
from reverie.models.core import Features
from reverie.nn.distributions import BoundedNormal, Categorical, symlog
from reverie.nn.layers import GRU, masked_mean
from reverie.ranges import Layers, Positive, Share, Weight, Whole, Width, WidthOr0, checked

OUTLIER = 5.0
"""A relative error of the critic beyond this pulls no harder than this: returns have heavy tails."""


@dataclass(frozen=True)
@checked
class NetworkConfig:
    """Actor and critic, two networks of one size that share at most the memory."""

    units: Width = 64
    """Width of the hidden layers."""
    layers: Layers = 2
    """Hidden layers of the actor, and of the critic."""
    memory: WidthOr0 = 0
    """Units of the recurrent memory (RL2), which lives through the episodes of a trial; 0 is none."""
    servers: Reading = "flat"
    """Servers as one long vector, or as a set: one scorer shared by all servers, a critic that pools over them, and a
    memory of its own for each server. `queue` is a set that is told besides what a queue makes of work, speed and the
    job's size: waiting time, service time and their sum, as the world model of that name is."""


@dataclass(frozen=True)
@checked
class ActorCriticConfig:
    """What A2C and PPO both have to be told."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Actor and critic."""
    learning_rate: Positive = 7e-4
    """Step size of Adam."""
    decay: Whole = 0
    """Updates over which the step size falls linearly to 0; 0 keeps it."""
    clip: Positive = 0.5
    """Largest norm of the whole gradient."""
    discount: Share = 0.97
    """Weight of a reward one step later (gamma)."""
    discount_lambda: Share = 0.95
    """Weight of longer returns against the critic's word (lambda)."""
    entropy: Weight = 0.01
    """Weight of the actor's entropy, against advantages of mean size 1."""
    critic: Positive = 0.5
    """Weight of the critic's loss."""
    reward_scale: Positive = 1.0
    """Rewards are multiplied by this first: a unit, so that usual rewards are of the order of 1."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """What tables call the agent."""
        return f"{self.kind}-rl2" if self.network.memory else self.kind


class Carry(NamedTuple):
    """What a recurrent policy carries from one step to the next."""

    recurrent: Float[Array, "B *N M"]
    """State of the memory; one for each server where servers are a set."""
    action: Array
    """What was done last [B] (of a continuous action [B, A])."""


class Judgement(NamedTuple):
    """What experience says about the actions of a rollout, by the critic's present word."""

    advantage: Float[Array, "T B"]
    """Relative to the value of the state, centred and of mean size 1."""
    target: Float[Array, "T B"]
    """What the critic should have predicted: the lambda return."""
    counts: Float[Array, "T B"]
    """1, or 0 where there was no action to judge, the episode being over."""


class Learner(NamedTuple):
    """All that training changes."""

    networks: "ActorCritic"
    optimiser: optax.OptState


# --- networks ------------------------------------------------------------------------------------------------------


class ActorCritic(eqx.Module):
    """Actor, critic and the memory they share."""

    memory: GRU | None
    actor: Tower | SetTower
    critic: Tower | SetTower
    inputs: Inputs = eqx.field(static=True)
    spec: ActionSpec = eqx.field(static=True)

    def __init__(
        self,
        config: NetworkConfig,
        observation_spec: Mapping[str, ArraySpec],
        action_spec: ActionSpec,
        *,
        key: Key[Array, ""],
    ):
        """The actor starts near uniform, the critic near 0.

        Errors: ValueError where the observation cannot be read (`Inputs`).
        """
        self.spec = action_spec
        self.inputs = Inputs.of(observation_spec, action_spec, config.servers)
        context, rows, as_set = self.inputs.context, self.inputs.rows, self.inputs.as_set
        memory_key, actor_key, critic_key = jax.random.split(key, 3)
        told = context + rows + (1 if as_set else action_spec.width) + 2
        outputs = numbers_of(action_spec)
        self.memory = GRU(told, config.memory, key=memory_key) if config.memory else None
        if as_set:
            sizes = context, rows + config.memory, config.units, config.layers
            self.actor = SetTower(*sizes, outputs, per_server=True, scale=0.01, key=actor_key)
            self.critic = SetTower(*sizes, per_server=False, scale=0.01, key=critic_key)
        else:
            inputs = context + config.memory
            size = outputs * action_spec.width, config.units, config.layers
            self.actor = Tower(inputs, *size, scale=0.01, key=actor_key)
            self.critic = Tower(inputs, 1, config.units, config.layers, scale=0.01, key=critic_key)

    def told(
        self, seen: Features, action: Array, reward: Float[Array, "*B"], is_first: Bool[Array, "*B"]
    ) -> Float[Array, "*BN I"]:
        """What the memory reads: what is seen, the action and reward that led here, whether an episode begins (RL2).

        With servers as a set each memory reads its own row, and of the action whether it was its server's.
        """
        done, rest = led_here(self.spec, action, reward, is_first)
        if seen.servers is None:
            return jnp.concatenate([seen.context, done, rest], -1)
        shared = jnp.concatenate([seen.context, rest], -1)[..., None, :]
        shared = jnp.broadcast_to(shared, (*seen.servers.shape[:-1], shared.shape[-1]))
        return jnp.concatenate([seen.servers, done[..., None], shared], -1)

    def with_memory(self, seen: Features, recurrent: Float[Array, "*B M"]) -> Features:
        """What is seen together with what is remembered."""
        if seen.servers is None:
            return seen._replace(context=jnp.concatenate([seen.context, recurrent], -1))
        return seen._replace(servers=jnp.concatenate([seen.servers, recurrent], -1))

    def act(self, features: Features, observation: dict[str, Array]) -> Categorical | BoundedNormal:
        """The distribution over actions [*B, A]."""
        mask = self.inputs.allowed(observation)
        return action_distribution(self.actor(features), self.spec, self.inputs.as_set, mask, BoundedNormal)

    def value(self, features: Features) -> Float[Array, "*B"]:
        """The expected return, in units of scaled rewards."""
        return jnp.sinh(self.critic(features)[..., 0])


# --- acting --------------------------------------------------------------------------------------------------------


class ActorCriticPolicy(eqx.Module):
    """The agent as a `Policy`: frozen weights and, where it has one, a memory that goes on adapting."""

    networks: ActorCritic
    reward_scale: float = eqx.field(static=True)
    greedy: bool = eqx.field(static=True)
    """Take the likeliest action instead of drawing one."""

    def initial_state(self, batch: int) -> Carry | None:
        net = self.networks
        if net.memory is None:
            return None
        rows = (net.spec.width,) if net.inputs.as_set else ()
        units = net.memory.recurrent.weight.shape[0]
        return Carry(jnp.zeros((batch, *rows, units)), net.spec.nothing(batch))

    def act(self, state: Carry | None, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, Carry | None]:
        net = self.networks
        features = net.inputs.see(timestep.observation)
        if net.memory is not None and state is not None:
            told = net.told(features, state.action, timestep.reward * self.reward_scale, timestep.is_first)
            state = state._replace(recurrent=net.memory(state.recurrent, told))
            features = net.with_memory(features, state.recurrent)
        policy = net.act(features, timestep.observation)
        match policy:
            case Categorical():
                action = policy.mode().astype(jnp.int32) if self.greedy else draw(policy, key)
            case BoundedNormal():
                action = policy.mode() if self.greedy else policy.sample(key)
        return action, state and state._replace(action=action)


def draw(policy: Categorical, key: Key[Array, ""]) -> Int[Array, "*B"]:
    """A sample by inversion: one random number, where the usual Gumbel trick takes A and two logarithms of each.

    An action of probability 0 is never drawn. The sums are written out, one term after the other, since a cumulative
    sum on the CPU takes longer than the whole network.
    """
    ends = list(itertools.accumulate(jnp.moveaxis(policy.probs, -1, 0)))  # A of [*B]
    noise = jax.random.uniform(key, ends[-1].shape) * ends[-1]
    return sum((noise >= end for end in ends[:-1]), start=jnp.zeros(noise.shape, jnp.int32))


# --- learning ------------------------------------------------------------------------------------------------------


def remember(networks: ActorCritic, rollout: Rollout, reward_scale: float) -> Features:
    """What the networks read at each moment of a rollout [G, B, ...], memory included, as acting would have it.

    The memory is emptied where a trial begins, not where an episode does.
    """
    ts, memory = rollout.timestep, networks.memory
    seen = networks.inputs.see(ts.observation)
    if memory is None or rollout.before is None:
        return seen
    done = jnp.concatenate([rollout.before.action[None], rollout.action])
    inputs = memory.project(networks.told(seen, done, ts.reward * reward_scale, ts.is_first))
    return networks.with_memory(seen, memory.over(rollout.before.recurrent, inputs, rollout.is_trial_first))


def judge(config: ActorCriticConfig, value: Float[Array, "G B"], timestep: TimeStep) -> Judgement:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438), made relative.

    An advantage of 100 is much where a state is worth -200, and noise where a huge job makes it worth -20,000. So each
    is divided by the size of the value of its state: a weight of states, which leaves the better action in each of them
    the better one. Then all are centred and scaled to a mean size of 1.
    """
    gain = advantages(config, value, timestep)
    counts = 1.0 - timestep.is_last[:-1]
    relative = gain / size(value[:-1])
    relative -= masked_mean(relative, counts)
    relative /= masked_mean(jnp.abs(relative), counts) + 1e-8
    return stop_gradient(Judgement(relative, gain + value[:-1], counts))


def advantages(config: ActorCriticConfig, value: Float[Array, "G B"], timestep: TimeStep) -> Float[Array, "T B"]:
    """A_t = d_t + gamma lambda A_{t+1} with d_t = r_{t+1} + gamma v_{t+1} - v_t, up to the end of an episode.

    An episode that was cut off (is_last alone) is taken to go on as the critic expects; one that ended has no more to
    come. What stands where `is_last` means nothing.
    """
    later = jax.tree.map(lambda x: x[1:], timestep)
    ahead = config.discount * (1.0 - later.is_terminal) * value[1:]
    error = later.reward * config.reward_scale + ahead - value[:-1]
    goes_on = config.discount * config.discount_lambda * (1.0 - later.is_last)

    def step(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        d, on = now
        return (gain := d + on * after), gain

    return jax.lax.scan(step, jnp.zeros_like(value[0]), (error, goes_on), reverse=True)[1]


def critic_loss(value: Float[Array, "T B"], judged: Judgement) -> Float[Array, ""]:
    """Half the squared relative error, for outliers the absolute one.

    The weight 1 / size depends on the state and not on the return, so the best prediction stays the mean; it is also
    the inverse of the slope of sinh, so the critic's output feels an error of 10 % alike at every scale.
    """
    error = (value - judged.target) / size(stop_gradient(value))
    return masked_mean(optax.huber_loss(error, delta=OUTLIER), judged.counts)


def size(value: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """sqrt(1 + value^2): the unit near 0, the value itself far from it."""
    return jnp.hypot(1.0, value)


def explained_variance(value: Float[Array, "T B"], judged: Judgement) -> Float[Array, ""]:
    """Share of the variance of returns that the critic foresaw, both as symlogs (a Pareto tail has no variance)."""
    target, error = symlog(judged.target), symlog(judged.target) - symlog(value)

    def variance(x: Array) -> Array:
        return masked_mean(jnp.square(x - masked_mean(x, judged.counts)), judged.counts)

    return 1 - variance(error) / (variance(target) + 1e-8)


def foreseen(value: Float[Array, "G B"], judged: Judgement) -> dict[str, Float[Array, ""]]:
    """Metrics of the critic, before it learns."""
    return {
        "critic/value": masked_mean(value[:-1], judged.counts),
        "critic/explained_variance": explained_variance(value[:-1], judged),
    }


def optimiser(config: ActorCriticConfig) -> optax.GradientTransformation:
    """Clipping of the whole gradient, then Adam."""
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.decay) if config.decay else config.learning_rate
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate, eps=1e-5))


def fresh(
    config: ActorCriticConfig,
    observation_spec: Mapping[str, ArraySpec],
    action_spec: ActionSpec,
    key: Key[Array, ""],
) -> Learner:
    """Fresh networks and optimiser."""
    networks = ActorCritic(config.network, observation_spec, action_spec, key=key)
    return Learner(networks, optimiser(config).init(eqx.filter(networks, eqx.is_inexact_array)))


def descend(config: ActorCriticConfig, learner: Learner, gradient: PyTree) -> Learner:
    """One step of the optimiser."""
    step, state = optimiser(config).update(gradient, learner.optimiser)
    return Learner(eqx.apply_updates(learner.networks, step), state)


@dataclass(frozen=True)
class OfRollouts:
    """What A2C and PPO are beside their `update`, for one kind of world."""

    config: Any
    """An `ActorCriticConfig`."""
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks. The critic starts at exactly 0, the actor near uniform."""
        return fresh(self.config, self.observation_spec, self.action_spec, key)

    def policy(self, networks: ActorCritic, greedy: bool = False) -> ActorCriticPolicy:
        """The agent as a `Policy`; `greedy` takes the likeliest action instead of drawing one."""
        return ActorCriticPolicy(networks, self.config.reward_scale, greedy)
