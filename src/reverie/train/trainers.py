"""The algorithms in the shape that the loop expects, each at work in a world.

What an algorithm does is written in `agents/`, how its experience is gathered in `dreaming.py` and `on_policy.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.a2c import A2C, A2CConfig
from reverie.agents.actor_critic import ActorCriticPolicy
from reverie.agents.dreamer import Dreamer, DreamerPolicy
from reverie.agents.ppo import PPO
from reverie.envs.core import Environment, Task
from reverie.envs.fleet.env import FleetEnv
from reverie.envs.fleet.families import draw_tasks, family
from reverie.train import dreaming, on_policy
from reverie.train.config import DreamerRun, TrainConfig, stream_seed
from reverie.train.dreaming import DreamingConfig
from reverie.train.on_policy import OnPolicyConfig


class InWorld(NamedTuple):
    """What an algorithm changes, and the tasks that its trials are drawn from: data, so that seeds share a program."""

    learning: PyTree
    pool: Task


@dataclass(frozen=True)
class DreamerTrainer:
    """Dreamer in a world; a `Trainer`."""

    agent: Dreamer
    config: DreamingConfig
    env: Environment
    pool: Task
    updates: int

    @property
    def first_steps(self) -> int:
        return (self.config.length + 1) * self.config.streams

    @property
    def env_steps(self) -> int:
        return self.updates * self.config.env_steps

    def init(self, key: Key[Array, ""]) -> InWorld:
        return jax.jit(self._init)(key, self.pool)

    def _init(self, key: Key[Array, ""], pool: Task) -> InWorld:
        return InWorld(dreaming.init(self.agent, self.config, self.env, pool, key), jax.tree.map(jnp.copy, pool))

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Float[Array, " U"]]]:
        learning, metrics = dreaming.train(self.agent, self.config, self.env, state.pool, state.learning, self.updates)
        return InWorld(learning, state.pool), metrics

    def policy(self, state: InWorld, greedy: bool = True) -> DreamerPolicy:
        return self.agent.policy(state.learning.learner.networks, greedy)


@dataclass(frozen=True)
class OnPolicyTrainer:
    """A2C or PPO in a world; a `Trainer`."""

    agent: A2C | PPO
    config: OnPolicyConfig
    env: Environment
    pool: Task
    updates: int

    @property
    def first_steps(self) -> int:
        return 0

    @property
    def env_steps(self) -> int:
        return self.updates * self.config.env_steps

    def init(self, key: Key[Array, ""]) -> InWorld:
        return jax.jit(self._init)(key, self.pool)

    def _init(self, key: Key[Array, ""], pool: Task) -> InWorld:
        return InWorld(on_policy.init(self.agent, self.config, self.env, pool, key), jax.tree.map(jnp.copy, pool))

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Float[Array, " U"]]]:
        learning, metrics = on_policy.train(self.agent, self.config, self.env, state.pool, state.learning, self.updates)
        return InWorld(learning, state.pool), metrics

    def policy(self, state: InWorld, greedy: bool = True) -> ActorCriticPolicy:
        return self.agent.policy(state.learning.learner.networks, greedy)


def build(config: TrainConfig) -> DreamerTrainer | OnPolicyTrainer:
    """The trainer that a configuration describes, with its tasks drawn.

    Raises:
        ValueError: the agent cannot read what the view shows.
    """
    world = config.world
    pool = draw_tasks(family(world.family), world.tasks, stream_seed(config.seed, "training tasks"))
    env = FleetEnv(pool.mask.shape[-1], world.jobs, world.view, world.reward)
    specs = env.observation_spec, env.action_spec
    run = config.agent
    if isinstance(run, DreamerRun):
        return DreamerTrainer(Dreamer(run.algorithm, *specs), run.experience, env, pool, run.chunk)
    agent = A2C(run.algorithm, *specs) if isinstance(run.algorithm, A2CConfig) else PPO(run.algorithm, *specs)
    return OnPolicyTrainer(agent, run.experience, env, pool, run.chunk)
