"""PEARL's point robot (Rakelly et al. 2019, arXiv 1903.08254): walk to a goal that only rewards tell of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import ArraySpec, Continuous, TimeStep, first, later
from reverie.ranges import Count, checked

STRIDE = 0.1
"""Longest step along each axis."""


class PointState(NamedTuple):
    """Where the robot is, and how many steps it took."""

    position: Float[Array, "*B 2"]
    time: Int[Array, "*B"]


@dataclass(frozen=True)
@checked
class PointRobot:
    """From the origin to the goal of the task, a point of [-1, 1]²: each step pays minus the distance that is left.

    An episode is cut after `limit` steps.
    """

    limit: Count = 20
    """Steps of an episode."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"position": ArraySpec((2,))}
    action_spec: ClassVar[Continuous] = Continuous(2)
    factors: ClassVar[tuple[str, ...]] = ("goal_x", "goal_y")
    """What the numbers of a task are called."""

    def reset(self, task: Float[Array, "2"], key: Key[Array, ""]) -> tuple[PointState, TimeStep]:
        origin = jnp.zeros(2)
        return PointState(origin, jnp.int32(0)), first({"position": origin})

    def step(
        self, task: Float[Array, "2"], state: PointState, action: Float[Array, "2"], key: Key[Array, ""]
    ) -> tuple[PointState, TimeStep]:
        position = state.position + STRIDE * jnp.clip(action, -1, 1)
        time = state.time + 1
        reward = -jnp.linalg.norm(position - task)
        going = jnp.zeros((), bool)
        return PointState(position, time), later({"position": position}, reward, going, time >= self.limit)
