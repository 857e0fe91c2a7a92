"""Where a policy meets a world: one step, episodes of given length, trials. Nothing here learns or judges.

Collecting, trials, probes and returns all play by `advance`. World and policy draw from independent streams, and the
world's does not depend on the policy: two policies that play with one key meet the same jobs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Key, PyTree

from reverie.envs.core import State, Task, TimeStep, World, batch_reset, batch_step, select
from reverie.policies.core import Policy, PolicyState


class Play(NamedTuple):
    """Where B episodes stand: what the policy is to see next, and what it carries."""

    states: State
    timesteps: TimeStep
    policy_state: PolicyState


def begin(
    env: World, policy: Policy, tasks: Task, key: Key[Array, ""], policy_state: PolicyState | None = None
) -> Play:
    """Open one episode of each task [B, ...]; `policy_state`, that of the policy where a trial goes on."""
    states, timesteps = batch_reset(env, tasks, key)
    return Play(
        states, timesteps, policy.initial_state(timesteps.reward.shape[0]) if policy_state is None else policy_state
    )


def advance(
    env: World, policy: Policy, tasks: Task, play: Play, act_key: Key[Array, ""], step_key: Key[Array, ""]
) -> tuple[Play, Array]:
    """The policy sees, remembers and acts; the world answers. Where an episode had ended the next one begins."""
    action, policy_state = policy.act(play.policy_state, play.timesteps, act_key)
    states, timesteps = batch_step(env, tasks, play.states, play.timesteps, action, step_key)
    return Play(states, timesteps, policy_state), action


def rollout(
    env: World,
    policy: Policy,
    tasks: Task,
    key: Key[Array, ""],
    steps: int,
    keep: Callable[[State, TimeStep, Array], PyTree],
    policy_state: PolicyState | None = None,
) -> tuple[Play, PyTree]:
    """Let `policy` act for `steps` (T) steps in B environments at once, starting B new episodes.

    Arguments: `tasks`, leaves with the axis B in front; `keep(state, timestep, action)` says what to keep of each
    transition (the state and timestep are those *after* the action); `policy_state`, that from the episode
    before, where a trial goes on.
    Returns where the episodes stand then, and what was kept, with axes [T, B, ...].
    """
    world_key, policy_key = jax.random.split(key)
    reset_key, world_key = jax.random.split(world_key)

    def step(play: Play, keys: tuple[Key[Array, ""], Key[Array, ""]]) -> tuple[Play, PyTree]:
        play, action = advance(env, policy, tasks, play, keys[1], keys[0])
        return play, keep(play.states, play.timesteps, action)

    keys = (jax.random.split(world_key, steps), jax.random.split(policy_key, steps))
    return jax.lax.scan(step, begin(env, policy, tasks, reset_key, policy_state), keys)


def trials(
    env: World,
    policy: Policy,
    tasks: Task,
    key: Key[Array, ""],
    steps: int | None,
    keep: Callable[[Play, Play], PyTree],
    close: Callable[[Play], PyTree] = lambda ended: None,
) -> tuple[PyTree, PyTree]:
    """Trials of K episodes of `steps` (J) steps, the policy's memory kept from one to the next.

    Arguments: `tasks`, leaves [K, B, ...]; `steps`, None where episodes differ in length: they are played until all
    have ended, and nothing is kept of their steps; `keep(before, after)` says what to keep of each step
    (`after.policy_state` is that right after the policy saw `before.timesteps`), `close(ended)` what to keep of the end
    of each episode. The policy sees the end too.
    Returns what was kept, [K, J, B, ...] and [K, B, ...].
    """

    def episode(policy_state: PolicyState, now: tuple[Task, Key[Array, ""]]) -> tuple[PolicyState, PyTree]:
        task, key = now
        reset_key, run_key, end_key = jax.random.split(key, 3)

        def step(play: Play, key: Key[Array, ""]) -> tuple[Play, PyTree]:
            after, _ = advance(env, policy, task, play, *jax.random.split(key))
            return after, keep(play, after)

        play = begin(env, policy, task, reset_key, policy_state)
        if steps is None:
            play, kept = _to_the_end(env, policy, task, play, run_key), None
        else:
            play, kept = jax.lax.scan(step, play, jax.random.split(run_key, steps))
        return policy.act(play.policy_state, play.timesteps, end_key)[1], (kept, close(play))

    episodes, batch = jax.tree.leaves(tasks)[0].shape[:2]
    return jax.lax.scan(episode, policy.initial_state(batch), (tasks, jax.random.split(key, episodes)))[1]


def _to_the_end(env: World, policy: Policy, tasks: Task, play: Play, key: Key[Array, ""]) -> Play:
    """Each of the episodes as it was when it ended."""

    def step(carry: tuple[Play, Key[Array, ""]]) -> tuple[Play, Key[Array, ""]]:
        play, key = carry
        key, act_key, step_key = jax.random.split(key, 3)
        after, _ = advance(env, policy, tasks, play, act_key, step_key)
        is_last = play.timesteps.is_last
        return select(is_last.reshape(is_last.shape[0], -1).all(-1), play, after), key

    return jax.lax.while_loop(lambda carry: ~carry[0].timesteps.is_last.all(), step, (play, key))[0]
