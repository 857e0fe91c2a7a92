"""Collecting experience, on the device: trials, episodes and the policy's state that lives through them.

A trial is `episodes` episodes on one task, drawn from a pool; the policy's state lives through it and is reset at its
end. What is learned from the experience is the agents' business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from reverie.envs.core import State, Task, TimeStep, World, select
from reverie.policies.core import Policy, PolicyState
from reverie.policies.rollout import Play, advance, begin


class Collector(NamedTuple):
    """Where B streams of experience stand."""

    task: Int[Array, " B"]
    """Index into the pool of tasks."""
    states: State
    timesteps: TimeStep
    policy_state: PolicyState
    is_trial_first: Bool[Array, " B"]
    episode: Int[Array, " B"]
    """Number of the episode within its trial."""
    score: Float[Array, " B"]
    """Rewards of the present episode so far."""
    key: Key[Array, ""]


class Experience(NamedTuple):
    """One row per stream and time: what was seen, then what was done. Leaves [T, B, ...]."""

    timestep: TimeStep
    is_trial_first: Bool[Array, "*B"]
    task: Int[Array, "*B"]
    """Index into the pool of tasks."""
    action: Array
    """Done after `timestep` was seen; means nothing where `timestep.is_last`."""
    kept: PyTree
    """What the caller chose to keep of the policy's state, right after it saw `timestep`."""
    finished: Float[Array, "*B"]
    """Return of the episode that `timestep` closes; NaN where it closes none."""


def open_streams(
    env: World, pool: Task, policy: Policy, batch: int, key: Key[Array, ""], settled: bool = False
) -> Collector:
    """Open `batch` (B) streams. `pool`: tasks, leaves [K, ...]; `settled`, streams take turns at them, instead of
    drawing one each."""
    key, task_key, reset_key = jax.random.split(key, 3)
    drawn = jax.random.randint(task_key, (batch,), 0, pool_size(pool))
    task = jnp.arange(batch) % pool_size(pool) if settled else drawn
    opened = begin(env, policy, take(pool, task), reset_key)
    return Collector(
        task=task,
        states=opened.states,
        timesteps=opened.timesteps,
        policy_state=opened.policy_state,
        is_trial_first=jnp.ones((batch,), bool),
        episode=jnp.zeros((batch,), jnp.int32),
        score=jnp.zeros((batch,)),
        key=key,
    )


def collect(
    env: World,
    pool: Task,
    policy: Policy,
    collector: Collector,
    steps: int,
    episodes: int,
    keep: Callable[[PolicyState], PyTree] = lambda state: None,
    settled: bool = False,
) -> tuple[Collector, Experience]:
    """Let the policy act for `steps` (T) steps in all streams.

    Arguments: `episodes`, how many make a trial; `keep`, what to store of the policy's state at each step; `settled`,
    each stream plays its task for good, trial after trial.
    Returns the collector and the experience [T, B, ...].
    """

    def one_step(c: Collector, _: None) -> tuple[Collector, Experience]:
        key, act_key, task_key, step_key = jax.random.split(c.key, 4)
        closes = c.timesteps.is_last
        ends_trial = closes & (c.episode == episodes - 1)
        drawn = jax.random.randint(task_key, c.task.shape, 0, pool_size(pool))
        task = c.task if settled else jnp.where(ends_trial, drawn, c.task)
        before = Play(c.states, c.timesteps, c.policy_state)
        after, action = advance(env, policy, take(pool, task), before, act_key, step_key)
        seen = Experience(
            timestep=c.timesteps,
            is_trial_first=c.is_trial_first,
            task=c.task,
            action=action,
            kept=keep(after.policy_state),
            finished=jnp.where(closes, c.score, jnp.nan),
        )
        following = Collector(
            task=task,
            states=after.states,
            timesteps=after.timesteps,
            policy_state=select(ends_trial, policy.initial_state(closes.shape[0]), after.policy_state),
            is_trial_first=ends_trial,
            episode=jnp.where(ends_trial, 0, c.episode + closes),
            score=jnp.where(closes, 0.0, c.score) + after.timesteps.reward,
            key=key,
        )
        return following, seen

    return jax.lax.scan(one_step, collector, None, length=steps)


def take(pool: Task, index: Int[Array, " B"]) -> Task:
    """The tasks [B, ...] at `index` in a pool [K, ...]."""
    return jax.tree.map(lambda leaf: leaf[index], pool)


def pool_size(pool: Task) -> int:
    return jax.tree.leaves(pool)[0].shape[0]


def finished_returns(experience: Experience) -> dict[str, Any]:
    """Mean return of the episodes that ended in a stretch of experience (NaN where none did), and their number."""
    ended = ~jnp.isnan(experience.finished)
    return {"episode/return": jnp.nanmean(experience.finished), "episode/count": ended.sum()}
