"""Returns of whole episodes in worlds that are no fleets, where the sum of rewards is all there is to compare."""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from reverie.envs.core import Task, World, check
from reverie.policies.core import Policy
from reverie.policies.rollout import Play, advance, begin
from reverie.settings.config import GameConfig, stream_seed


class _Score(NamedTuple):
    """Where E episodes stand, and what the first of each brought."""

    now: Play
    ended: Bool[Array, " E"]
    value: Float[Array, " E"]
    key: Key[Array, ""]


def returns(env: World, policy: Policy, tasks: Task, key: Key[Array, ""]) -> Float[Array, " E"]:
    """The return of one whole episode of each task [E, ...]. It ends when all of them have ended.

    Errors: WorldError where a world outside failed, `Stopped` where a signal ended its episodes.
    """
    scores = jax.block_until_ready(_returns(env, policy, tasks, key))
    check(env)
    return scores


@eqx.filter_jit
def _returns(env: World, policy: Policy, tasks: Task, key: Key[Array, ""]) -> Float[Array, " E"]:
    reset_key, key = jax.random.split(key)
    opened = begin(env, policy, tasks, reset_key)
    nothing = jnp.zeros_like(opened.timesteps.reward)

    def step(so_far: _Score) -> _Score:
        act_key, step_key, key = jax.random.split(so_far.key, 3)
        now, _ = advance(env, policy, tasks, so_far.now, act_key, step_key)
        value = so_far.value + jnp.where(so_far.ended, 0.0, now.timesteps.reward)
        return _Score(now, so_far.ended | now.timesteps.is_last, value, key)

    first = _Score(opened, nothing.astype(bool), nothing, key)
    return jax.lax.while_loop(lambda so_far: ~so_far.ended.all(), step, first).value


@dataclass(frozen=True)
class ReturnCurve:
    """Judges policies in training by the mean return of a few episodes. Make one with `return_curve`."""

    env: World
    tasks: Shaped[Array, " E"]
    key: Key[Array, ""]

    def __call__(self, policy: Policy) -> dict[str, float]:
        return {"evaluation/return": float(returns(self.env, policy, self.tasks, self.key).mean())}


def return_curve(world: GameConfig, episodes: int) -> ReturnCurve:
    """The same episodes for all training seeds and algorithms, as far as the world can repeat itself."""
    return ReturnCurve(*world.open(episodes), jax.random.key(stream_seed(0, "learning curve")))
