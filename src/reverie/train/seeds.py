"""Seeds side by side: one program trains an algorithm with several seeds, by `vmap` over all that training changes.

Each seed has networks, streams, replay, tasks and random numbers of its own; nothing passes between them. The numbers
are those of training each alone, up to the rounding of batched operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
from jaxtyping import Array, Key, PyTree, Shaped

from reverie.envs.core import Task, stack_tasks
from reverie.policies.core import Policy
from reverie.train.trainers import InWorld, WorldTrainer, check_inside


@dataclass(frozen=True)
class SeedsTrainer:
    """An algorithm in a world, S times; a `Trainer` whose steps and updates are those of each seed."""

    one: WorldTrainer
    """What all seeds have in common; its pool is that of the first."""
    pools: Task
    """The tasks of each seed, leaves [S, K, ...]."""

    @property
    def first_steps(self) -> int:
        return self.one.first_steps

    @property
    def env_steps(self) -> int:
        return self.one.env_steps

    @property
    def updates(self) -> int:
        return self.one.updates

    def init(self, key: Key[Array, " S"]) -> InWorld:
        """Leaves [S, ...]."""
        return self._traced_once(key, self.pools)

    @cached_property
    def _traced_once(self) -> Callable[[Key[Array, " S"], Task], InWorld]:
        return jax.jit(jax.vmap(self.one.init_on))

    def place(self, state: PyTree) -> PyTree:
        """It may lie where it does."""
        return state

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Shaped[Array, "R S"]]]:
        state, metrics = jax.vmap(self.one.train)(state)
        return state, {name: values.T for name, values in metrics.items()}

    def check(self) -> None:
        """There is no world outside."""

    def policy(self, state: InWorld, greedy: bool = True) -> tuple[Policy, ...]:
        """That of each seed."""
        seeds = range(jax.tree.leaves(self.pools)[0].shape[0])
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], state.averaged) for i in seeds]
        return tuple(self.one.agent.policy(networks, greedy) for networks in each)


def side_by_side(trainers: Sequence[WorldTrainer]) -> SeedsTrainer:
    """Trainers that differ in their tasks alone, as one.

    Raises:
        ValueError: they differ in something else, or their world is outside JAX.
    """
    first = trainers[0]
    check_inside(first)
    if any(replace(trainer, pool=first.pool) != first for trainer in trainers):
        raise ValueError("trainers go side by side where only their tasks differ; give all of them the same settings")
    return SeedsTrainer(first, stack_tasks([trainer.pool for trainer in trainers]))
