"""The diagnostic ladder and CartPole, against their own statements and Gymnasium."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cartpole import CartPole, CartPoleState
from diagnostic import Credit, CutOff, Dependence, Discounting, HiddenArm, Recall, Value

from reverie.envs.core import batch_step, stack_tasks
from reverie.policies.rollout import rollout

LADDER = [Value(), Dependence(), Discounting(), Credit(), Recall(), HiddenArm(), CutOff()]


def episode(env, actions, task=0, seed=0):
    """The timesteps of one episode played with a list of actions, the opening one included."""
    state, timestep = env.reset(jnp.int32(task), jax.random.key(seed))
    timesteps = [timestep]
    for action in actions:
        state, timestep = env.step(jnp.int32(task), state, jnp.int32(action), jax.random.key(0))
        timesteps.append(timestep)
    return timesteps


def rewards(timesteps):
    return [float(t.reward) for t in timesteps]


class Uniform:
    """Guesses among two actions."""

    def initial_state(self, batch):
        return None

    def act(self, state, timestep, key):
        return jax.random.randint(key, timestep.reward.shape, 0, 2), state


@pytest.mark.parametrize("env", LADDER, ids=lambda env: type(env).__name__)
def test_guessing_earns_what_the_best_policy_without_look_or_memory_earns(env):
    tasks = stack_tasks([jnp.int32(i % 2) for i in range(512)])
    _, kept = rollout(env, Uniform(), tasks, jax.random.key(3), 40, lambda s, t, a: (t.reward, t.is_last))
    reward, is_last = (np.asarray(x) for x in kept)
    guess = 0.5 if isinstance(env, Credit) else env.memoryless_return
    whole = np.flatnonzero(is_last[:, 0])[-1] + 1  # all episodes of a world have one length
    np.testing.assert_allclose(reward[:whole].sum() / is_last[:whole].sum(), guess, atol=0.03)


@pytest.mark.parametrize("env", LADDER, ids=lambda env: type(env).__name__)
def test_episodes_begin_end_and_begin_again(env):
    tasks = jnp.zeros((2,), jnp.int32)
    state, timestep = jax.vmap(env.reset)(tasks, jax.random.split(jax.random.key(0), 2))
    assert timestep.is_first.all()
    assert not timestep.is_last.any()
    for name, spec in env.observation_spec.items():
        assert timestep.observation[name].shape == (2, *spec.shape)
    for _ in range(20):
        before = timestep
        state, timestep = batch_step(env, tasks, state, timestep, jnp.zeros((2,), jnp.int32), jax.random.key(1))
        assert (timestep.is_first == before.is_last).all()
        assert (timestep.is_last >= timestep.is_terminal).all()
        if timestep.is_first.all():
            return
    pytest.fail("no episode ended within 20 steps")


def test_dependence_pays_what_it_shows():
    paid = set()
    for seed in range(8):
        opening, end = episode(Dependence(), [0], seed=seed)
        assert float(end.reward) == float(opening.observation["vector"][0])
        paid.add(float(end.reward))
    assert paid == {-1.0, 1.0}


def test_discounting_pays_once_at_the_end_and_shows_the_time():
    timesteps = episode(Discounting(length=4), [0, 1, 0, 1])
    assert rewards(timesteps) == [0, 0, 0, 0, 1]
    assert [float(t.observation["vector"][0]) for t in timesteps] == [0, 1, 2, 3, 4]
    assert [bool(t.is_terminal) for t in timesteps] == [False] * 4 + [True]


@pytest.mark.parametrize("first_action", [0, 1])
def test_credit_pays_the_first_action_alone_and_late(first_action):
    for seed in range(4):
        for later in (0, 1):
            timesteps = episode(Credit(delay=2), [first_action, later, later], seed=seed)
            named = first_action == (float(timesteps[0].observation["vector"][0]) > 0)
            assert rewards(timesteps) == [0, 0, 0, float(named)]
            assert bool(timesteps[-1].is_terminal)


def test_recall_asks_once_for_a_cue_it_no_longer_shows():
    for seed in range(4):
        for answer in (0, 1):
            timesteps = episode(Recall(gap=2), [1 - answer, 1 - answer, 1 - answer, answer], seed=seed)
            seen = np.stack([t.observation["vector"] for t in timesteps])
            cue = seen[0, 0]
            np.testing.assert_array_equal(seen[1:, 0], 0)
            np.testing.assert_array_equal(seen[:, 1], [0, 0, 0, 1, 0])
            assert rewards(timesteps) == [0, 0, 0, 0, float(answer == (cue > 0))]


def test_hidden_arm_pays_the_task_and_shows_nothing_of_it():
    for task in (0, 1):
        for arm in (0, 1):
            opening, end = episode(HiddenArm(), [arm], task=task)
            assert float(end.reward) == float(arm == task)
            assert float(opening.observation["vector"][0]) == float(end.observation["vector"][0]) == 0


def test_cut_off_is_cut_and_not_ended():
    timesteps = episode(CutOff(length=3), [0, 1, 0])
    assert [bool(t.is_last) for t in timesteps] == [False, False, False, True]
    assert not any(bool(t.is_terminal) for t in timesteps)
    assert rewards(timesteps) == [0, 1, 1, 1]


def balance(body, skill, rng):
    """Pushes towards the side the pole falls to in a share `skill` of all steps, anywhere in the others."""
    return int(body[2] + 0.5 * body[3] > 0) if rng.random() < skill else int(rng.integers(2))


def test_cartpole_equals_gymnasium_step_by_step():
    env, reference = CartPole(), gymnasium.make("CartPole-v1").unwrapped
    step, rng, ends = jax.jit(env.step), np.random.default_rng(0), 0
    for seed, skill in enumerate([0.9, 0.9, 0.5, 0.0]):
        start, _ = reference.reset(seed=seed)
        state = CartPoleState(jnp.asarray(start), jnp.int32(0))
        for _ in range(400):
            # The pole is unstable, so errors of rounding grow: both start each step from the same numbers.
            reference.state = np.asarray(state.body, np.float64)
            action = balance(state.body, skill, rng)
            expected, reward, terminated, _, _ = reference.step(action)
            state, timestep = step(jnp.zeros(()), state, jnp.int32(action), jax.random.key(0))
            np.testing.assert_allclose(timestep.observation["vector"], expected, atol=1e-6)
            assert float(timestep.reward) == reward
            assert bool(timestep.is_terminal) == terminated == bool(timestep.is_last)
            if terminated:
                ends += 1
                break
    assert 0 < ends < 4


def test_cartpole_begins_near_upright_and_differently():
    bodies = np.stack([CartPole().reset(jnp.zeros(()), jax.random.key(s))[0].body for s in range(64)])
    assert np.abs(bodies).max() <= 0.05
    assert np.abs(bodies).max() > 0.045
    assert bodies.std(0).min() > 0.02


def test_cartpole_is_cut_not_ended_at_its_limit():
    env = CartPole(limit=3)
    timesteps = episode(env, [0, 1, 0])
    assert [bool(t.is_last) for t in timesteps] == [False, False, False, True]
    assert not any(bool(t.is_terminal) for t in timesteps)


def test_cartpole_ends_when_it_fails_at_its_limit():
    env = CartPole(limit=5)
    lost = CartPoleState(jnp.asarray([0.0, 0.0, 0.2, 5.0]), jnp.int32(4))
    _, timestep = env.step(jnp.zeros(()), lost, jnp.int32(0), jax.random.key(0))
    assert bool(timestep.is_last)
    assert bool(timestep.is_terminal)
