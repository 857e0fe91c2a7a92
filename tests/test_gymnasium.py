"""The Gymnasium adapters: Gymnasium's own checkers, and the same numbers as the simulator itself."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cartpole import CartPole
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from jaxtyping import Array

from reverie import colours
from reverie.envs.core import ArraySpec, Continuous, Task, TimeStep, first
from reverie.envs.fleet import picture
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.park import ParkLoadBalance
from reverie.envs.gymnasium import ReverieEnv, ReverieVectorEnv, make_fleet, make_fleet_vector, observation_space

# Remaining work and waiting times have no bounds, and the checker says of every unbounded space that it is "probably"
# not meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is -?infinity")


@dataclass(frozen=True)
class Reaching:
    """A world with every kind of entry that fleets have not: continuous actions, an image, categories, truncation."""

    limit: int = 4

    observation_spec: ClassVar = {
        "position": ArraySpec((2,)),
        "picture": ArraySpec((2, 3, 1), "image"),
        "phase": ArraySpec((1,), categories=5),
    }
    action_spec: ClassVar = Continuous(2)

    def observe(self, position: Array, time: Array) -> dict[str, Array]:
        picture = jnp.full((2, 3, 1), time, jnp.uint8)
        return {"position": position, "picture": picture, "phase": (time % 5)[None]}

    def reset(self, task: Task, key: Array) -> tuple[tuple[Array, Array], TimeStep]:
        position, time = jax.random.normal(key, (2,)), jnp.int32(0)
        return (position, time), first(self.observe(position, time))

    def step(self, task: Task, state: tuple[Array, Array], action: Array, key: Array):
        position, time = state[0] + task * action, state[1] + 1
        terminal = jnp.abs(position).max() < 0.05
        timestep = TimeStep(
            self.observe(position, time),
            -jnp.abs(position).sum(),
            is_first=jnp.zeros((), bool),
            is_last=terminal | (time == self.limit),
            is_terminal=terminal,
        )
        return (position, time), timestep


def scales(rng: np.random.Generator) -> Task:
    return jnp.float32(rng.uniform(0.5, 1.5))


class Played(NamedTuple):
    observations: list
    rewards: list
    ends: list
    infos: list


def play(env: gymnasium.Env, seed: int, steps: int) -> Played:
    """Random actions until the end of the first episode."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    played = Played([observation], [], [], [info])
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        for column, value in zip(played, (observation, reward, (terminated, truncated), info), strict=True):
            column.append(value)
        if terminated or truncated:
            break
    return played


# --- one environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["full", "counts", "park"])
def test_the_fleet_passes_the_checker_of_gymnasium(view):
    check_env(gymnasium.make("reverie/Fleet-v0", family="drift", jobs=20, view=view, reward="elapsed").unwrapped)


@pytest.mark.parametrize("world", [CartPole(), Reaching()])
def test_other_worlds_pass_it_too(world):
    check_env(ReverieEnv(world, scales), skip_render_check=True)


def test_park_passes_it_too():
    check_env(gymnasium.make("reverie/ParkLoadBalance-v0", num_jobs=20).unwrapped)


def test_park_is_registered():
    env = gymnasium.make("reverie/ParkLoadBalance-v0", num_jobs=5)
    assert isinstance(env.unwrapped, ParkLoadBalance)
    assert play(env, 0, steps=10).ends == [(False, False)] * 4 + [(True, False)]


def test_rewards_of_an_episode_are_its_response_times():
    for reward in ("admission", "elapsed"):
        played = play(gymnasium.make("reverie/Fleet-v0", family="medium", jobs=30, reward=reward), 0, steps=100)
        assert len(played.rewards) == 30
        assert played.ends == [(False, False)] * 29 + [(True, False)]
        responses = [info["response"] for info in played.infos[1:]]
        assert sum(played.rewards) == pytest.approx(-sum(responses), rel=1e-5)
        assert {*played.infos[0]} == {"action_mask"}
        assert {type(value) for value in played.infos[1].values()} == {int, float, np.ndarray}
        arrivals = [info["arrival"] for info in played.infos[1:]]
        clocks = [info["clock"] for info in played.infos[1:]]
        assert arrivals[1:] == clocks[:-1]


def test_a_seed_repeats_tasks_and_episodes_and_other_episodes_differ():
    env = make_fleet("continuous", jobs=10)
    one, same, other = play(env, 3, 10), play(env, 3, 10), play(env, 4, 10)
    assert data_equivalence(one.observations, same.observations, exact=True)
    assert one.rewards == same.rewards
    assert one.rewards != other.rewards
    env.reset(seed=3)
    continued = env.reset()[0]
    assert not np.array_equal(continued["servers"], one.observations[0]["servers"])  # another task: other speeds
    env.reset(seed=3)
    assert data_equivalence(env.reset()[0], continued, exact=True)


def test_the_load_can_be_chosen():
    played = play(make_fleet("hard", jobs=400, load=0.1), 0, steps=400)
    clock = played.infos[-1]["clock"]
    assert 300 * 400 / 6 / clock == pytest.approx(0.1, rel=0.25)


def test_what_a_caller_changes_does_not_come_back():
    env = make_fleet("hard", jobs=10)
    observation, _ = env.reset(seed=0)
    for value in observation.values():
        value[...] = 0
    assert env.step(0)[0]["mask"].all()


def test_a_truncated_episode_is_not_terminated():
    assert play(ReverieEnv(Reaching(limit=3), scales), 0, steps=10).ends == [(False, False)] * 2 + [(False, True)]
    played = play(ReverieEnv(replace(CartPole(), limit=5), scales), 0, steps=10)
    assert played.ends[-1] == (False, True)
    assert len(played.ends) == 5


def test_spaces_hold_what_the_specification_says():
    space = observation_space(Reaching().observation_spec)
    assert space["picture"] == spaces.Box(0, 255, (2, 3, 1), np.uint8)
    assert space["phase"] == spaces.MultiDiscrete([5])
    assert space["position"].dtype == np.float32
    assert isinstance(make_fleet("hard").observation_space["mask"], spaces.MultiBinary)
    assert ReverieEnv(Reaching(), scales).action_space == spaces.Box(-1, 1, (2,), np.float32)


def padded(rng: np.random.Generator) -> Task:
    """Two servers in three rows."""
    return fleet_task(constant_speeds([1.0, 0.5]), workloads.poisson(2.0, workloads.exponential(1.0)), servers=3)


def test_impossible_actions_are_refused():
    env = make_fleet(padded, servers=3, jobs=2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(0)
    assert env.reset(seed=0)[0]["mask"].tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"action 3 is not in the action space Discrete\(3\)"):
        env.step(3)
    with pytest.raises(ValueError, match="action 2 is forbidden by the observation's entry 'mask'"):
        env.step(2)
    env.step(np.int64(1))
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(0)
    with pytest.raises(ValueError, match="unknown task family 'hrad': did you mean 'hard'"):
        gymnasium.make("reverie/Fleet-v0", family="hrad")
    with pytest.raises(ValueError, match="3 rows of servers and the environment 10"):
        make_fleet(padded).reset()


# --- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["full", "counts", "park"])
def test_every_value_is_in_its_space(view):
    envs = gymnasium.make_vec("reverie/Fleet-v0", num_envs=3, family="drift", jobs=4, view=view)
    assert isinstance(envs.unwrapped, ReverieVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)
    assert {*infos} == {"action_mask", "_action_mask"}
    for _ in range(11):
        assert observations in envs.observation_space
        observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
        assert rewards.shape == terminated.shape == truncated.shape == infos["response"].shape == (3,)
    envs.close()


def test_autoreset_comes_with_the_step_after_the_end():
    envs = make_fleet_vector(2, "continuous", jobs=3, reward="elapsed")
    opening, _ = envs.reset(seed=0)
    speeds = [opening["servers"][..., 1]]
    for step in range(1, 13):
        observation, rewards, terminated, truncated, infos = envs.step(np.array([0, 9]))
        opened = step % 4 == 0
        assert terminated.tolist() == [step % 4 == 3] * 2
        assert not truncated.any()
        assert infos["_response"].tolist() == [not opened] * 2
        assert (rewards == 0).all() == opened
        if opened:
            assert (observation["servers"][..., 0] == 0).all()
            speeds.append(observation["servers"][..., 1])
        else:
            np.testing.assert_array_equal(observation["servers"][..., 1], speeds[-1])
    assert len(np.unique(np.concatenate(speeds), axis=0)) == 8  # four episodes of two rows, each of a task of its own


def test_rows_end_on_their_own():
    """Poles fall at different times; a row that begins anew leaves the others alone."""
    envs = ReverieVectorEnv(CartPole(limit=30), scales, 8)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    ended, length, lengths = np.zeros(8, bool), np.zeros(8, int), []
    for _ in range(60):
        observation, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        body = observation["vector"]
        assert (np.abs(body[ended]) <= 0.05).all()
        np.testing.assert_array_equal(rewards, np.where(ended, 0.0, 1.0))
        length = np.where(ended, 0, length + 1)
        assert not (terminated & truncated).any()
        assert (truncated == ((length == 30) & ~terminated)).all()
        ended = terminated | truncated
        lengths += length[ended].tolist()
    assert len(set(lengths)) > 3


def test_rewards_of_each_row_are_its_response_times():
    envs = make_fleet_vector(5, "drift", jobs=20, view="counts", reward="elapsed")
    envs.action_space.seed(1)
    envs.reset(seed=1)
    total, responses = np.zeros(5), np.zeros(5)
    for _ in range(20):
        _, rewards, terminated, _, infos = envs.step(envs.action_space.sample())
        total += rewards
        responses += infos["response"]
    assert terminated.all()
    np.testing.assert_allclose(total, -responses, rtol=1e-4)


def test_a_seed_repeats_all_rows():
    runs = []
    for seed in (5, 5, 6):
        envs = make_fleet_vector(3, "burst", jobs=5)
        observation, _ = envs.reset(seed=seed)
        runs.append([observation, *(envs.step(np.array([0, 1, 2])) for _ in range(8))])
    assert data_equivalence(runs[0], runs[1], exact=True)
    assert not data_equivalence(runs[0], runs[2])
    assert len(np.unique(runs[0][0]["job"][:, 0])) == 3  # rows meet jobs of their own


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make_fleet_vector(0)
    envs = make_fleet_vector(2, padded, servers=3, jobs=1)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        envs.step(np.array([0, 0]))
    envs.reset(seed=0)
    for actions in (np.array([0, 3]), np.array([0]), np.array([0.5, 0.5])):
        with pytest.raises(ValueError, match="not in the action space"):
            envs.step(actions)
    with pytest.raises(ValueError, match=r"actions \[2\] of the environments \[1\] are forbidden"):
        envs.step(np.array([0, 2]))
    envs.step(np.array([0, 1]))
    envs.step(np.array([0, 2]))  # both rows begin anew and their actions are ignored


# --- pictures --------------------------------------------------------------------------------------------------------


def bar(frame: np.ndarray, row: int, colour: str) -> int:
    """How many pixels of a colour the middle of a row of servers has; row -1 is the job at the door."""
    y = picture._HEAD + (row * picture._TALLEST) + picture._TALLEST // 2
    line = frame[y, picture._LEFT : -picture._RIGHT]
    return int((line == np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])).all(-1).sum())


def test_a_picture_shows_how_long_each_job_still_takes():
    env = gymnasium.make(
        "reverie/Fleet-v0", speeds=[1.0, 4.0], sizes="fixed:8", arrivals="regular:1", jobs=9, render_mode="rgb_array"
    )
    env.reset(seed=0)
    empty = env.render()
    assert (empty.shape, empty.dtype) == ((picture._HEAD + 2 * picture._TALLEST + picture._FOOT, 640, 3), np.uint8)
    assert not any(bar(empty, row, c) for row in (0, 1) for c in (colours.BLUE, colours.SKY, colours.VERMILLION))
    for server in (0, 0, 1):  # 1 is the fastest, and on top
        env.step(server)
    frame = env.render()
    # Jobs came at 1, 2 and 3. At 4 the first has 5 of its 8 to go, the second waits, the last has 1 of 2 to go.
    pixel = (640 - picture._LEFT - picture._RIGHT) / picture.reach(np.array([8.0, 15.0, 2.0]))
    seen = [bar(frame, row, c) for row, c in ((1, colours.BLUE), (1, colours.SKY), (0, colours.VERMILLION))]
    assert seen == pytest.approx([5 * pixel, 8 * pixel, 1 * pixel], abs=2)
    assert bar(frame, -1, colours.VERMILLION) == pytest.approx(8 * pixel, abs=2)
    for _ in range(6):
        env.step(1)
    assert bar(env.render(), -1, colours.VERMILLION) == 0  # nobody comes after the last job


def test_a_vector_of_fleets_has_a_picture_of_each_and_forgets_what_ended():
    envs = gymnasium.make_vec("reverie/Fleet-v0", num_envs=2, jobs=2, family="hard", render_mode="rgb_array")
    opening = [envs.reset(seed=0), envs.render()][1]
    assert not np.array_equal(*opening)
    for _ in range(2):
        envs.step(np.array([9, 0]))
    for frame, row in zip(envs.render(), (0, 9), strict=True):  # Park's servers are in order of speed
        assert bar(frame, row, colours.BLUE) + bar(frame, row, colours.VERMILLION) > 0
    envs.step(np.array([0, 0]))
    for frame in envs.render():
        assert not any(bar(frame, row, c) for row in range(10) for c in (colours.BLUE, colours.VERMILLION))


def test_parks_picture_foresees_when_jobs_end(monkeypatch):
    scenes = []
    env = gymnasium.make("reverie/ParkLoadBalance-v0", num_jobs=40, render_mode="rgb_array")
    monkeypatch.setattr(picture, "draw", lambda scene: scenes.append(scene) or np.zeros((1, 1, 3), np.uint8))
    env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(40):
        info = env.step(env.action_space.sample())[4]
        env.render()
    for j, seen in enumerate(scenes, 1):
        np.testing.assert_array_equal(seen.arrival + seen.response, info["jobs"]["finish"][:j])
    assert [seen.door is None for seen in scenes] == [False] * 39 + [True]


def test_a_mode_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'human': there is rgb_array, which"):
        gymnasium.make("reverie/Fleet-v0", render_mode="human")
    with pytest.raises(ValueError, match="this world has no pictures"):
        ReverieEnv(Reaching(), scales, render_mode="rgb_array")
    env = make_fleet("hard", render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="before render"):
        env.render()
    quiet = make_fleet("hard")
    quiet.reset(seed=0)
    with pytest.warns(UserWarning, match="without a mode"):
        assert quiet.render() is None


# --- masks and processes ---------------------------------------------------------------------------------------------


def three_of_five() -> Task:
    return fleet_task(constant_speeds([1.0, 2.0, 4.0]), workloads.poisson(1.0, workloads.exponential(1.0)), 5)


def test_masks_are_given_the_usual_ways():
    env = ReverieEnv(FleetEnv(servers=5, jobs=4), lambda rng: three_of_five())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.action_masks()
    observation, info = env.reset(seed=0)
    for told in (observation["mask"], info["action_mask"], env.action_masks()):
        assert told.tolist() == [1, 1, 1, 0, 0]
    assert env.step(env.action_space.sample(info["action_mask"]))[4]["action_mask"].tolist() == [1, 1, 1, 0, 0]
    envs = ReverieVectorEnv(FleetEnv(servers=5, jobs=4), lambda rng: three_of_five(), 2)
    _, infos = envs.reset(seed=0)
    assert infos["action_mask"].tolist() == envs.action_masks().tolist() == [[1, 1, 1, 0, 0]] * 2


@pytest.mark.parametrize("before", ["make().reset(seed=0)", "import jax; jax.numpy.ones(2)"])
def test_a_process_that_was_forked_says_so_instead_of_waiting_for_ever(before):
    """In a process of its own: forking this one would not be safe."""
    script = f"""
import warnings; warnings.simplefilter("ignore")
import gymnasium, reverie.envs.gymnasium
make = lambda: gymnasium.make("reverie/Fleet-v0", family="easy", jobs=2, disable_env_checker=True)
{before}
envs = gymnasium.vector.AsyncVectorEnv([make], context="fork", shared_memory=False)
try:
    envs.reset(seed=0)
except RuntimeError as error:
    print("said:", "context='spawn'" in str(error))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert "said: True" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("family", "reward", "foreseen"), [("shared", "elapsed", False), ("workers", "admission", True)]
)
def test_servers_that_share_are_stepped_as_others_and_not_drawn(family, reward, foreseen):
    """What a job will take is known at dispatch where jobs do not slow each other down."""
    env = gymnasium.make(
        "reverie/Fleet-v0", family=family, view="counts", reward=reward, jobs=5, render_mode="rgb_array"
    )
    env.reset(seed=0)
    for _ in range(5):
        _, reward, terminated, _, told = env.step(0)
        assert np.isfinite(told["response"]) == foreseen
    assert terminated
    assert reward < 0
    with pytest.raises(ValueError, match="not known where servers serve several at once"):
        env.render()
