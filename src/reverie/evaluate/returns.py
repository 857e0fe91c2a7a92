"""Returns of whole episodes in worlds that are no fleets, where the sum of rewards is all there is to compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import Task, World, check
from reverie.policies.core import Policy
from reverie.policies.rollout import Play, advance, begin
from reverie.settings.config import CurveConfig, GameConfig, stream_seed


class _Score(NamedTuple):
    """Where E trials stand, and what each of their N episodes brought so far."""

    now: Play
    episode: Int[Array, " E"]
    value: Float[Array, "E N"]
    key: Key[Array, ""]


def returns(env: World, policy: Policy, tasks: Task, key: Key[Array, ""], episodes: int = 1) -> Float[Array, "E N"]:
    """The returns of `episodes` (N) whole episodes in a row on each task [E, ...], through which the policy's memory
    lives. It ends when all of them have ended.

    Errors: WorldError where a world outside failed, `Stopped` where a signal ended its episodes.
    """
    scores = jax.block_until_ready(_returns(env, policy, tasks, key, episodes))
    check(env)
    return scores


@eqx.filter_jit
def _returns(env: World, policy: Policy, tasks: Task, key: Key[Array, ""], episodes: int) -> Float[Array, "E N"]:
    reset_key, key = jax.random.split(key)
    opened = begin(env, policy, tasks, reset_key)

    def step(so_far: _Score) -> _Score:
        act_key, step_key, key = jax.random.split(so_far.key, 3)
        now, _ = advance(env, policy, tasks, so_far.now, act_key, step_key)
        counts = so_far.episode[:, None] == jnp.arange(episodes)
        value = so_far.value + jnp.where(counts, now.timesteps.reward[:, None], 0.0)
        return _Score(now, so_far.episode + now.timesteps.is_last, value, key)

    trials = opened.timesteps.reward.shape[0]
    first = _Score(opened, jnp.zeros(trials, jnp.int32), jnp.zeros((trials, episodes)), key)
    return jax.lax.while_loop(lambda so_far: (so_far.episode < episodes).any(), step, first).value


@dataclass(frozen=True)
class ReturnCurve:
    """Judges policies in training by the mean return of the last episodes of a few trials. Make one with
    `return_curve`."""

    env: World
    tasks: Mapping[str, Task]
    """[E, ...], by the name of the metric."""
    trial: int
    """Episodes of each."""
    names: tuple[str, ...]
    """Of tasks that have some, which take turns."""
    key: Key[Array, ""]

    def __call__(self, policy: Policy) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric, tasks in self.tasks.items():
            last = returns(self.env, policy, tasks, self.key, self.trial)[:, -1]
            found[metric] = float(last.mean())
            found |= {f"{metric}/{name}": float(last[k :: len(self.names)].mean()) for k, name in enumerate(self.names)}
        return found


def return_curve(world: GameConfig, curve: CurveConfig) -> ReturnCurve:
    """The same trials for all training seeds and algorithms, as far as the world can repeat itself. Where a game has
    tasks to be judged on, `evaluation/return` is that in those between the tasks to learn from."""
    sets: dict[str, str | None] = {"evaluation/return": None}
    if world.tests:
        sets = {"evaluation/return": "interpolated", "evaluation/extrapolated": "extrapolated"}
    if world.names and curve.episodes % len(world.names):
        raise ValueError(
            f"the episodes of the learning curve must be a multiple of the number of tasks, {len(world.names)}; "
            f"got {curve.episodes}"
        )
    tasks = {name: world.drawn(curve.episodes, each) for name, each in sets.items()}
    key = jax.random.key(stream_seed(0, "learning curve"))
    return ReturnCurve(world.world(curve.episodes, judged=True), tasks, curve.trial, world.names, key)
