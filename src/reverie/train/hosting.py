"""Training Dreamer in worlds outside JAX: the program of `dreaming.py`, with copies of such a world on the host.

The policy, replay and updates are compiled as ever. What the copies are doing is no part of the state, so a run that
goes on from a checkpoint begins new episodes: the one case in which its numbers are not those of an unbroken run.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.dreamer import Dreamer, Networks
from reverie.envs.outside import OutsideWorlds, open_outside
from reverie.policies.core import Policy
from reverie.train import dreaming
from reverie.train.collect import Collector
from reverie.train.config import DreamerRun
from reverie.train.dreaming import Dreaming, DreamingConfig


class OnHost(NamedTuple):
    """What training changes, but for the worlds."""

    learning: Dreaming
    averaged: Networks
    """The networks' weights, averaged over the last chunks: they act when the agent is judged."""


@dataclass(frozen=True)
class HostTrainer:
    """Dreamer in a world outside; a `Trainer`, for one training at a time. Make one with `host_trainer`."""

    agent: Dreamer
    config: DreamingConfig
    worlds: OutsideWorlds
    updates: int
    averaging: float = 1.0
    """Rate at which the averaged weights follow those in training, each chunk; 1 is the weights of now."""

    @property
    def first_steps(self) -> int:
        return self.config.first_steps

    @property
    def env_steps(self) -> int:
        return self.updates * self.config.env_steps

    def init(self, key: Key[Array, ""]) -> OnHost:
        return jax.jit(self._init)(key)

    def place(self, state: PyTree) -> PyTree:
        """A state that was loaded, with its episodes cut off; mere shapes as they are."""
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            return state
        collector = cut_off(state.learning.collector)
        key, worlds_key = jax.random.split(collector.key)
        self.worlds.go_on(int(jax.random.bits(worlds_key)))
        return state._replace(learning=state.learning._replace(collector=collector._replace(key=key)))

    def train(self, state: OnHost) -> tuple[OnHost, dict[str, Float[Array, " U"]]]:
        pool, updates = self._pool, self.updates
        learning, metrics = dreaming.train(self.agent, self.config, self.worlds, pool, state.learning, updates)
        rate = self.averaging
        averaged = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.averaged, learning.learner.networks
        )
        return OnHost(learning, averaged), metrics

    def policy(self, state: OnHost, greedy: bool = True) -> Policy:
        return self.agent.policy(state.averaged, greedy)

    @property
    def _pool(self) -> Float[Array, " 1"]:
        return self.worlds.tasks[:1]  # there are no variants to draw from

    def _init(self, key: Key[Array, ""]) -> OnHost:
        learning = dreaming.init(self.agent, self.config, self.worlds, self._pool, key)
        averaged = jax.tree.map(jnp.copy, learning.learner.networks)  # its own buffers, so that training may have them
        return OnHost(learning, averaged)


def host_trainer(config: DreamerRun, name: str, repeat: int = 1) -> HostTrainer:
    """Dreamer in the world of that name, such as `gym:CartPole-v1` (see `open_outside`, which lists the errors too).

    Arguments: `repeat`, how often each action is done in a row; a step in the environment is all of them.

    Raises:
        ValueError: the agent cannot read what the world shows.
    """
    worlds = open_outside(name, config.experience.streams, repeat)
    agent = Dreamer(config.algorithm, worlds.observation_spec, worlds.action_spec)
    trainer = HostTrainer(agent, config.experience, worlds, config.chunk, config.averaging)
    jax.eval_shape(trainer.init, jax.random.key(0))  # networks that do not fit the world say so here
    return trainer


def cut_off(collector: Collector) -> Collector:
    """Streams whose episodes end where they are, truncated, so that the next step begins others.

    Their returns do not count, as they are those of parts of episodes.
    """
    timesteps = collector.timesteps
    return collector._replace(
        timesteps=timesteps._replace(is_last=jnp.ones_like(timesteps.is_last)),
        score=jnp.where(timesteps.is_last, collector.score, jnp.nan),
    )
