"""Worlds whose tasks are a few numbers: physics by the laws of motion, and what drivers do by what was agreed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs import merging
from reverie.envs.core import batch_reset
from reverie.envs.dispatch import Dispatch
from reverie.envs.factors import Physics, grid, inside, outside
from reverie.envs.games import GAMES
from reverie.envs.merging import Merging, Road, drive, seen, unseen
from reverie.envs.point_robot import PointRobot
from reverie.evaluate.returns import returns
from reverie.policies.likely import LikelyDelay
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


class Anywhere:
    """Dispatches at random."""

    def initial_state(self, batch):
        return ()

    def act(self, state, timestep, key):
        return jax.random.randint(key, timestep.reward.shape, 0, 4), state


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
    assert {"point_robot", "merging", "merging/hidas", "merging/told", "dispatch", "dispatch/told"} <= set(with_tests)
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


@pytest.mark.parametrize("name", ["point_robot", "merging", "merging/hidas", "dispatch"])
def test_an_oracle_sees_the_same_world_and_its_factors(name):
    plain, told = GAMES[name].world, GAMES[f"{name}/told"].world
    task, key = jnp.asarray(GAMES[name].tasks[2]), jax.random.key(3)
    action = jnp.int32(1) if name == "dispatch" else jnp.ones(plain.action_spec.width)
    for act in ("reset", "step"):
        args = () if act == "reset" else (told.reset(task, key)[0], action)
        (_, one), (_, other) = (getattr(world, act)(task, *args, key) for world in (plain, told))
        np.testing.assert_array_equal(other.observation["factors"], task)
        assert set(other.observation) == {*one.observation, "factors"} == set(told.observation_spec)
        np.testing.assert_array_equal(one.reward, other.reward)


@pytest.mark.parametrize("name", ["dispatch", "dispatch/skew"])
def test_queues_that_are_known_but_for_speeds_and_jobs_are_those_of_the_fleet(name):
    """Physics, told the factors and what jobs came, is the simulator's own step; and never beyond what it may say."""
    world, tasks = GAMES[name].world, jnp.asarray(GAMES[name].tests["extrapolated"])
    assert isinstance(world, Physics)
    speed, rate, tail = world.laws(tasks)
    unknown = jnp.log(jnp.concatenate([speed, rate[:, None], tail[:, None]], -1))
    assert (jnp.abs(unknown) < world.bound).all()
    states, timestep = batch_reset(world, tasks, KEY)
    idle, step, go_on = 0, jax.jit(jax.vmap(world.step)), jax.jit(world.advance)
    for key in jax.random.split(KEY, world.limit):
        action = jax.random.randint(key, (64,), 0, 4)
        before = timestep.observation
        states, timestep = step(tasks, states, action, jax.random.split(key, 64))
        seen, reward, ends = go_on(before, action, unknown, world.brought(timestep.observation))
        for entry in seen:
            np.testing.assert_allclose(seen[entry], timestep.observation[entry], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reward, timestep.reward, rtol=1e-4, atol=1e-5)
        assert not ends.any()
        assert not timestep.is_terminal.any()
        idle += int((seen["servers"][..., 1] == 0).sum())
    assert timestep.is_last.all()
    assert 0 < idle < 64 * 64 * 4


def test_jobs_that_are_imagined_have_the_law_of_those_that_come_and_no_other_is_likelier():
    """Means, spread and tail of drawn jobs are the simulator's; under no other law are those that come likelier."""
    world = Dispatch()
    tasks = jnp.tile(jnp.array([[0.6, 0.7, -0.5]]), (1_000, 1))
    _, rate, tail = world.laws(tasks)
    truth = jnp.concatenate([jnp.zeros((1_000, 4)), jnp.log(rate)[:, None], jnp.log(tail)[:, None]], -1)
    _, seen = rollout(world, Anywhere(), tasks, KEY, 16, lambda s, t, a: t.observation["job"])
    came, drawn = np.asarray(seen).reshape(-1, 2), np.asarray(world.draw(jnp.tile(truth, (16, 1)), KEY))
    for made in (came, drawn):
        assert made[:, 0].mean() == pytest.approx(1.0, rel=0.03)
        assert np.log(made[:, 0]).std() == pytest.approx(0.7, rel=0.03)
        assert made[:, 1].mean() == pytest.approx(1 / 2.4, rel=0.03)
        assert (made[:, 1] > 3 / 2.4).mean() == pytest.approx(np.exp(-3), rel=0.1)
    shifts = jnp.concatenate([jnp.zeros((1, 6)), 0.1 * jnp.eye(6)[4:], -0.1 * jnp.eye(6)[4:]])
    unlikely = jax.vmap(lambda shift: world.unlikelihood(jnp.tile(truth + shift, (16, 1)), jnp.asarray(came)).mean())(
        shifts
    )
    assert (unlikely[0] < unlikely[1:]).all()


def test_skew_says_which_servers_are_fast_and_their_sum_stays():
    speed, _, _ = Dispatch(("skew",)).laws(jnp.array([[-1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(speed.sum(1), 4, rtol=1e-6)
    np.testing.assert_allclose(speed[1], 1, rtol=1e-6)
    np.testing.assert_allclose(speed[0], speed[2][::-1], rtol=1e-5)
    assert float(speed[2, 3] / speed[2, 0]) == pytest.approx(np.exp(2), rel=1e-4)


def test_factors_that_a_fleet_does_not_have_are_refused():
    with pytest.raises(ValueError, match="factors are of load, tail, skew; got size"):
        Dispatch(("load", "size"))


def test_likely_speeds_are_the_true_ones_once_a_server_was_seen_and_serve_as_well():
    """In the second episode: as good as whoever is told the speeds, and better than whoever looks at work alone."""
    game = GAMES["dispatch"]
    tasks = jnp.tile(jnp.asarray(game.tests["extrapolated"]), (4, 1))
    speed = game.world.laws(tasks)[0]
    rule = LikelyDelay(4)
    ended, _ = rollout(game.world, rule, tasks, KEY, 65, lambda s, t, a: None)
    known = ended.policy_state.speed
    assert float((known != 1).mean()) > 0.8
    np.testing.assert_allclose(jnp.where(known == 1, 1.0, known / speed), 1.0, rtol=1e-3)

    class Delay(Anywhere):
        """Least work over speed."""

        def __init__(self, speed):
            self.speed = speed

        def act(self, state, timestep, key):
            work = timestep.observation["servers"][..., 0] + timestep.observation["job"][:, :1]
            return (work / self.speed).argmin(-1), state

    told, blind = (returns(game.world, Delay(x), tasks, KEY, 2)[:, 1].mean() for x in (speed, jnp.ones_like(speed)))
    likely = returns(game.world, rule, tasks, KEY, 2)[:, 1].mean()
    assert told * 1.05 < likely
    assert blind < 1.3 * likely


@pytest.mark.parametrize("world", [PointRobot, Merging, Dispatch])
def test_an_episode_of_no_steps_is_refused(world):
    with pytest.raises(ValueError, match=f"{world.__name__}: limit must be at least 1, got 0"):
        world(limit=0)
