"""The algorithms in the shape that the loop expects, each at work in a world.

What an algorithm does is written in `agents/`, how its experience is gathered in `dreaming.py` and `on_policy.py`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.a2c import A2C
from reverie.agents.dreamer import Dreamer
from reverie.agents.ppo import PPO
from reverie.envs.core import Task, World
from reverie.envs.fleet.env import FleetEnv
from reverie.envs.outside import OutsideWorlds
from reverie.policies.core import Policy
from reverie.train import dreaming, on_policy
from reverie.train.dreaming import DreamingConfig
from reverie.train.hosting import go_on
from reverie.train.on_policy import OnPolicyConfig


class InWorld(NamedTuple):
    """What training changes, and the tasks that trials are drawn from: data, so that seeds share a program."""

    learning: PyTree
    averaged: PyTree
    """The networks' weights, averaged over the last chunks: they act when the agent is judged."""
    pool: Task


@dataclass(frozen=True)
class WorldTrainer:
    """An algorithm in a world; a `Trainer`."""

    agent: Dreamer | A2C | PPO
    config: DreamingConfig | OnPolicyConfig
    env: World
    pool: Task
    updates: int
    averaging: float = 1.0
    """Rate at which the averaged weights follow those in training, each chunk; 1 is the weights of now."""

    @property
    def first_steps(self) -> int:
        return self.config.first_steps

    @property
    def env_steps(self) -> int:
        return self.updates * self.config.env_steps

    def init(self, key: Key[Array, ""]) -> InWorld:
        return jax.jit(self._init)(key, self.pool)

    def place(self, state: PyTree) -> PyTree:
        """It may lie where it does. In a world outside JAX, a state that was loaded begins new episodes."""
        shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
        if shapes or not isinstance(self.env, OutsideWorlds):
            return state
        learning = state.learning
        return state._replace(learning=learning._replace(collector=go_on(self.env, learning.collector)))

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Float[Array, " U"]]]:
        learning, metrics = self._way.train(self.agent, self.config, self.env, state.pool, state.learning, self.updates)
        rate = self.averaging
        averaged = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.averaged, learning.learner.networks
        )
        return InWorld(learning, averaged, state.pool), metrics

    def policy(self, state: InWorld, greedy: bool = True, servers: int | None = None) -> Policy:
        """Arguments: `servers`, the size of the fleet it is for, that of the training unless given.

        Errors: ValueError where the networks are made for one size of fleet.
        """
        if servers is None:
            return self.agent.policy(state.averaged, greedy)
        assert isinstance(self.env, FleetEnv)
        agent = _for_fleet(self.agent, replace(self.env, servers=servers))
        wanted = jax.eval_shape(agent.init, jax.random.key(0)).networks
        shapes = [[leaf.shape for leaf in jax.tree.leaves(networks)] for networks in (wanted, state.averaged)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"an agent trained on {self.env.servers} servers cannot act for {servers}: its networks read "
                "servers in a fixed order. Train one that reads them as a set (`cpu`, `hidden` and `learned` presets)"
            )
        return agent.policy(jax.tree.unflatten(jax.tree.structure(wanted), jax.tree.leaves(state.averaged)), greedy)

    def begin(self, other: InWorld, seed: int) -> InWorld:
        """Where training goes on in this world with all that was learned, and is remembered, in another.

        Errors: ValueError where the other state is of another agent, or of another view or length of episodes.
        """
        learning = other.learning._replace(key=jax.random.fold_in(other.learning.key, seed))
        state = InWorld(learning, other.averaged, jax.tree.map(jnp.copy, self.pool))
        wanted = jax.eval_shape(self.init, jax.random.key(0))
        if jax.tree.structure(wanted) != jax.tree.structure(state) or any(
            a.shape != b.shape for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(state), strict=True)
        ):
            raise ValueError(
                "training cannot start from that run: the algorithm, its sizes and streams, the view, the reward and "
                "the jobs of an episode have to be the same, only the family and the number of its tasks may differ"
            )
        return state

    def _init(self, key: Key[Array, ""], pool: Task) -> InWorld:
        learning = self._way.init(self.agent, self.config, self.env, pool, key)
        # Buffers of their own, so that training may be given them.
        averaged, pool = jax.tree.map(jnp.copy, (learning.learner.networks, pool))
        return InWorld(learning, averaged, pool)

    @property
    def _way(self):
        """The module that says how this algorithm gathers experience and learns from it."""
        return dreaming if isinstance(self.config, DreamingConfig) else on_policy


def check_inside(trainer: WorldTrainer) -> None:
    """Errors: ValueError where the world is outside JAX."""
    if isinstance(trainer.env, OutsideWorlds):
        raise ValueError("worlds outside JAX are stepped on the host, for one seed and one device at a time")


def _for_fleet(agent: Dreamer | A2C | PPO, env: FleetEnv) -> Dreamer | A2C | PPO:
    return replace(agent, observation_spec=env.observation_spec, action_spec=env.action_spec)
