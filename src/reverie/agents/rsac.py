"""Recurrent SAC: a memory that lives through a trial, learned off-policy; the actor's and the critics' are two.

Ni, Eysenbach and Salakhutdinov 2022 (arXiv 2110.05038), who find that this is hard to beat by methods made for hidden
or changing tasks, where actor and critics do not share a recurrent network: two GRUs read what is seen, what was done
and what it paid (RL2, arXiv 1611.02779), and actor and critics look at the present moment beside them. All else is SAC
(`sac.py`), with discrete actions too.

Ours: sequences begin with the memories that the policy had there (Kapturowski et al. 2019, R2D2), kept fresh by each
update that passes, where the authors replay whole trials; one step of Adam for all losses.

Metrics: those of SAC.

Axes: S sequences, G = 1 + T moments, the first of which is lent; M memory units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Key
from tyro.conf import arg

from reverie.agents.core import Row
from reverie.agents.heads import Flat, QNetwork, SetTower, actor_for
from reverie.agents.inputs import Inputs
from reverie.agents.rl2 import led_here
from reverie.agents.sac import Learner, SACConfig, descended, learner_of, losses
from reverie.agents.soft import considered, distribution
from reverie.envs.core import ActionSpec, ArraySpec, TimeStep
from reverie.models.core import Features
from reverie.nn.distributions import Categorical, TanhNormal
from reverie.nn.layers import GRU, time_first
from reverie.ranges import Width, checked


@dataclass(frozen=True)
@checked
class RSACConfig:
    """SAC's settings, and the memories'."""

    name: ClassVar[str] = "rsac"
    """What tables call the agent."""
    sac: Annotated[SACConfig, arg(name="")] = field(default_factory=SACConfig)
    """What it shares with SAC."""
    memory: Width = 128
    """Units of each memory."""

    def __post_init__(self):
        if self.sac.servers != "flat":
            raise ValueError(
                f"RSACConfig: its memories read servers as one long vector: give servers='flat', got "
                f"{self.sac.servers!r}"
            )


class Remembered(NamedTuple):
    """What is remembered right after a moment was seen."""

    actor: Float[Array, "*B M"]
    critics: Float[Array, "*B M"]


class Critics(eqx.Module):
    """Twin critics and the memory that they share, which is not the actor's."""

    memory: GRU
    twins: tuple[QNetwork, QNetwork]


class Networks(eqx.Module):
    """Everything that is learned by gradient."""

    memory: GRU
    """The actor's."""
    actor: Flat | SetTower
    critics: Critics
    log_temperature: Float[Array, ""]
    inputs: Inputs = eqx.field(static=True)
    spec: ActionSpec = eqx.field(static=True)

    def __init__(
        self, config: RSACConfig, observation_spec: Mapping[str, ArraySpec], spec: ActionSpec, *, key: Key[Array, ""]
    ):
        self.spec, self.inputs = spec, Inputs.of(observation_spec, spec, "flat")
        told, width = self.inputs.context + spec.width + 2, self.inputs.context + config.memory
        shape = config.sac.units, config.sac.layers
        keys = jax.random.split(key, 5)
        self.memory = GRU(told, config.memory, key=keys[0])
        self.actor = actor_for(spec, width, 0, *shape, key=keys[1])
        one, two = (QNetwork(spec, width, 0, *shape, key=k) for k in keys[2:4])
        self.critics = Critics(GRU(told, config.memory, key=keys[4]), (one, two))
        self.log_temperature = jnp.log(jnp.float32(config.sac.temperature))

    def told(self, timestep: TimeStep, done: Array) -> Float[Array, "*B I"]:
        """What memories read: what is seen, what was done and paid before, and whether an episode begins."""
        led = led_here(self.spec, done, timestep.reward, timestep.is_first)
        return jnp.concatenate([self.see(timestep), *led], -1)

    def see(self, timestep: TimeStep) -> Float[Array, "*B D"]:
        return self.inputs.see(timestep.observation).context

    def beside(self, timestep: TimeStep, remembered: Float[Array, "*B M"]) -> Features:
        """The present moment beside what is remembered."""
        return Features(jnp.concatenate([self.see(timestep), remembered], -1))

    def policy(self, timestep: TimeStep, remembered: Float[Array, "*B M"]) -> Categorical | TanhNormal:
        """The distribution over actions."""
        seen = self.beside(timestep, remembered)
        return distribution(self.actor, self.spec, self.inputs, seen, timestep.observation)


def remember(
    memory: GRU, told: Float[Array, "S G I"], begins: Bool[Array, "S G"], first: Float[Array, "S M"]
) -> Float[Array, "S G M"]:
    """The memory after each moment, as acting would have it, where it was `first` after the first of them. It is
    emptied where a trial `begins`."""
    after = memory.over(first, time_first(memory.project(told[:, 1:])), time_first(begins[:, 1:]))
    return jnp.concatenate([first[:, None], time_first(after)], 1)


@dataclass(frozen=True)
class RSAC:
    """The algorithm, for one kind of world."""

    config: RSACConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec

    rows_lent = 1
    evidence = None

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks."""
        return learner_of(self.config.sac, Networks(self.config, self.observation_spec, self.action_spec, key=key))

    def policy(self, networks: Networks, greedy: bool = False) -> "RSACPolicy":
        """The agent as a `Policy`; `greedy` takes the likeliest action instead of drawing one."""
        return RSACPolicy(networks, greedy)

    def keep(self, networks: Networks, state: "RSACState") -> Remembered:
        """Both memories."""
        return state.remembered

    def update(
        self, learner: Learner, rows: Row, key: Key[Array, ""]
    ) -> tuple[Learner, Remembered, dict[str, Float[Array, ""]]]:
        """One step of Adam on the transitions within rows [S, 1 + T, ...], and one of the targets; replay keeps what
        is remembered now."""
        gradient, (metrics, remembered) = eqx.filter_grad(self.loss, has_aux=True)(
            learner.networks, learner.targets, rows, key
        )
        metrics |= {"gradient/norm": optax.tree.norm(gradient)}
        return descended(self.config.sac, learner, gradient), jax.tree.map(lambda x: x[:, 1:], remembered), metrics

    def loss(
        self, networks: Networks, targets: Critics, rows: Row, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Remembered]]:
        """The sum of SAC's losses, metrics, and what is remembered at each moment [S, G, M]."""
        now_key, after_key = jax.random.split(key)
        done = jnp.concatenate([rows.action[:, :1], rows.action[:, :-1]], 1)  # the first is not read
        told = networks.told(rows.timestep, done)

        def lived(memory: GRU, first: Float[Array, "S G M"]) -> Float[Array, "S G M"]:
            return remember(memory, told, rows.is_trial_first, first[:, 0])

        critics = networks.critics
        remembered = Remembered(lived(networks.memory, rows.kept.actor), lived(critics.memory, rows.kept.critics))
        slow = lived(targets.memory, rows.kept.critics)
        seen = networks.beside(rows.timestep, remembered.critics), networks.beside(rows.timestep, slow)
        policy = networks.policy(rows.timestep, remembered.actor)
        every = rows.timestep, rows.action, policy, *seen
        timestep, action, policy, here, _ = jax.tree.map(lambda x: x[:, :-1], every)
        led, _, after, _, there = jax.tree.map(lambda x: x[:, 1:], every)

        q = [critic.of(here, action) for critic in critics.twins]
        ours = considered(policy, *stop_gradient((critics.twins, here)), now_key)  # the actor teaches its own memory
        later = considered(after, targets.twins, there, after_key)
        counts = 1.0 - timestep.is_last  # after the end of an episode comes another, whatever is done
        c, spec = self.config.sac, self.action_spec
        loss, metrics = losses(c, spec, networks.log_temperature, q, ours, led, later, counts)
        return loss, (metrics, stop_gradient(remembered))


class RSACState(NamedTuple):
    """What the policy carries through a trial."""

    remembered: Remembered
    action: Array
    """What was done last."""


class RSACPolicy(eqx.Module):
    """The agent as a `Policy`: frozen weights, and two memories."""

    networks: Networks
    greedy: bool = eqx.field(static=True)
    """Take the likeliest action instead of drawing one."""

    def initial_state(self, batch: int) -> RSACState:
        nothing = jnp.zeros((batch, self.networks.memory.recurrent.weight.shape[0]))
        return RSACState(Remembered(nothing, nothing), self.networks.spec.nothing(batch))

    def act(self, state: RSACState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, RSACState]:
        net, told = self.networks, self.networks.told(timestep, state.action)
        before = state.remembered
        remembered = Remembered(net.memory(before.actor, told), net.critics.memory(before.critics, told))
        policy = net.policy(timestep, remembered.actor)
        action = policy.mode() if self.greedy else policy.sample(key)
        return action, RSACState(remembered, action)
