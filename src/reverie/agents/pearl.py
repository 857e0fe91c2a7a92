"""PEARL: infer the task from transitions in any order, and learn from replay what actions are worth in it.

Rakelly et al. 2019, "Efficient off-policy meta-reinforcement learning via probabilistic context variables"
(arXiv 1903.08254); where the paper is silent, the authors' code (github.com/katerakelly/oyster). Each transition says
by itself what the task may be, a Gaussian over z; their product is the belief. An episode is acted with one z drawn
from it, at first from the prior, so that it explores as if a guess were true. Actor, critics and value are those of
the first SAC (arXiv 1801.01290), which are told z: no temperature, but a scale of rewards. The encoder learns what z is
for from the critics' loss alone, and is held to the prior by a KL.

It learns from all that is kept of a task, and infers the task from what was collected with the prior of late.

Ours: hidden layers of this code base instead of ReLU, numbers read by their symlog, one step of Adam for all losses,
discrete actions, over which expectations are sums as in `sac.py`, and that all tasks are collected side by side.

Metrics: `actor/loss`, `actor/entropy`, `critic/loss`, `critic/value`, `value/loss`, `task/kl`, `task/deviation` (of z,
in the mean over its numbers), `gradient/norm`.

Axes: M tasks, S sequences of each, T steps, n stretches of evidence of L rows, Z numbers of z.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.agents.core import Evidence, Row, Studied
from reverie.agents.heads import Flat, QNetwork, SetTower, actor_for
from reverie.agents.inputs import Inputs, Reading
from reverie.agents.soft import considered, distribution, followed
from reverie.envs.core import ActionSpec, ArraySpec, Discrete, TimeStep, select
from reverie.models.context import ENCODERS, Belief, ContextEncoder, EncoderKind, Transition
from reverie.models.core import Features
from reverie.nn.distributions import Categorical, TanhNormal
from reverie.nn.layers import Head, masked_mean
from reverie.ranges import Count, Layers, Positive, Share, Weight, Whole, Width, at_least, checked


@dataclass(frozen=True)
@checked
class PEARLConfig:
    """The values of the authors' code."""

    name: ClassVar[str] = "pearl"
    """What tables call the agent."""
    latent: Annotated[int, *at_least(1, 1_000)] = 5
    """Numbers of z."""
    units: Width = 300
    """Width of the hidden layers of actor, critics and value."""
    layers: Layers = 3
    """Hidden layers of each."""
    encoder_units: Width = 200
    """Width of the hidden layers of the encoder."""
    encoder_layers: Layers = 3
    """Hidden layers of the encoder."""
    servers: Reading = "flat"
    """Servers as one long vector, or as a set; the encoder reads the former in any case."""
    sees_next: bool = False
    """Whether the encoder sees what an action led to besides what it paid: where tasks differ in more than rewards."""
    learning_rate: Positive = 3e-4
    """Step size of Adam, for everything."""
    discount: Share = 0.99
    """Weight of a reward one step later (gamma)."""
    slow_rate: Share = 0.005
    """Rate at which the target value follows the value, each update (tau)."""
    reward_scale: Positive = 5.0
    """Rewards are multiplied by this first: the larger, the less entropy counts beside them."""
    temperature: Positive = 1.0
    """Weight of entropy beside scaled rewards (alpha). The authors have 1 and scale rewards alone, which makes
    values large where these are to count much."""
    kl: Weight = 0.1
    """Weight of the KL between belief and prior, summed over tasks and numbers of z."""
    regularise: Weight = 1e-3
    """Weight of the mean squares of what the actor gives for a continuous action, centre and logarithm of deviation."""
    tasks: Count = 16
    """Tasks of an update."""
    evidence: Count = 64
    """Transitions from which each of them is inferred."""
    recent: Count = 400
    """How many of a task's newest steps with the prior these are drawn from."""
    prior_episodes: Whole = 2
    """Episodes of a trial that are collected with z drawn from the prior, before those with z drawn from the belief."""
    test_episodes: Whole = 2
    """The same when the agent is judged."""

    def __post_init__(self):
        if not self.prior_episodes or not self.test_episodes:
            raise ValueError(
                "PEARLConfig: a context is too short: the task is inferred from episodes with the prior, so "
                f"prior_episodes and test_episodes must be at least 1; got {self.prior_episodes} and "
                f"{self.test_episodes}"
            )


class Networks(eqx.Module):
    """Everything that is learned by gradient."""

    encoder: ContextEncoder
    actor: Flat | SetTower
    critics: tuple[QNetwork, QNetwork]
    value: Flat | SetTower
    inputs: Inputs = eqx.field(static=True)
    reads: Inputs = eqx.field(static=True)
    """Of the encoder."""
    spec: ActionSpec = eqx.field(static=True)

    def __init__(
        self,
        config: PEARLConfig,
        observation_spec: Mapping[str, ArraySpec],
        spec: ActionSpec,
        encoder: EncoderKind = "product",
        *,
        key: Key[Array, ""],
    ):
        if isinstance(spec, Discrete) and config.regularise not in (0, PEARLConfig.regularise):
            raise ValueError(
                f"PEARLConfig: regularise is {config.regularise:g}, and of discrete actions there is nothing to "
                f"regularise: leave it at {PEARLConfig.regularise:g}, or give 0"
            )
        self.spec = spec
        self.inputs = inputs = Inputs.of(observation_spec, spec, config.servers)
        self.reads = Inputs.of(observation_spec, spec, "flat")
        encoder_key, actor_key, value_key, *critic_keys = jax.random.split(key, 5)
        width = self.reads.context * (2 if config.sees_next else 1) + spec.width + 1
        shape = config.encoder_units, config.encoder_layers, config.sees_next
        self.encoder = ENCODERS[encoder](width, config.latent, *shape, key=encoder_key)
        sizes, shape = (inputs.context + config.latent, inputs.rows), (config.units, config.layers)
        self.actor = actor_for(spec, *sizes, *shape, key=actor_key)
        one, two = (QNetwork(spec, *sizes, *shape, key=k) for k in critic_keys)
        self.critics = one, two
        if inputs.as_set:
            self.value = SetTower(*sizes, *shape, per_server=False, scale=0.01, key=value_key)
        else:
            self.value = Flat(Head(sizes[0], 1, *shape, scale=0.01, key=value_key))

    def read(self, observation: dict[str, Array]) -> Float[Array, "*B D"]:
        """An observation as the encoder reads it."""
        return self.reads.see(observation).context

    def believe(self, evidence: Row) -> Belief:
        """What stretches [*B, n, L, ...] say together; what may not serve, and what no action led to, says nothing."""
        seen, reward = self.read(evidence.timestep.observation), evidence.timestep.reward[..., 1:]
        action = self.spec.encode(evidence.action)[..., :-1, :]
        each = Transition(seen[..., :-1, :], action, reward, seen[..., 1:, :])
        serves = (evidence.kept & ~evidence.timestep.is_last)[..., :-1]
        *batch, stretches, length = serves.shape
        shape = *batch, stretches * length
        each = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[len(batch) + 2 :]), each)
        return self.encoder.believe(each, serves.reshape(shape))

    def with_task(self, observation: dict[str, Array], z: Float[Array, "*B Z"]) -> Features:
        """An observation as actor, critics and value read it, with z."""
        seen = self.inputs.see(observation)
        return seen._replace(context=jnp.concatenate([seen.context, z], -1))

    def policy(self, seen: Features, observation: dict[str, Array]) -> Categorical | TanhNormal:
        """The distribution over actions."""
        return distribution(self.actor, self.spec, self.inputs, seen, observation)


class Learner(NamedTuple):
    """All that training changes."""

    networks: Networks
    target: Flat | SetTower
    """The value, following slowly."""
    optimiser: optax.OptState


@dataclass(frozen=True)
class PEARL:
    """The algorithm, for one kind of world."""

    config: PEARLConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    rows_lent = 1

    @property
    def evidence(self) -> Evidence:
        """Single transitions, of which each takes two rows."""
        return Evidence(self.config.tasks, self.config.evidence, 2, self.config.recent)

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks."""
        networks = Networks(self.config, self.observation_spec, self.action_spec, key=key)
        target = jax.tree.map(jnp.copy, networks.value)  # its own buffers, so that training may donate them
        return Learner(networks, target, self.optimiser.init(eqx.filter(networks, eqx.is_inexact_array)))

    def policy(self, networks: Networks, greedy: bool = False) -> "PEARLPolicy":
        """The agent as a `Policy`; `greedy` takes the likeliest action instead of drawing one."""
        c = self.config
        return PEARLPolicy(networks, greedy, c.test_episodes if greedy else c.prior_episodes)

    def keep(self, networks: Networks, state: "PEARLState") -> Bool[Array, " B"]:
        """Whether a step was taken with z drawn from the prior: these are what tasks are inferred from."""
        return state.is_prior

    def update(
        self, learner: Learner, rows: Studied, key: Key[Array, ""]
    ) -> tuple[Learner, None, dict[str, Float[Array, ""]]]:
        """One step of Adam on the transitions of M tasks, each inferred from its evidence, and one of the target."""
        gradient, metrics = eqx.filter_grad(self.loss, has_aux=True)(learner.networks, learner.target, rows, key)
        step, optimiser = self.optimiser.update(gradient, learner.optimiser)
        networks = eqx.apply_updates(learner.networks, step)
        target = followed(learner.target, networks.value, self.config.slow_rate)
        return Learner(networks, target, optimiser), None, metrics | {"gradient/norm": optax.tree.norm(gradient)}

    def loss(
        self, networks: Networks, target: Flat | SetTower, given: Studied, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of all losses, and metrics."""
        c = self.config
        task_key, act_key = jax.random.split(key)

        # The task: one z for all rows of it, and how far the belief is from the prior.
        mean, variance = networks.encoder.gaussian(networks.believe(given.evidence))  # [M, Z]
        z = draw(mean, variance, task_key)
        kl = from_prior(mean, variance).sum()
        steps = Steps.of(given.rows)
        z = jnp.broadcast_to(z[:, None, None], (*steps.reward.shape, c.latent))  # [M, S, T, Z]
        total, metrics = soft_losses(c, networks, target, steps, z, act_key)
        metrics |= {"task/kl": kl / c.tasks, "task/deviation": jnp.sqrt(variance).mean()}
        return total + c.kl * kl, metrics

    @property
    def optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.config.learning_rate)


def draw(mean: Float[Array, "*B Z"], variance: Float[Array, "*B Z"], key: Key[Array, ""]) -> Float[Array, "*B Z"]:
    """A sample; gradients reach both."""
    return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape)


def from_prior(mean: Float[Array, "*B Z"], variance: Float[Array, "*B Z"]) -> Float[Array, "*B"]:
    """KL of the belief from the prior, in nats."""
    return 0.5 * (jnp.square(mean) + variance - 1 - jnp.log(variance)).sum(-1)


class Steps(NamedTuple):
    """What was done and what came of it, to learn actions from."""

    observation: dict[str, Array]
    action: Array
    reward: Float[Array, "*B"]
    after: dict[str, Array]
    is_terminal: Bool[Array, "*B"]
    counts: Bool[Array, "*B"]
    """Not those at the end of an episode: after it comes another, whatever is done."""

    @classmethod
    def of(cls, rows: Row) -> "Steps":
        """The transitions [M, S, T] within rows [M, S, 1 + T, ...]."""
        now, after = (jax.tree.map(lambda x, s=s: x[:, :, s], rows) for s in (slice(0, -1), slice(1, None)))
        led = after.timestep
        return cls(
            now.timestep.observation, now.action, led.reward, led.observation, led.is_terminal, ~now.timestep.is_last
        )


def soft_losses(
    c: PEARLConfig,
    networks: Networks,
    target: Flat | SetTower,
    steps: Steps,
    z: Float[Array, "*B Z"],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The losses of critics, value and actor where each step is told z, summed; through z those of the critics reach
    whatever it was made by. And metrics."""
    seen = networks.with_task(steps.observation, z)
    blind = networks.with_task(steps.observation, stop_gradient(z))  # what is learned here teaches no encoder
    counts = steps.counts.astype(jnp.float32)

    average = partial(masked_mean, counts=counts)
    # Critics.
    ahead = networks.with_task(steps.after, stop_gradient(z))
    value = c.discount * (1.0 - steps.is_terminal) * target(ahead)[..., 0]
    goal = stop_gradient(c.reward_scale * steps.reward + value)
    q = [critic.of(seen, steps.action) for critic in networks.critics]
    critic_loss = sum((average(jnp.square(each - goal)) for each in q), jnp.zeros(()))

    # Value and actor: towards what the policy is worth, and the distribution that is proportional to exp Q.
    policy = networks.policy(blind, steps.observation)
    ours = considered(policy, stop_gradient(networks.critics), blind, key)
    worth = stop_gradient(ours.mean(ours.q - c.temperature * ours.log_prob))
    value_loss = average(jnp.square(networks.value(blind)[..., 0] - worth))
    actor_loss = average(ours.mean(c.temperature * ours.log_prob - ours.q)) + c.regularise * average(size(policy))

    metrics = {
        "actor/loss": actor_loss,
        "actor/entropy": average(-ours.mean(ours.log_prob)),
        "critic/loss": critic_loss,
        "critic/value": average(q[0]),
        "value/loss": value_loss,
    }
    return critic_loss + value_loss + actor_loss, metrics


def size(policy: Categorical | TanhNormal) -> Float[Array, "*B"]:
    """How large the numbers of a continuous action are; 0 for a discrete one."""
    match policy:
        case Categorical():
            return jnp.zeros(policy.probs.shape[:-1])
        case TanhNormal(center=center, deviation=deviation):
            return (jnp.square(center) + jnp.square(jnp.log(deviation))).mean(-1)


class PEARLState(NamedTuple):
    """What the policy knows of its trial."""

    belief: Belief
    z: Float[Array, "B Z"]
    """Of this episode."""
    episode: Int[Array, " B"]
    """Number of this episode in the trial, -1 before the first."""
    is_prior: Bool[Array, " B"]
    """Whether z was drawn from the prior."""
    seen: Float[Array, "B D"]
    action: Float[Array, "B A"]
    """What was seen and done last, as the encoder reads it."""


class PEARLPolicy(eqx.Module):
    """The agent as a `Policy`: one z for each episode of a trial, drawn from what was believed when it began."""

    networks: Networks
    greedy: bool = eqx.field(static=True)
    """Take the likeliest action instead of drawing one, and learn of the task from all episodes; else from those with
    the prior alone, as training does."""
    prior_episodes: int = eqx.field(static=True)

    def initial_state(self, batch: int) -> PEARLState:
        net = self.networks
        seen, action = (jnp.zeros((batch, width)) for width in (net.reads.context, net.spec.width))
        z, first = jnp.zeros((batch, net.encoder.latent)), jnp.full(batch, -1)
        return PEARLState(net.encoder.initial(batch), z, first, jnp.ones(batch, bool), seen, action)

    def act(self, state: PEARLState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PEARLState]:
        net, (z_key, act_key), begins = self.networks, jax.random.split(key), timestep.is_first
        seen = net.read(timestep.observation)
        learned = Transition(state.seen, state.action, timestep.reward, seen)
        belief = net.encoder.learn(state.belief, learned, ~begins & (state.is_prior | self.greedy))
        episode = state.episode + begins
        is_prior = episode < self.prior_episodes
        known = select(is_prior, net.encoder.initial(begins.shape[0]), belief)
        mean, variance = net.encoder.gaussian(known)
        z = jnp.where(begins[:, None], draw(mean, variance, z_key), state.z)
        policy = net.policy(net.with_task(timestep.observation, z), timestep.observation)
        action = policy.mode() if self.greedy else policy.sample(act_key)
        return action, PEARLState(belief, z, episode, is_prior, seen, net.spec.encode(action))
