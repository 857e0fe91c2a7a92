"""SAC: learn from replay what actions are worth, and act as randomly as reward allows.

Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) for continuous actions, and for discrete ones (Christodoulou
2019, arXiv 1910.07207). Both learn twin critics Q by the soft Bellman equation, an actor that seeks min Q and entropy,
and the temperature between the two, so that entropy stays near a target. Where actions can be counted, expectations
over them are sums; where they cannot, one reparameterised sample stands for them. Nothing else differs. The three
losses are descended in one step of Adam, where the paper takes them one after the other.

Metrics: `actor/loss`, `actor/entropy`, `critic/loss`, `critic/value`, `temperature`, `gradient/norm`.

Axes: S sequences, T steps, A actions, a the actions that stand for all: A discrete ones, or one continuous sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.core import Row
from reverie.agents.heads import Flat, QNetwork, SetTower, actor_for
from reverie.agents.inputs import Inputs, Reading
from reverie.agents.soft import Considered, considered, distribution, followed
from reverie.envs.core import ActionSpec, ArraySpec, Continuous, Discrete, TimeStep
from reverie.models.core import Features
from reverie.nn.distributions import Categorical, TanhNormal
from reverie.nn.layers import masked_mean
from reverie.ranges import Layers, Positive, Share, Width, between, checked


@dataclass(frozen=True)
@checked
class SACConfig:
    """The paper's values for continuous control, but for the size."""

    name: ClassVar[str] = "sac"
    """What tables call the agent."""
    units: Width = 256
    """Width of the hidden layers of actor and critics."""
    layers: Layers = 2
    """Hidden layers of the actor, and of each critic."""
    servers: Reading = "flat"
    """Servers as one long vector, or as a set: a scorer shared by all servers, critics that judge each by its row.
    `queue` is a set that is told besides what a queue makes of work, speed and the job's size: waiting time, service
    time and their sum, as the world model of that name is."""
    learning_rate: Positive = 3e-4
    """Step size of Adam, for actor, critics and temperature."""
    discount: Share = 0.99
    """Weight of a reward one step later (gamma)."""
    slow_rate: Share = 0.005
    """Rate at which the target critics follow the critics, each update (tau)."""
    temperature: Positive = 1.0
    """Weight of entropy against scaled rewards (alpha) at the beginning."""
    target_entropy: Annotated[float | None, *between(-1_000, 1_000)] = None
    """Entropy in nats that the temperature steers to; None is the papers': minus the numbers of a continuous action, or
    0.98 of the most that a discrete one can have."""
    reward_scale: Positive = 1.0
    """Rewards are multiplied by this first: a unit, so that usual rewards are of the order of 1."""


class Networks(eqx.Module):
    """Everything that is learned by gradient."""

    actor: Flat | SetTower
    critics: tuple[QNetwork, QNetwork]
    log_temperature: Float[Array, ""]
    inputs: Inputs = eqx.field(static=True)
    spec: ActionSpec = eqx.field(static=True)

    def __init__(
        self, config: SACConfig, observation_spec: Mapping[str, ArraySpec], spec: ActionSpec, *, key: Key[Array, ""]
    ):
        self.spec, self.inputs = spec, (inputs := Inputs.of(observation_spec, spec, config.servers))
        sizes, shape = (inputs.context, inputs.rows), (config.units, config.layers)
        actor_key, *critic_keys = jax.random.split(key, 3)
        self.actor = actor_for(spec, *sizes, *shape, key=actor_key)
        one, two = (QNetwork(spec, *sizes, *shape, key=k) for k in critic_keys)
        self.critics = one, two
        self.log_temperature = jnp.log(jnp.float32(config.temperature))

    def policy(self, seen: Features, observation: dict[str, Array]) -> Categorical | TanhNormal:
        """The distribution over actions."""
        return distribution(self.actor, self.spec, self.inputs, seen, observation)


class Learner(NamedTuple):
    """All that training changes."""

    networks: Any
    """Those of SAC or of recurrent SAC; both have `critics`."""
    targets: Any
    """Critics that follow slowly."""
    optimiser: optax.OptState


def learner_of(c: SACConfig, networks: Any) -> Learner:
    """Of fresh networks with `critics`."""
    targets = jax.tree.map(jnp.copy, networks.critics)  # their own buffers, so that training may donate them
    return Learner(networks, targets, optax.adam(c.learning_rate).init(eqx.filter(networks, eqx.is_inexact_array)))


def descended(c: SACConfig, learner: Learner, gradient: PyTree) -> Learner:
    """After one step of Adam, and one of the targets."""
    step, optimiser = optax.adam(c.learning_rate).update(gradient, learner.optimiser)
    networks = eqx.apply_updates(learner.networks, step)
    return Learner(networks, followed(learner.targets, networks.critics, c.slow_rate), optimiser)


@dataclass(frozen=True)
class SAC:
    """The algorithm, for one kind of world."""

    config: SACConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    rows_lent = 1
    evidence = None

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks. The critics start near 0, the actor near the widest it can be."""
        return learner_of(self.config, Networks(self.config, self.observation_spec, self.action_spec, key=key))

    def policy(self, networks: Networks, greedy: bool = False) -> "SACPolicy":
        """The agent as a `Policy`; `greedy` takes the likeliest action instead of drawing one."""
        return SACPolicy(networks, greedy)

    def keep(self, networks: Networks, state: None) -> None:
        """Nothing: the policy has no memory."""

    def update(
        self, learner: Learner, rows: Row, key: Key[Array, ""]
    ) -> tuple[Learner, None, dict[str, Float[Array, ""]]]:
        """One step of Adam on the transitions within rows [S, 1 + T, ...], and one of the targets."""
        gradient, metrics = eqx.filter_grad(self.loss, has_aux=True)(learner.networks, learner.targets, rows, key)
        metrics |= {"gradient/norm": optax.tree.norm(gradient)}
        return descended(self.config, learner, gradient), None, metrics

    def loss(
        self, networks: Networks, targets: tuple[QNetwork, QNetwork], rows: Row, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of the three losses, and metrics."""
        now_key, after_key = jax.random.split(key)
        now, after = (jax.tree.map(lambda x, s=s: x[:, s], rows) for s in (slice(0, -1), slice(1, None)))  # [S, T]
        later = self.consider(networks, targets, after.timestep, after_key)
        seen = networks.inputs.see(now.timestep.observation)
        q = [critic.of(seen, now.action) for critic in networks.critics]
        ours = self.consider(networks, stop_gradient(networks.critics), now.timestep, now_key)
        counts = 1.0 - now.timestep.is_last  # after the end of an episode comes another, whatever is done
        return losses(self.config, self.action_spec, networks.log_temperature, q, ours, after.timestep, later, counts)

    def consider(
        self, networks: Networks, critics: tuple[QNetwork, QNetwork], timestep: TimeStep, key: Key[Array, ""]
    ) -> Considered:
        """What the policy might do at a timestep, and how good the critics find it."""
        seen = networks.inputs.see(timestep.observation)
        return considered(networks.policy(seen, timestep.observation), critics, seen, key)


def target_entropy(c: SACConfig, spec: ActionSpec) -> float:
    """In nats."""
    if c.target_entropy is not None:
        return c.target_entropy
    match spec:
        case Discrete(n):
            return 0.98 * math.log(n)
        case Continuous(size):
            return -float(size)


def losses(
    c: SACConfig,
    spec: ActionSpec,
    log_temperature: Float[Array, ""],
    q: Sequence[Float[Array, "S T"]],
    ours: Considered,
    led: TimeStep,
    later: Considered,
    counts: Float[Array, "S T"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of the three losses of transitions that count, and metrics. Numbers of equations are those of
    arXiv 1812.05905.

    Arguments: `q`, what each critic says of the action that was taken; `ours`, what the policy might do instead, by
    critics that are not to learn from it; `led`, where the action led, and `later`, what the policy might do there, by
    critics that follow slowly.
    """

    mean = partial(masked_mean, counts=counts)
    temperature = jnp.exp(stop_gradient(log_temperature))

    # Critics: the soft Bellman residual (equations 5 and 6). An episode that was cut off would have gone on.
    value = later.mean(later.q - temperature * later.log_prob)  # equation 3
    ahead = c.discount * (1.0 - led.is_terminal) * value
    target = stop_gradient(c.reward_scale * led.reward + ahead)
    critic_loss = sum((mean(0.5 * jnp.square(each - target)) for each in q), jnp.zeros(()))

    # Actor: towards the distribution that is proportional to exp(Q / temperature) (equations 7 and 9).
    actor_loss = mean(ours.mean(temperature * ours.log_prob - ours.q))

    # Temperature: up where entropy is below its target (equation 18).
    entropy = mean(-ours.mean(ours.log_prob))
    temperature_loss = jnp.exp(log_temperature) * stop_gradient(entropy - target_entropy(c, spec))

    metrics = {
        "actor/loss": actor_loss,
        "actor/entropy": entropy,
        "critic/loss": critic_loss,
        "critic/value": mean(q[0]),
        "temperature": temperature,
    }
    return critic_loss + actor_loss + temperature_loss, metrics


class SACPolicy(eqx.Module):
    """The agent as a `Policy`: frozen weights, and nothing to remember."""

    networks: Networks
    greedy: bool = eqx.field(static=True)
    """Take the likeliest action instead of drawing one."""

    def initial_state(self, batch: int) -> None:
        return None

    def act(self, state: None, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, None]:
        policy = self.networks.policy(self.networks.inputs.see(timestep.observation), timestep.observation)
        return policy.mode() if self.greedy else policy.sample(key), None
