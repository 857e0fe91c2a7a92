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
    key: Key[Array, ""]

    def __call__(self, policy: Policy) -> dict[str, float]:
        played = {name: returns(self.env, policy, each, self.key, self.trial) for name, each in self.tasks.items()}
        return {name: float(each[:, -1].mean()) for name, each in played.items()}


def return_curve(world: GameConfig, curve: CurveConfig) -> ReturnCurve:
    """The same trials for all training seeds and algorithms, as far as the world can repeat itself. Where a game has
    tasks to be judged on, `evaluation/return` is that in those between the tasks to learn from."""
    sets: dict[str, str | None] = {"evaluation/return": None}
    if world.tests:
        sets = {"evaluation/return": "interpolated", "evaluation/extrapolated": "extrapolated"}
    opened = {name: world.open(curve.episodes, each) for name, each in sets.items()}
    env = opened["evaluation/return"][0]
    tasks = {name: each for name, (_, each) in opened.items()}
    return ReturnCurve(env, tasks, curve.trial, jax.random.key(stream_seed(0, "learning curve")))
