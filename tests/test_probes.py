"""Probes: the truth beside a state is the truth, and measures are those of cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, fleet_task
from reverie.evaluate.capacity import changes
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.probes import Swapped, Wiped, decode, numbers, purity, record, silhouette, standardised
from reverie.evaluate.trials import play

CHANGE = 40.0


class Counting:
    """Always sends to the first server and remembers how many moments it has seen."""

    view = "full"

    def initial_state(self, batch):
        return jnp.zeros((batch,), jnp.int32)

    def act(self, state, timestep, key):
        return jnp.zeros_like(state), state + 1


def task(first: float):
    """Two servers that change places at time 40, while twice as many jobs come."""
    speed = schedules.stack(
        [schedules.schedule([0, CHANGE], [first, 2.0]), schedules.schedule([0, CHANGE], [2, first])]
    )
    return fleet_task(speed, workloads.stepped([0, CHANGE], [4.0, 2.0], workloads.pareto(2.5, 1.0)))


@pytest.fixture(scope="module")
def played():
    env, tasks, key = FleetEnv(2, 30), stack_tasks([task(1.0), task(3.0)]), jax.random.key(0)
    return record(env, Counting(), tasks, key, episodes=2), tasks, key


def test_the_truth_beside_each_moment_is_that_of_its_time(played):
    recorded, tasks, key = played
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tasks)
    arrival = play([Contestant("counting", Counting(), FleetEnv())], twice, key, 30)[0].arrival  # [K, J, E]
    later = arrival >= CHANGE
    assert 0.2 < later.mean() < 0.8
    for trial, first in enumerate((1.0, 3.0)):
        after = later[..., trial]
        np.testing.assert_allclose(recorded.speed[:, :, trial][~after], [[first, 2.0]] * (~after).sum())
        np.testing.assert_allclose(recorded.speed[:, :, trial][after], [[2.0, first]] * after.sum())
        load = recorded.load[..., trial]
        assert len(set(load[after])) == len(set(load[~after])) == 1
        assert load[after][0] == pytest.approx(2 * load[~after][0], abs=2e-3)
    np.testing.assert_allclose(recorded.time_since, np.where(later, arrival - CHANGE, arrival), atol=1e-4)
    for episode, trial in np.ndindex(2, 2):
        before = (~later[episode, :, trial]).sum()
        expected = [*range(before), *range(30 - before)]
        assert recorded.jobs_since[episode, :, trial].tolist() == expected


def test_memory_is_that_after_the_moment_was_seen_and_lives_through_the_trial(played):
    recorded, tasks, key = played
    # 30 jobs and the end of each episode.
    np.testing.assert_array_equal(recorded.state[:, :, 0], [np.arange(1, 31), np.arange(32, 62)])
    assert recorded.observation["servers"].shape == (2, 30, 2, 2, 2)
    wiped = record(FleetEnv(2, 30), Wiped(Counting()), tasks, key, episodes=2)
    np.testing.assert_array_equal(wiped.state[:, :, 0], [np.arange(1, 31)] * 2)


class Numbered:
    """Remembers the number of its trial, and nothing else."""

    view = "full"

    def initial_state(self, batch):
        return jnp.arange(batch)

    def act(self, state, timestep, key):
        return jnp.zeros_like(state), state


def test_memories_are_swapped_where_episodes_begin_and_nowhere_else(played):
    _, tasks, key = played
    own, swapped = (record(FleetEnv(2, 30), p, tasks, key, episodes=2) for p in (Numbered(), Swapped(Numbered())))
    np.testing.assert_array_equal(own.state, np.broadcast_to([0, 1], (2, 30, 2)))
    np.testing.assert_array_equal(swapped.state[0], np.broadcast_to([1, 0], (30, 2)))
    np.testing.assert_array_equal(swapped.state[1], own.state[1])  # and back again


def test_changes_are_those_of_values_not_of_padding():
    still = schedules.schedule([0, 10, 10, 20], [1, 5, 1, 2])  # never 5; it changes at 20
    again = schedules.schedule([0, 6], [1, 3], period=15.0)
    of_task = fleet_task(schedules.stack([still]), workloads.poisson(4.0, workloads.pareto(2.5, 1.0)))
    assert changes(of_task, 100.0).tolist() == [20]
    assert changes(of_task, 19.0).tolist() == []
    speed = schedules.Schedule(*(leaf[None] for leaf in again))
    of_task = fleet_task(speed, workloads.poisson(4.0, workloads.pareto(2.5, 1.0)))
    assert changes(of_task, 31.0).tolist() == [6, 15, 21, 30]


def test_a_linear_target_is_decoded_and_noise_is_not():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 15, 4))
    assert decode(inputs, inputs @ [1.0, -2.0, 0.0, 3.0] + 7) > 0.999
    assert decode(inputs, rng.normal(size=(20, 15))) < 0.05


def test_what_marks_a_trial_does_not_help_to_decode_others():
    rng = np.random.default_rng(0)
    target = np.repeat(rng.normal(size=(20, 1)), 15, 1)  # one number a trial
    names = np.repeat(np.eye(20)[:, None], 15, 1)  # and a code that names the trial
    assert decode(names, target) < 0.05


def test_impossible_probes_are_refused():
    with pytest.raises(ValueError, match="5 folds need as many trials"):
        decode(np.zeros((3, 2, 1)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="the target is the same everywhere"):
        decode(np.zeros((5, 2, 1)), np.ones((5, 2)))
    with pytest.raises(ValueError, match="needs 2 points in other trials"):
        purity(np.zeros((3, 1)), np.zeros(3, int), np.array([0, 0, 1]), neighbours=2)


def test_silhouette_is_that_worked_out_by_hand():
    points, label = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    # a = 1 everywhere; b = 10.5 at the ends and 9.5 within.
    assert silhouette(points, label) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)


def test_purity_looks_at_other_trials_and_shares_ties():
    points, label = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]]), np.array([0, 0, 1, 1, 1])
    trial = np.array([0, 1, 2, 3, 4])
    # Nearest: 1, then 0 and 2 tied (half), 1, 4, 3.
    assert purity(points, label, trial, 1) == pytest.approx((1 + 0.5 + 0 + 1 + 1) / 5)
    # The first two in one trial see the third instead, and the third sees the second.
    assert purity(points, label, np.array([0, 0, 2, 3, 4]), 1) == pytest.approx((0 + 0 + 0 + 1 + 1) / 5)
    everywhere = np.zeros((6, 2))
    label = np.array([0, 0, 0, 1, 1, 1])
    assert purity(everywhere, label, np.arange(6), 2) == pytest.approx(2 / 5)


def test_numbers_of_a_state_are_flat_and_bounded():
    state = {"a": np.full((3, 2, 4), np.e - 1), "b": np.array([[True, False]] * 3)[..., None]}
    flat = numbers(state, 2)
    assert flat.shape == (3, 2, 5)
    np.testing.assert_allclose(flat[0, 0], [1, 1, 1, 1, np.log(2)])
    np.testing.assert_allclose(standardised(np.array([[1.0, 5.0], [3.0, 5.0]])), [[-1, 0], [1, 0]])
