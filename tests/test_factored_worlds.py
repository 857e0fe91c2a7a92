"""Worlds whose tasks are a few numbers: physics by the laws of motion, and what drivers do by what was agreed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs import merging
from reverie.envs.core import batch_reset
from reverie.envs.factors import grid, inside, outside
from reverie.envs.games import GAMES
from reverie.envs.merging import Merging, Road, drive, seen, unseen
from reverie.envs.point_robot import PointRobot
from reverie.policies.rollout import rollout

KEY = jax.random.key(0)


def roads(count: int = 64) -> Road:
    states, _ = batch_reset(Merging(), jnp.zeros((count, 1)), KEY)
    return states.road


class Straight:
    """Walks at full stride towards goals that it knows."""

    def __init__(self, goals):
        self.goals = goals

    def initial_state(self, batch):
        return ()

    def act(self, state, timestep, key):
        return jnp.clip((self.goals - timestep.observation["position"]) / 0.1, -1, 1), state


def test_the_point_robot_pays_the_distance_that_is_left():
    goals = jnp.asarray(inside((-1.0, -1.0), (1.0, 1.0), 32, seed=1))
    env = PointRobot()
    _, (paid, last) = rollout(env, Straight(goals), goals, KEY, 20, lambda s, t, a: (t.reward, t.is_last))
    expected = np.zeros(32)
    position = np.zeros((32, 2))
    for _ in range(20):
        position += np.clip(np.asarray(goals) - position, -0.1, 0.1)
        expected -= np.linalg.norm(np.asarray(goals) - position, axis=1)
    np.testing.assert_allclose(paid.sum(0), expected, rtol=1e-4, atol=1e-4)
    assert last[-1].all()
    assert not last[:-1].any()


def test_cars_move_as_constant_acceleration_has_it():
    road = Road(jnp.array([0.0, 10.0]), jnp.array([20.0, 10.0]))
    after = drive(road, jnp.array([1.5, -3.0]))
    np.testing.assert_allclose(after.speed, [20.3, 9.4], rtol=1e-6)
    np.testing.assert_allclose(after.position, [0.2 * 20.15, 10 + 0.2 * 9.7], rtol=1e-6)


def test_what_is_seen_of_a_road_is_all_of_it():
    road = roads()
    again = unseen(seen(road))
    np.testing.assert_allclose(again.position, road.position, atol=1e-4)
    np.testing.assert_allclose(again.speed, road.speed, rtol=1e-6)


def test_the_more_they_yield_the_more_the_car_behind_brakes_and_nobody_else_minds():
    road = jax.tree.map(lambda x: x[0], roads())
    responses = jax.vmap(lambda p: Merging().responses(p, road))(jnp.linspace(-1, 1, 9)[:, None])  # [9, O]
    moved = np.ptp(np.asarray(responses), axis=0) > 1e-6
    assert moved.sum() == 1
    behind = np.asarray(responses)[:, moved.argmax()]
    assert (np.diff(behind) <= 1e-6).all()
    assert behind[0] > behind[-1]


def test_drivers_yield_up_to_what_they_accept():
    """Hidas: the same road, and a driver who accepts more deceleration or a larger loss of speed."""
    road = jax.tree.map(lambda x: x[0], roads())
    env = Merging("hidas")
    ignoring, yielding = (env.responses(jnp.array(task), road) for task in ([0.0, 0.0], [30.0, 3.0]))
    assert (yielding < ignoring - 0.1).any()
    np.testing.assert_allclose(env.responses(jnp.array([30.0, 0.0]), road), ignoring, rtol=1e-6)
    np.testing.assert_allclose(env.responses(jnp.array([0.0, 3.0]), road), ignoring, rtol=1e-6)


@pytest.mark.parametrize("yielding", [-1.0, 0.0, 1.0])
def test_no_driver_of_the_main_lane_hits_the_one_ahead(yielding):
    env, tasks = Merging(), jnp.full((256, 1), yielding)

    class Cruise:
        def initial_state(self, batch):
            return ()

        def act(self, state, timestep, key):
            return jax.random.uniform(key, (256, 1), minval=-1.0), state

    _, gaps = rollout(env, Cruise(), tasks, KEY, 60, lambda s, t, a: s.road.position[:, 1:-1] - s.road.position[:, 2:])
    assert float(gaps.min()) > merging.LENGTH


def test_what_is_best_depends_on_how_they_yield():
    """Of constant accelerations, braking a little merges ahead of those who yield, and hits those who do not."""
    env = Merging()

    def worth(yielding: float, pressed: float) -> float:
        class Constant:
            def initial_state(self, batch):
                return ()

            def act(self, state, timestep, key):
                return jnp.full((512, 1), pressed), state

        def keep(state, timestep, action):
            return timestep.reward, timestep.is_last

        _, (paid, last) = rollout(env, Constant(), jnp.full((512, 1), yielding), KEY, 60, keep)
        going = jnp.cumprod(1 - jnp.concatenate([jnp.zeros((1, 512)), last[:-1]]), 0)
        return float((paid * going).sum(0).mean())

    assert worth(0.5, -0.1) > worth(0.5, -0.3) + 2
    assert worth(-1.0, -0.3) > worth(-1.0, -0.1) + 2


def test_tests_lie_between_the_tasks_to_learn_from_or_outside_of_them():
    """In every factor between its least and its greatest value; outside, not so in at least one."""
    with_tests = {name: game for name, game in GAMES.items() if game.tests}
    assert {"point_robot", "merging", "merging/hidas", "merging/told"} <= set(with_tests)
    for game in with_tests.values():
        low, high = game.tasks.min(0), game.tasks.max(0)
        between, around = (game.tests[name] for name in ("interpolated", "extrapolated"))
        if len(game.tasks) < 50:  # sparse grids; the 80 goals of the point robot are drawn as those of its tests
            assert ((between >= low) & (between <= high)).all()
            assert ((around < low) | (around > high)).any(1).all()
        assert not set(map(tuple, game.tasks.tolist())) & set(map(tuple, between.tolist()))
        assert game.tasks.dtype == between.dtype == around.dtype == np.float32


def test_a_grid_has_every_combination_once():
    found = grid((0.0, 1.0), (2.0, 3.0, 4.0))
    assert sorted(map(tuple, found.tolist())) == [(a, b) for a in (0.0, 1.0) for b in (2.0, 3.0, 4.0)]


def test_outside_is_in_the_wider_box_and_all_around():
    found = outside((-1.0, -1.0), (1.0, 1.0), (-2.0, -2.0), (2.0, 2.0), 500, seed=0)
    assert (np.abs(found) <= 2).all()
    assert (np.abs(found).max(1) > 1).all()
    signs = np.unique(np.sign(found), axis=0)
    assert len(signs) == 4
    assert (np.abs(found) < 1).any(), "a task may lie within the range of one factor"


@pytest.mark.parametrize("name", ["point_robot", "merging", "merging/hidas"])
def test_an_oracle_sees_the_same_world_and_its_factors(name):
    plain, told = GAMES[name].world, GAMES[f"{name}/told"].world
    task, key = jnp.asarray(GAMES[name].tasks[2]), jax.random.key(3)
    for act in ("reset", "step"):
        args = () if act == "reset" else (told.reset(task, key)[0], jnp.ones(plain.action_spec.size))
        (_, one), (_, other) = (getattr(world, act)(task, *args, key) for world in (plain, told))
        np.testing.assert_array_equal(other.observation["factors"], task)
        assert set(other.observation) == {*one.observation, "factors"} == set(told.observation_spec)
        np.testing.assert_array_equal(one.reward, other.reward)
