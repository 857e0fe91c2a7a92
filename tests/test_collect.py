"""Collecting: trials, episodes, memory and the order of what is stored."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.core import ArraySpec, Discrete, TimeStep, first
from reverie.train.collect import collect, finished_returns, open_streams

LENGTH = 3


class Clock:
    """A world that counts: the observation is (task, time), the reward the action, an episode has LENGTH steps."""

    observation_spec = {"vector": ArraySpec((2,))}  # noqa: RUF012
    action_spec = Discrete(5)

    def reset(self, task, key):
        return jnp.float32(0), first({"vector": jnp.stack([task, jnp.float32(0)])})

    def step(self, task, state, action, key):
        time = state + 1
        done = time == LENGTH
        no = jnp.zeros((), bool)
        return time, TimeStep({"vector": jnp.stack([task, time])}, action.astype(jnp.float32), no, done, done)


class Counting(NamedTuple):
    """A policy whose memory counts its steps and whose action is that count, modulo 5."""

    def initial_state(self, batch):
        return jnp.zeros((batch,), jnp.int32)

    def act(self, state, timestep, key):
        return state % 5, state + 1


def experience(steps: int, episodes: int, batch: int = 4):
    env, pool, policy = Clock(), jnp.arange(7.0), Counting()
    begun = open_streams(env, pool, policy, batch, jax.random.key(0))
    return jax.jit(lambda c: collect(env, pool, policy, c, steps, episodes, keep=lambda state: state))(begun)[1]


def test_the_reward_of_an_action_stands_in_the_next_row():
    seen = experience(steps=24, episodes=2)
    action, reward = np.asarray(seen.action), np.asarray(seen.timestep.reward)
    inside = ~np.asarray(seen.timestep.is_first)[1:]
    np.testing.assert_array_equal(reward[1:][inside], action[:-1][inside])
    assert (reward[np.asarray(seen.timestep.is_first)] == 0).all()


def test_episodes_follow_one_another_and_their_returns_are_counted_once():
    seen = experience(steps=24, episodes=2)
    time = np.asarray(seen.timestep.observation["vector"])[..., 1]
    np.testing.assert_array_equal(time[:, 0], np.tile(np.arange(LENGTH + 1), 6))
    finished, last = np.asarray(seen.finished), np.asarray(seen.timestep.is_last)
    np.testing.assert_array_equal(~np.isnan(finished), last)
    reward = np.asarray(seen.timestep.reward).reshape(6, LENGTH + 1, -1)
    np.testing.assert_allclose(finished[last].reshape(6, -1), reward.sum(1))
    assert finished_returns(seen)["episode/count"] == last.sum()


def test_memory_and_task_live_through_a_trial_and_end_with_it():
    seen = experience(steps=64, episodes=2, batch=8)
    memory, task = np.asarray(seen.kept), np.asarray(seen.timestep.observation["vector"])[..., 0]
    trial = 2 * (LENGTH + 1)
    np.testing.assert_array_equal(memory, np.tile(np.arange(1, trial + 1), 8)[:, None] * np.ones(8, int))
    np.testing.assert_array_equal(np.asarray(seen.is_trial_first)[:, 0], np.arange(64) % trial == 0)
    by_trial = task.reshape(8, trial, 8)
    assert (by_trial == by_trial[:, :1]).all(), "the task changed inside a trial"
    assert len(np.unique(by_trial[:, 0])) > 3, "trials do not draw their tasks anew"
