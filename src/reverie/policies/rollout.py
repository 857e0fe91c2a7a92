"""Running any policy in any built-in world, as one compiled scan. Nothing here learns or judges."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key, PyTree

from reverie.envs.core import State, Task, TimeStep, World, batch_reset, batch_step
from reverie.policies.core import Policy, PolicyState


def rollout(
    env: World,
    policy: Policy,
    tasks: Task,
    key: Key[Array, ""],
    steps: int,
    keep: Callable[[State, TimeStep, Array], PyTree],
    memory: PolicyState | None = None,
) -> tuple[PolicyState, Any]:
    """Let `policy` act for `steps` steps in B environments at once, starting B new episodes.

    Arguments: `tasks`, leaves with the axis B in front; `keep(state, timestep, action)` says what to keep of each
    transition (the state and timestep are those *after* the action); `memory`, the policy's state from the episode
    before, where a trial goes on. World and policy draw from independent streams, and the world's does not depend on
    the policy: two policies run with one key meet the same jobs.
    Returns the policy's state and what was kept, with axes [T, B, ...].
    """
    world_key, policy_key = jax.random.split(key)
    reset_key, world_key = jax.random.split(world_key)
    states, timesteps = batch_reset(env, tasks, reset_key)
    if memory is None:
        memory = policy.initial_state(timesteps.reward.shape[0])

    def one_step(carry, step_keys):
        states, timesteps, memory = carry
        actions, memory = policy.act(memory, timesteps, step_keys[1])
        states, timesteps = batch_step(env, tasks, states, timesteps, actions, step_keys[0])
        return (states, timesteps, memory), keep(states, timesteps, actions)

    keys = jax.random.split(world_key, steps), jax.random.split(policy_key, steps)
    (_, _, memory), kept = jax.lax.scan(one_step, (states, timesteps, memory), keys)
    return memory, kept
