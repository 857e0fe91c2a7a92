"""Returns of whole episodes in worlds that are no fleets, where the sum of rewards is all there is to compare."""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from reverie.envs.core import State, Task, TimeStep, World, batch_reset, batch_step
from reverie.policies.core import Policy, PolicyState
from reverie.settings.config import GameConfig, stream_seed


class _Play(NamedTuple):
    """Where E episodes stand."""

    states: State
    timesteps: TimeStep
    memory: PolicyState
    ended: Bool[Array, " E"]
    score: Float[Array, " E"]
    key: Key[Array, ""]


@eqx.filter_jit
def returns(env: World, policy: Policy, tasks: Task, key: Key[Array, ""]) -> Float[Array, " E"]:
    """The return of one whole episode of each task [E, ...]. It ends when all of them have ended."""
    reset_key, key = jax.random.split(key)
    states, timesteps = batch_reset(env, tasks, reset_key)
    episodes = timesteps.reward.shape[0]
    begin = _Play(
        states, timesteps, policy.initial_state(episodes), jnp.zeros(episodes, bool), jnp.zeros(episodes), key
    )

    def step(play: _Play) -> _Play:
        act_key, step_key, key = jax.random.split(play.key, 3)
        action, memory = policy.act(play.memory, play.timesteps, act_key)
        states, timesteps = batch_step(env, tasks, play.states, play.timesteps, action, step_key)
        score = play.score + jnp.where(play.ended, 0.0, timesteps.reward)
        return _Play(states, timesteps, memory, play.ended | timesteps.is_last, score, key)

    return jax.lax.while_loop(lambda play: ~play.ended.all(), step, begin).score


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
