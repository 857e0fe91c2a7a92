"""DreamerV3 with an RL2 policy: learn a model of the world, dream inside it, and learn from the dreams how to act.

The algorithm is that of DreamerV3's public code of 2024/2025 (Hafner et al., arXiv 2301.04104), top to bottom: act,
loss (model, dreams, actor, critic, critic on replay), update. Between the model's features and actor and critic stands
a recurrent layer (Redovian 2025, arXiv 2503.08872; Duan et al. 2016, arXiv 1611.02779) whose state lives through the
episodes of a trial, so that the policy adapts without a gradient step. Any `WorldModel` will do.

Axes: B streams or sequences, T replayed steps, H imagined steps, G = H + 1, n dreams, A actions, M memory units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from reverie.agents.core import Row
from reverie.agents.heads import Actor, Critic, Critics, critic_for
from reverie.agents.optimisers import GroupsConfig, optimiser
from reverie.agents.rl2 import memory_inputs, remember, remember_dream, remember_sequence
from reverie.agents.soft import followed
from reverie.envs.core import ActionSpec, ArraySpec, Continuous, TimeStep
from reverie.models.build import ModelConfig, build_model
from reverie.models.core import Features, ModelState, Sequence, WorldModel
from reverie.models.rssm import RSSMConfig
from reverie.nn.distributions import TwoHot
from reverie.nn.layers import GRU, time_first
from reverie.nn.optimiser import OptimiserConfig
from reverie.nn.parts import map_in_parts, mean_in_parts
from reverie.ranges import Count, Layers, Positive, Share, Weight, Whole, Width, WidthOr0, at_least, checked


@dataclass(frozen=True)
@checked
class DreamerConfig:
    """DreamerV3's values, for every world the same; what a preset changes is in `presets.py`."""

    model: ModelConfig = field(default_factory=RSSMConfig)
    """The world model."""
    optimiser: OptimiserConfig | GroupsConfig = field(default_factory=OptimiserConfig)
    """One optimiser for all networks, or one for each."""
    memory: WidthOr0 = 256
    """Units of the recurrent policy (RL2); 0 is DreamerV3 as published."""
    units: Width = 64
    """Width of the hidden layers of actor and critic."""
    layers: Layers = 3
    """Hidden layers of actor and critic."""
    dream_length: Annotated[int, *at_least(1, 10_000, "a dream is held in RAM")] = 15
    """Steps of a dream (H)."""
    starts: Whole = 0
    """How many replayed states dreams begin from, drawn anew each update; 0 is all of them, as published."""
    siblings: Annotated[int, *at_least(1, 10_000, "dreams are held in RAM")] = 1
    """Dreams from each start. Several share the luck of the model, and each action is judged by how much better its
    dream went than its siblings, in units of how much they differ; 1 judges by the critic alone, as published."""
    discount_lambda: Share = 0.95
    """Weight of longer returns against the critic's word (lambda)."""
    entropy: Weight = 3e-4
    """Weight of the actor's entropy, against returns scaled to the range of 1."""
    unimix: Share = 0.01
    """Share of the uniform distribution in discrete actions."""
    slow_rate: Share = 0.02
    """Rate at which the slow critic follows the critic, each update."""
    slow_weight: Weight = 1.0
    """Weight of staying near the slow critic."""
    replay_critic: Weight = 0.3
    """Weight of the critic's loss on replayed, real rewards."""
    scale_rate: Share = 0.01
    """Rate at which the 5th and 95th percentile of returns are followed."""
    scales: Count = 1
    """Scales of returns that follow them: one for all tasks, or one for each task of the suite, or of the pool, that is
    trained on."""
    learns: Literal["all", "place"] = "all"
    """What updates change: everything, or of a `mixture` nothing but the embeddings of tasks and the router, which
    places a task that is new among those that a run has learned (begin with it by `start`)."""
    reward_scale: Positive = 1.0
    """Rewards are multiplied by this first: a unit, so that usual rewards are of the order of 1."""

    def __post_init__(self):
        if self.scales > 1 and self.siblings > 1:
            raise ValueError(
                f"DreamerConfig: dreams with siblings have a scale of their own, and scales is {self.scales}: give it 1"
            )

    @property
    def name(self) -> str:
        """What tables call the agent: `dreamer`, the world model unless it is DreamerV3's, `rl2` where it remembers."""
        return "-".join(filter(None, ("dreamer", self.model.kind, "rl2" if self.memory else "")))


class Networks(eqx.Module):
    """Everything that is learned by gradient."""

    model: WorldModel
    memory: GRU | None
    actor: Actor
    critic: Critic | Critics


class Learner(NamedTuple):
    """All that training changes."""

    networks: Networks
    slow_critic: Critic | Critics
    optimiser: optax.OptState
    low: Float[Array, " K"]
    """Running 5th percentile of returns, of all tasks or of each."""
    high: Float[Array, " K"]
    """Running 95th percentile of returns."""


class Carry(NamedTuple):
    """What the agent carries from one step to the next while it acts, leaves [B, ...]."""

    model: ModelState
    recurrent: Float[Array, "B M"]
    action: Float[Array, "B A"]
    is_trial_first: Bool[Array, " B"]
    """Nothing was seen yet: the next step begins a trial."""


class Kept(NamedTuple):
    """What replay stores of a step."""

    latents: PyTree[Array]
    """Model state after the timestep was seen, compressed."""
    recurrent: Array
    """The policy's memory after the timestep was seen, in half precision."""


class Batch(NamedTuple):
    """Replayed sequences and the states right before they begin, as they were when last seen."""

    sequence: Sequence
    lent: Sequence
    """The steps before those that were lent, for the model alone."""
    model: PyTree[Array]
    """Compressed, as replay keeps it."""
    recurrent: Float[Array, "B M"]


class Dreams(NamedTuple):
    """Imagined experience, time first. Rewards and continues belong to arriving in a state, actions to leaving it."""

    features: Features
    """[H, n, ...] of the states that actions leave."""
    end: Features
    """[n, ...] of the state that a dream ends in."""
    action: Array
    """[H, n, ...] as the environment takes it."""
    encoded: Float[Array, "H n A"]
    """The action as networks read it."""
    reward: Float[Array, "G n"]
    """[H + 1, n]"""
    continues: Float[Array, "G n"]
    """[H + 1, n], the discount folded in."""


@dataclass(frozen=True)
class Dreamer:
    """The algorithm, for one kind of world."""

    config: DreamerConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    evidence = None

    def __post_init__(self):
        unimix, usual = self.config.unimix, DreamerConfig.unimix
        if isinstance(self.action_spec, Continuous) and unimix not in (0, usual):
            raise ValueError(
                f"DreamerConfig: unimix is {unimix:g}, and continuous actions are mixed with nothing: leave it at "
                f"{usual:g}, or give 0"
            )

    @cached_property
    def rows_lent(self) -> int:
        """How many rows before a sequence it has to be lent: one says what led there, the others are the model's."""
        return 1 + jax.eval_shape(self.init, jax.random.key(0)).networks.model.rows_lent

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks. Critic and reward head start at exactly 0, the actor near uniform."""
        c = self.config
        model_key, memory_key, actor_key, critic_key = jax.random.split(key, 4)
        actions = self.action_spec.width
        model = build_model(c.model, self.observation_spec, actions, key=model_key)
        features = jax.eval_shape(lambda: model.features(model.initial(1)))
        context = features.context.shape[-1]
        rows = 0 if features.servers is None else features.servers.shape[-1]  # an action has an entry for each
        memory = GRU(context + (rows or actions) + 2, c.memory, key=memory_key) if c.memory else None
        actor = Actor(self.action_spec, context + c.memory, rows, c.units, c.layers, c.unimix, key=actor_key)
        critic = critic_for(model.critics, context + c.memory, rows, c.units, c.layers, key=critic_key)
        networks = Networks(model, memory, actor, critic)
        zero = jnp.zeros((c.scales,))
        slow_critic = jax.tree.map(jnp.copy, critic)  # its own buffers, so that training may donate them
        return Learner(
            networks, slow_critic, optimiser(c.optimiser).init(learned_leaves(networks)), zero, jnp.copy(zero)
        )

    def policy(self, networks: Networks, greedy: bool = False) -> "DreamerPolicy":
        """The agent as a `Policy`; `greedy` takes the likeliest action instead of drawing one."""
        c = self.config
        return DreamerPolicy(networks, self.action_spec, c.memory, c.reward_scale, greedy)

    def keep(self, networks: Networks, state: Carry) -> Kept:
        """Model state and memory, so that a replayed sequence begins where acting stood."""
        return Kept(networks.model.compress(state.model), state.recurrent.astype(jnp.bfloat16))

    def update(
        self, learner: Learner, rows: Row, key: Key[Array, ""]
    ) -> tuple[Learner, Kept, dict[str, Float[Array, ""]]]:
        """One gradient step on rows [S, lent + T, ...]. Replay is to remember the states of now."""
        learner, (states, memories), metrics = self.learn(learner, self.batch(rows), key)
        return learner, Kept(learner.networks.model.compress(states), memories), metrics

    def learn(
        self, learner: Learner, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Learner, tuple[ModelState, Float[Array, "B T M"]], dict[str, Float[Array, ""]]]:
        """One gradient step. Also returns the states of model and memory at each step, and metrics."""
        (_, (learner, states, metrics)), gradient = eqx.filter_value_and_grad(self.loss, has_aux=True)(
            learner.networks, learner, batch, key
        )
        step, optimiser_state = optimiser(self.config.optimiser).update(
            gradient, learner.optimiser, learned_leaves(learner.networks)
        )
        if self.config.learns == "place":
            step = placing(step)
        networks = eqx.apply_updates(learner.networks, step)
        networks = eqx.tree_at(lambda n: n.model, networks, networks.model.updated())
        slow = followed(learner.slow_critic, networks.critic, self.config.slow_rate)
        metrics["gradient/norm"] = optax.tree.norm(gradient)
        return Learner(networks, slow, optimiser_state, learner.low, learner.high), states, metrics

    def batch(self, rows: Row) -> Batch:
        """Rows [S, lent + T, ...] as a batch of T steps: the first row lends its action, the others before the
        sequence are lent to the model, and the last of them says what replay kept."""
        before = self.rows_lent - 1
        ts = jax.tree.map(lambda x: x[:, 1:], rows.timestep)
        previous = self.action_spec.encode(rows.action[:, :-1])
        sequence = Sequence(
            observation=ts.observation,
            action=jnp.where(ts.is_first[..., None], 0.0, previous),
            reward=ts.reward,
            is_first=ts.is_first,
            is_last=ts.is_last,
            is_terminal=ts.is_terminal,
            is_trial_first=rows.is_trial_first[:, 1:],
            task=rows.task[:, 1:],
        )
        lent, sequence = (jax.tree.map(lambda x, p=p: x[:, p], sequence) for p in (slice(before), slice(before, None)))
        latents, recurrent = jax.tree.map(lambda x: x[:, before], rows.kept)
        return Batch(sequence, lent, latents, recurrent.astype(jnp.float32))

    def loss(
        self, networks: Networks, learner: Learner, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Learner, tuple[ModelState, Array], dict[str, Float[Array, ""]]]]:
        """The sum of all losses of one update; beside it the learner with its percentiles moved on, states, metrics."""
        c, model = self.config, networks.model
        model_key, start_key, dream_key, resume_key = jax.random.split(key, 4)
        sequence, lent = (s._replace(reward=s.reward * c.reward_scale) for s in (batch.sequence, batch.lent))
        b, t = sequence.reward.shape

        # Learn the model, and run the policy's memory over what really happened.
        before = model.resume(batch.model, lent, resume_key)
        model_loss, (states, metrics) = model.loss(before, sequence, model_key)
        features = model.features(states)  # [B, T]
        memories = remember_sequence(networks.memory, batch.recurrent, features, sequence)

        # Dream on from some of these states.
        chosen = jax.random.permutation(start_key, b * t)[: c.starts] if c.starts else jnp.arange(b * t)
        family = jnp.tile(chosen, c.siblings)
        start, start_memory = model.starts(before, states, family), memories.reshape(b * t, -1)[family]
        dreams = stop_gradient(dream(networks, start, start_memory, c.dream_length, c.siblings, dream_key))
        # Memory is learned through the dream and, from its start, through the replayed past.
        arrived = jax.tree.map(lambda x, end: jnp.append(x[1:], end[None], 0), dreams.features, dreams.end)
        dreamt = remember_dream(networks.memory, start_memory, arrived, dreams.encoded, dreams.reward[1:])  # [G, n, M]

        # Judge the dreams.
        critic, dreamt_still = stop_gradient((networks.critic, dreamt))
        worth = map_in_parts(lambda rows: critic(*rows).mean(), (dreams.features, dreamt_still[:-1]))
        worth = jnp.append(worth, critic(dreams.end, dreamt_still[-1]).mean()[None], 0)  # [H + 1, n]
        returns = lambda_returns(dreams.reward[1:], dreams.continues[1:], worth, c.discount_lambda)  # [H, n]
        weight = jnp.cumprod(dreams.continues, 0)[:-1]  # [H, n] how likely the dream has got so far, discounted
        task = sequence.observation.get("task", sequence.task)  # of a suite, or of the pool
        scale = flat(task)[family] if c.scales > 1 else jnp.zeros(family.shape, jnp.int32)  # [n]
        low, high = percentiles(returns, scale, c.scales)
        learner = learner._replace(
            low=learner.low + c.scale_rate * jnp.where(jnp.isnan(low), 0.0, low - learner.low),
            high=learner.high + c.scale_rate * jnp.where(jnp.isnan(high), 0.0, high - learner.high),
        )

        # Act better (REINFORCE), and judge better.
        gain = returns - worth[:-1]
        if c.siblings > 1:
            advantage = beyond_siblings(gain, c.siblings)
        else:
            advantage = gain / jnp.maximum(1.0, learner.high - learner.low)[scale]
        heads = networks.actor, networks.critic
        judged = dreams.features, dreams.action, weight, returns, advantage
        dream_loss, of_dreams = mean_in_parts((heads, dreamt[:-1]), self.dream_loss, learner.slow_critic, judged)

        # Judge reality by the same critic. Where no dream began, the critic's own word stands for the dream's return.
        real = networks.critic(features, memories)  # [B, T]
        dreamt_of = returns[0].reshape(c.siblings, -1).mean(0)
        bootstrap = flat(stop_gradient(real.mean())).at[chosen].set(dreamt_of).reshape(b, t)
        real_returns = replay_returns(sequence, bootstrap, model.discount, c.discount_lambda)  # [B, T - 1]
        slow_real = stop_gradient(learner.slow_critic(features, memories).mean())[:, :-1]
        before = TwoHot(real.logits[:, :-1])
        within = ~sequence.is_last[:, :-1]
        replay_loss = (within * (before.loss(real_returns) + c.slow_weight * before.loss(slow_real))).mean()

        metrics |= of_dreams | {
            "critic/replay_loss": replay_loss,
            "critic/value": worth.mean(),
            "dream/return": returns.mean(),
            "dream/reward": dreams.reward[1:].mean(),
            "dream/return_range": (learner.high - learner.low).mean(),
        }
        total = model_loss + dream_loss + c.replay_critic * replay_loss
        return total, (learner, stop_gradient((states, memories)), metrics)

    def dream_loss(
        self, heads: tuple[Actor, Critic | Critics], slow_critic: Critic | Critics, memories: Array, judged: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Of actor and critic, at some of the steps of dreams that were judged."""
        c, (actor, critic) = self.config, heads
        features, action, weight, returns, advantage = judged
        policy, value = actor(features, memories), critic(features, memories)
        entropy = policy.entropy()
        actor_loss = -(weight * (policy.log_prob(action) * advantage + c.entropy * entropy)).mean()
        slow_worth = slow_critic(features, stop_gradient(memories)).mean()
        critic_loss = (weight * (value.loss(returns) + c.slow_weight * value.loss(slow_worth))).mean()
        metrics = {"actor/loss": actor_loss, "actor/entropy": entropy.mean(), "critic/loss": critic_loss}
        return actor_loss + critic_loss, metrics


class DreamerPolicy(eqx.Module):
    """A trained (or half-trained) Dreamer as a `Policy`: frozen weights, and a memory that goes on adapting."""

    networks: Networks
    action_spec: ActionSpec = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    reward_scale: float = eqx.field(static=True)
    greedy: bool = eqx.field(static=True)

    def initial_state(self, batch: int) -> Carry:
        nothing = jnp.zeros((batch, self.action_spec.width))
        recurrent = jnp.zeros((batch, self.memory))
        return Carry(self.networks.model.initial(batch), recurrent, nothing, jnp.ones((batch,), bool))

    def act(self, state: Carry, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, Carry]:
        model = self.networks.model
        model_key, action_key = jax.random.split(key)
        previous, reward = jnp.where(timestep.is_first[:, None], 0.0, state.action), timestep.reward * self.reward_scale
        flags = timestep.is_first, timestep.is_last, timestep.is_terminal, state.is_trial_first
        now = Sequence(timestep.observation, previous, reward, *flags, task=jnp.full(reward.shape, -1))
        model_state, _ = model.observe(state.model, jax.tree.map(lambda x: x[:, None], now), model_key)  # T = 1
        features = model.features(model_state)
        recurrent = remember(
            self.networks.memory,
            state.recurrent,
            memory_inputs(features, previous, reward, timestep.is_first),
        )
        policy = self.networks.actor(features, recurrent, timestep.observation.get("mask"))
        action = policy.mode() if self.greedy else policy.sample(action_key)
        done, seen = self.action_spec.encode(action), jnp.zeros_like(state.is_trial_first)
        return action, Carry(model_state, recurrent, done, seen)


# --- dreams and returns --------------------------------------------------------------------------------------------


def dream(
    networks: Networks,
    start: ModelState,
    recurrent: Float[Array, "n M"],
    length: int,
    siblings: int,
    key: Key[Array, ""],
) -> Dreams:
    """Follow the policy inside the model for `length` steps from each of n states.

    Those are `siblings` times the same states, one set after the other. Siblings draw their own actions, but what the
    model draws at a step is decided by the same random numbers in all of them.
    """
    model, spec = networks.model, networks.actor.spec
    imagine = in_families(model.imagine, siblings) if siblings > 1 else model.imagine

    def step(carry, key):
        state, recurrent, features = carry
        action_key, model_key = jax.random.split(key)
        action = networks.actor(features, recurrent).sample(action_key)
        encoded = spec.encode(action)
        state = imagine(state, encoded, model_key)
        arrived, reward = model.features(state), model.reward(state)
        told = memory_inputs(arrived, encoded, reward, jnp.zeros(reward.shape, bool))
        recurrent = remember(networks.memory, recurrent, told)
        return (state, recurrent, arrived), (features, encoded, action, reward, model.continues(state))

    carry = start, recurrent, model.features(start)
    (_, _, end), (left, encoded, action, reward, continues) = jax.lax.scan(step, carry, jax.random.split(key, length))
    reward = jnp.concatenate([jnp.zeros_like(reward[:1]), reward])
    continues = jnp.concatenate([model.continues(start)[None], continues])
    return Dreams(left, end, action, encoded, reward, continues)


def in_families(imagine: Callable[..., ModelState], siblings: int) -> Callable[..., ModelState]:
    """`imagine` for n states that are `siblings` sets one after the other, with the same luck in each."""

    def together(state: ModelState, action: Float[Array, "n A"], key: Key[Array, ""]) -> ModelState:
        sets = jax.tree.map(lambda x: x.reshape(siblings, -1, *x.shape[1:]), (state, action))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(imagine, (0, 0, None))(*sets, key))

    return together


def beyond_siblings(gain: Float[Array, "H n"], siblings: int) -> Float[Array, "H n"]:
    """How much more each dream went beyond its critic's word than its siblings did, over the spread within the family.

    What happens to all siblings alike, such as a burst of jobs, is no merit of an action. An input-dependent baseline
    (Mao et al. 2019, arXiv 1807.02264) takes it off: siblings act independently, so the average of the others is a
    baseline that the action cannot influence. The spread makes light and heavy loads count alike; being divided by
    that of the own family is GRPO's (Shao et al. 2024, arXiv 2402.03300).
    """
    families = gain.reshape(gain.shape[0], siblings, -1)  # [H, siblings, starts]
    beyond = (families - families.mean(1, keepdims=True)) * (siblings / (siblings - 1))
    spread = jnp.sqrt(jnp.square(beyond).mean((0, 1), keepdims=True))
    return (beyond / (spread + 1e-8)).reshape(gain.shape)


def percentiles(returns: Float[Array, "H n"], scale: Int[Array, " n"], scales: int) -> Float[Array, "2 K"]:
    """The 5th and 95th percentile of the returns of each scale; NaN for one that no dream belongs to."""
    if scales == 1:
        return jnp.percentile(returns, jnp.array([5.0, 95.0]))[:, None]
    of_each = jnp.where(scale == jnp.arange(scales)[:, None, None], returns, jnp.nan)  # [K, H, n]
    return jnp.nanpercentile(of_each, jnp.array([5.0, 95.0]), axis=(1, 2))


def lambda_returns(
    reward: Float[Array, "H n"], continues: Float[Array, "H n"], value: Float[Array, "G n"], discount_lambda: float
) -> Float[Array, "H n"]:
    """R_t = r_{t+1} + c_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1}), with R_H = v_H; `value` is [H + 1, n]."""

    def step(later, now):
        r, c, v = now
        return (ret := r + c * ((1 - discount_lambda) * v + discount_lambda * later)), ret

    return jax.lax.scan(step, value[-1], (reward, continues, value[1:]), reverse=True)[1]


def replay_returns(
    sequence: Sequence, bootstrap: Float[Array, "B T"], discount: float, discount_lambda: float
) -> Float[Array, "B S"]:
    """Lambda returns [B, T - 1] along real experience; an episode cut off is bootstrapped from its last step."""
    lives = discount * (1.0 - sequence.is_terminal[:, 1:])
    goes_on = discount_lambda * (1.0 - sequence.is_last[:, 1:])

    def step(later, now):
        r, live, on, v = now
        return (ret := r + live * ((1 - on) * v + on * later)), ret

    rows = jax.tree.map(time_first, (sequence.reward[:, 1:], lives, goes_on, bootstrap[:, 1:]))
    return time_first(jax.lax.scan(step, bootstrap[:, -1], rows, reverse=True)[1])


# --- small things --------------------------------------------------------------------------------------------------


def learned_leaves(networks: Networks) -> PyTree[Array]:
    """The leaves that gradients change."""
    return eqx.filter(networks, eqx.is_inexact_array)


def placing(step: Any) -> Any:
    """Of a step of networks what places a task; the rest stays where it is."""
    return eqx.tree_at(lambda n: n.model.placing, jax.tree.map(jnp.zeros_like, step), step.model.placing)


def flat(x: Shaped[Array, "B T"]) -> Shaped[Array, " R"]:
    return x.reshape(-1)
