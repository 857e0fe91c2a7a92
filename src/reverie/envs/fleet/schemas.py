"""Fleets of which each task is seen in a view of its own: what balancers of unlike make show one agent.

All have room for the widest: numbers that a view does not have are 0 (`fitted`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from reverie.envs.core import ArraySpec, Discrete, TimeStep
from reverie.envs.fleet.env import FleetEnv, FleetState, Reward, Task, View


class Shown(NamedTuple):
    """A task, and which of the views it is seen in."""

    view: Int[Array, "*B"]
    task: Task


@dataclass(frozen=True)
class SeveralViews:
    """A fleet whose tasks are `Shown`. It goes on as `FleetEnv` does; all but `park` are views of it."""

    servers: int
    jobs: int
    views: tuple[View, ...]
    reward: Reward = "admission"

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        specs = [self._seen(view).observation_spec for view in self.views]
        return {name: max((spec[name] for spec in specs), key=lambda entry: entry.shape[-1]) for name in specs[0]}

    @property
    def action_spec(self) -> Discrete:
        return Discrete(self.servers)

    def reset(self, task: Shown, key: Key[Array, ""]) -> tuple[FleetState, TimeStep]:
        return self._shown(task, *self._fleet.reset(task.task, key))

    def step(
        self, task: Shown, state: FleetState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[FleetState, TimeStep]:
        return self._shown(task, *self._fleet.step(task.task, state, action, key))

    def _shown(self, task: Shown, state: FleetState, timestep: TimeStep) -> tuple[FleetState, TimeStep]:
        each = [fitted(self._seen(view).observe(task.task, state), self.observation_spec) for view in self.views]
        observation = jax.tree.map(lambda *values: jnp.stack(values)[task.view], *each)
        return state, timestep._replace(observation=observation)

    @property
    def _fleet(self) -> FleetEnv:
        """One that keeps what any of the views tells."""
        keeps = next((view for view in ("latency", "counts") if view in self.views), "full")
        return self._seen(keeps)

    def _seen(self, view: View) -> FleetEnv:
        return FleetEnv(self.servers, self.jobs, view, self.reward)


def fitted(observation: Mapping[str, Array], specs: Mapping[str, ArraySpec]) -> dict[str, Array]:
    """An observation [*B, ...] with as many numbers as there is room for."""

    def wider(value: Array, room: int) -> Array:
        return jnp.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, room - value.shape[-1])])

    return {name: wider(value, specs[name].shape[-1]) for name, value in observation.items()}
