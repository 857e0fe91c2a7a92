"""Tasks that are a few numbers, the factors: sparse ones to learn from, ones between and outside them to test on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ActionSpec, ArraySpec, State, TimeStep

Factors = Float[np.ndarray, "_ _"]
"""Of several tasks [K, F]."""


@runtime_checkable
class WithFactors(Protocol):
    """A world whose task is a vector [F] of factors."""

    @property
    def factors(self) -> tuple[str, ...]:
        """What they are called; none where a world outside has no such tasks."""
        ...


class Factored(WithFactors, Protocol):
    """One of pure functions."""

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    def reset(self, task: Float[Array, " F"], key: Key[Array, ""]) -> tuple[State, TimeStep]: ...

    def step(
        self, task: Float[Array, " F"], state: State, action: Array, key: Key[Array, ""]
    ) -> tuple[State, TimeStep]: ...


@runtime_checkable
class Physics(Protocol):
    """What is known of how a world goes on from what is observed of it: all but some numbers, in which the factors are,
    and what chance brings.

    Its own `step` is `advance` at the numbers that the factors of the task make of the state, and at what came by
    chance.
    """

    @property
    def unknowns(self) -> int:
        """How many these are (U)."""
        ...

    @property
    def bound(self) -> float:
        """Each of them is in [-bound, bound]."""
        ...

    @property
    def constant(self) -> bool:
        """Whether they are numbers of the task alone, the same in all states."""
        ...

    def draw(self, unknown: Float[Array, "*B U"], key: Key[Array, ""]) -> Float[Array, "*B C"]:
        """What chance brings in a step: C numbers, none where nothing is left to it."""
        ...

    def brought(self, after: dict[str, Array]) -> Float[Array, "*B C"]:
        """What it brought in the step that led to this observation."""
        ...

    def unlikelihood(self, unknown: Float[Array, "*B U"], chance: Float[Array, "*B C"]) -> Float[Array, "*B"]:
        """Minus the logarithm of its density, up to what does not depend on `unknown`."""
        ...

    def advance(
        self, observation: dict[str, Array], action: Array, unknown: Float[Array, "*B U"], chance: Float[Array, "*B C"]
    ) -> tuple[dict[str, Array], Float[Array, "*B"], Bool[Array, "*B"]]:
        """What is observed next, the reward, and whether the episode ends there."""
        ...


class Certain:
    """Of a `Physics`, that it leaves nothing to chance."""

    def draw(self, unknown: Float[Array, "*B U"], key: Key[Array, ""]) -> Float[Array, "*B 0"]:
        return unknown[..., :0]

    def brought(self, after: dict[str, Array]) -> Float[Array, "*B 0"]:
        return next(iter(after.values()))[..., :0]

    def unlikelihood(self, unknown: Float[Array, "*B U"], chance: Float[Array, "*B 0"]) -> Float[Array, "*B"]:
        return jnp.zeros(unknown.shape[:-1])


@dataclass(frozen=True)
class Told:
    """The same world, but the factors of the task are part of what is observed: for oracles, and nobody else."""

    world: Factored

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        return {**self.world.observation_spec, "factors": ArraySpec((len(self.world.factors),))}

    @property
    def action_spec(self) -> ActionSpec:
        return self.world.action_spec

    def reset(self, task: Float[Array, " F"], key: Key[Array, ""]) -> tuple[State, TimeStep]:
        return _told(task, *self.world.reset(task, key))

    def step(
        self, task: Float[Array, " F"], state: State, action: Array, key: Key[Array, ""]
    ) -> tuple[State, TimeStep]:
        return _told(task, *self.world.step(task, state, action, key))


def _told(task: Float[Array, " F"], state: State, timestep: TimeStep) -> tuple[State, TimeStep]:
    return state, timestep._replace(observation={**timestep.observation, "factors": task})


def grid(*values: Sequence[float]) -> Factors:
    """All combinations of the values of each factor."""
    return np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, len(values)).astype(np.float32)


def inside(low: Sequence[float], high: Sequence[float], count: int, seed: int) -> Factors:
    """Tasks drawn evenly from a box."""
    return np.random.default_rng(seed).uniform(low, high, (count, len(low))).astype(np.float32)


def outside(
    low: Sequence[float],
    high: Sequence[float],
    lowest: Sequence[float],
    highest: Sequence[float],
    count: int,
    seed: int,
) -> Factors:
    """Tasks drawn evenly from the box `lowest` .. `highest` without the box `low` .. `high` within it."""
    rng, found = np.random.default_rng(seed), np.zeros((0, len(low)), np.float32)
    while len(found) < count:
        drawn = rng.uniform(lowest, highest, (4 * count, len(low))).astype(np.float32)
        found = np.concatenate([found, drawn[((drawn < low) | (drawn > high)).any(1)]])
    return found[:count]
