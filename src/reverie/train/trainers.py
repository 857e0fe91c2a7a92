"""An agent at work in a world, in the shape that the loop expects.

What an algorithm does is written in `agents/`, how its experience is gathered in `off_policy.py` and `on_policy.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from reverie.envs.core import Task, World, check
from reverie.envs.outside.worlds import OutsideWorlds
from reverie.policies.core import Policy
from reverie.train import off_policy, on_policy
from reverie.train.hosting import cut_off, go_on
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.on_policy import OnPolicyConfig

WAYS: Mapping[type, Any] = MappingProxyType({OffPolicyConfig: off_policy, OnPolicyConfig: on_policy})
"""How experience is gathered and learned from, by what says so: a module with `first_steps`, `init`, `update` and
`outlives_tasks`."""


class InWorld(NamedTuple):
    """What training changes, and the tasks that trials are drawn from: data, so that seeds share a program."""

    learning: PyTree
    averaged: PyTree
    """The networks' weights, averaged over the last updates: they act when the agent is judged."""
    pool: Task


@dataclass(frozen=True)
class WorldTrainer:
    """An agent in a world; a `Trainer`."""

    agent: Any
    """An `OffPolicyAgent` or `OnPolicyAgent`, as `config` has it."""
    config: OffPolicyConfig | OnPolicyConfig
    env: World
    pool: Task
    rounds: int
    """Of experience and updates on it, in one call of `train`."""
    averaging: float = 1.0
    """Rate at which the averaged weights follow those in training, each update of the agent; 1 is the weights of
    now."""

    @property
    def first_steps(self) -> int:
        return WAYS[type(self.config)].first_steps(self.agent, self.config)

    @property
    def env_steps(self) -> int:
        return self.rounds * self.config.env_steps

    @property
    def updates(self) -> int:
        return self.rounds * self.config.repeats

    def init(self, key: Key[Array, ""]) -> InWorld:
        return self._traced_once(key, self.pool)

    @cached_property
    def _traced_once(self) -> Callable[[Key[Array, ""], Task], InWorld]:
        """Whoever checks, loads or begins asks for the beginning, or for its shapes alone."""
        return jax.jit(self.init_on)

    def init_on(self, key: Key[Array, ""], pool: Task) -> InWorld:
        """The beginning of training on a pool of tasks, as nobody has compiled it."""
        learning = WAYS[type(self.config)].init(self.agent, self.config, self.env, pool, key)
        # Buffers of their own, so that training may be given them.
        averaged, pool = jax.tree.map(jnp.copy, (learning.learner.networks, pool))
        return InWorld(learning, averaged, pool)

    def place(self, state: PyTree) -> PyTree:
        """It may lie where it does. In a world outside JAX, a state that was loaded begins new episodes."""
        shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
        if shapes or not lives_outside(self.env):
            return state
        learning = state.learning
        return state._replace(learning=learning._replace(collector=go_on(self.env, learning.collector)))

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Shaped[Array, " R"]]]:
        def update(before: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], dict[str, Array]]:
            update = WAYS[type(self.config)].update
            *after, metrics = update(self.agent, self.config, self.env, state.pool, *before, self.averaging)
            return tuple(after), metrics

        after, metrics = jax.lax.scan(update, (state.learning, state.averaged), None, length=self.rounds)
        return InWorld(*after, state.pool), metrics

    def check(self) -> None:
        check(self.env)

    def policy(self, state: InWorld, greedy: bool = True, servers: int | None = None) -> Policy:
        """Arguments: `servers`, the size of the fleet it is for, that of the training unless given.

        Errors: ValueError where the networks are made for one size of fleet.
        """
        if servers is None:
            return self.agent.policy(state.averaged, greedy)
        env: Any = self.env  # one of fleets, as there are servers
        agent, wanted = for_fleet(self.agent, env, servers)
        shapes = [[leaf.shape for leaf in jax.tree.leaves(networks)] for networks in (wanted, state.averaged)]
        if shapes[0] != shapes[1]:
            raise in_fixed_order("the agent", env.servers, servers)
        return agent.policy(jax.tree.unflatten(jax.tree.structure(wanted), jax.tree.leaves(state.averaged)), greedy)

    def continued(self, other: InWorld, seed: int) -> InWorld:
        """Where training goes on in this world with all that was learned in another; with all that is remembered there
        too, if `remembers`, else with experience of its own from the beginning.

        Errors: ValueError where the other state is of another agent, or one of other sizes.
        """
        wanted = jax.eval_shape(self.init, jax.random.key(0))
        if not _alike((wanted.learning.learner, wanted.averaged), (other.learning.learner, other.averaged)):
            raise ValueError(
                "training cannot start from that run: the algorithm, its model, the sizes of its networks, and what "
                "they see and do have to be the same; tasks, streams, replay and episodes may differ"
            )
        key, pool = jax.random.fold_in(other.learning.key, seed), jax.tree.map(jnp.copy, self.pool)
        if self.remembers(other):
            learning = other.learning._replace(key=key)
            if not _equal(self.pool, other.pool):  # what goes on there would go on in other tasks, by other rules
                collector = cut_off(learning.collector)
                last = jnp.full_like(collector.episode, self.config.episodes - 1)
                learning = learning._replace(collector=collector._replace(episode=last))
            return InWorld(learning, other.averaged, pool)
        begin = jax.jit(partial(WAYS[type(self.config)].init, self.agent, self.config, self.env))
        learning = begin(pool, key, other.learning.learner)._replace(updates=other.learning.updates)
        return InWorld(learning, other.averaged, pool)

    def remembers(self, other: InWorld) -> bool:
        """Whether streams and replay of another state are as large as here, and of observations as large; and of the
        same tasks, where what was gathered is of no use in others."""
        alike = _alike(jax.eval_shape(self.init, jax.random.key(0)).learning, other.learning)
        usable = WAYS[type(self.config)].outlives_tasks(self.agent, self.config)
        return alike and (usable or _equal(self.pool, other.pool))


def for_fleet(agent: Any, env: Any, servers: int) -> tuple[Any, PyTree]:
    """An agent as it acts in such a fleet of that size, and the shapes of its networks there."""
    fleet = replace(env, servers=servers)
    agent = replace(agent, observation_spec=fleet.observation_spec, action_spec=fleet.action_spec)
    return agent, jax.eval_shape(agent.init, jax.random.key(0)).networks


def in_fixed_order(who: str, trained_for: int, servers: int) -> ValueError:
    """The error where networks are made for one size of fleet."""
    return ValueError(
        f"{who} was trained on {trained_for} servers and cannot act for {servers}: its networks read servers in a "
        "fixed order. Train one that reads them as a set (`cpu`, `hidden` and `learned` presets)"
    )


def _alike(one: PyTree, other: PyTree) -> bool:
    """Whether two trees have the same structure, settings of modules included, and leaves of one shape and type."""
    leaves = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    return jax.tree.structure(one) == jax.tree.structure(other) and leaves[0] == leaves[1]


def _equal(one: Task, other: Task) -> bool:
    """Whether two pools hold the same tasks."""
    return _alike(one, other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def lives_outside(env: World) -> TypeGuard[OutsideWorlds]:
    """Whether a world is stepped on the host."""
    return isinstance(env, OutsideWorlds)


def check_inside(trainer: WorldTrainer) -> None:
    """Errors: ValueError where the world is outside JAX."""
    if lives_outside(trainer.env):
        raise ValueError("worlds outside JAX are stepped on the host, one seed at a time")
