"""Park's environment: golden trajectories with tolerance 0, identities, the Gymnasium contract, bad arguments."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from reverie.envs.fleet.park import PARK_SERVICE_RATES, ParkLoadBalance

GOLDEN = sorted((Path(__file__).parents[2] / "shared" / "data" / "park").glob("*.json"))


def play(env: ParkLoadBalance, actions, seed: int | None = None):
    """Run one episode; return its observations, rewards, ends, clocks and last info."""
    observation, info = env.reset(seed=seed)
    observations, rewards, ends, clocks = [observation], [], [], [info["clock"]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert truncated is False
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated)
        clocks.append(info["clock"])
    return observations, rewards, ends, clocks, info


@pytest.mark.skipif(not GOLDEN, reason="the golden trajectories of Park are not beside the checkout")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_recorded_trajectory_of_park_is_reproduced_with_tolerance_zero(path):
    golden = json.loads(path.read_text())
    params = golden["params"]
    env = ParkLoadBalance(
        num_jobs=params["num_stream_jobs"],
        job_interval=params["job_interval"],
        job_size_pareto_shape=params["job_size_pareto_shape"],
        job_size_pareto_scale=params["job_size_pareto_scale"],
        observation_cap=params["obs_high"],
        service_rates=params["service_rates"],
    )
    observations, rewards, ends, clocks, info = play(env, golden["actions"], seed=golden["seed"])
    assert np.array_equal(np.stack(observations), np.array(golden["observations"], np.float64))
    assert rewards == golden["rewards"]
    assert ends == golden["dones"]
    assert clocks == golden["curr_times"]
    assert sum(rewards) == golden["total_reward"]
    jobs = env.jobs()
    assigned = len(golden["actions"])
    assert jobs["size"].tolist() == golden["job_sizes"][:assigned]
    assert jobs["arrival"].tolist() == golden["arrival_times"][:assigned]
    assert jobs["server"].tolist() == golden["actions"]
    for job, (start, finish) in enumerate(
        zip(golden["job_start_times"][:assigned], golden["job_finish_times"][:assigned], strict=True)
    ):
        if finish is None:  # the recording stops before this job is done
            assert not jobs["finish"][job] < clocks[-1]
        else:
            assert (jobs["start"][job], jobs["finish"][job]) == (start, finish)
    if golden["completed"]:
        assert {name: values.tolist() for name, values in info["jobs"].items()} == {
            name: values.tolist() for name, values in jobs.items()
        }
    else:
        assert "jobs" not in info


class KnownJobs:
    """Stands in for the random stream: deals the given sizes (at scale 1) and gaps."""

    def __init__(self, sizes, gaps):
        self.sizes, self.gaps = iter(sizes), iter(gaps)

    def pareto(self, shape):
        return next(self.sizes) - 1.0

    def exponential(self, scale):
        return next(self.gaps)


def test_work_waiting_is_added_to_time_in_service():
    env = ParkLoadBalance(num_jobs=3, job_size_pareto_scale=1.0, service_rates=(1.0, 0.5))
    env._random = KnownJobs(sizes=[11.4, 12.0, 10.0], gaps=[3.9, 4.0, 6.2])
    observations, rewards, ends, clocks, info = play(env, [0, 0, 1])
    assert clocks == [3.0, 7.0, 13.0, 33.0]
    assert [row.tolist() for row in observations] == [
        [0.0, 0.0, 11.0],  # clock 3: job 0 arrives
        [7.0, 0.0, 12.0],  # clock 7: job 0 needs 14 - 7 time
        [13.0, 0.0, 10.0],  # clock 13: 12 work waits behind 1 time
        [0.0, 0.0, 0.0],
    ]
    assert rewards == [-4.0, -12.0, -(1 * 3 + 12 * 2 + 7 * 1)]  # 2 wait or run to 14 and 26, then 1 to 33
    assert ends == [False, False, True]
    assert info["jobs"]["start"].tolist() == [3.0, 14.0, 13.0]
    assert info["jobs"]["finish"].tolist() == [14.0, 26.0, 33.0]


def test_a_server_whose_job_ends_as_another_arrives_is_free_before_its_completion_is_due():
    env = ParkLoadBalance(num_jobs=5, job_size_pareto_scale=1.0, service_rates=(0.5,))
    env._random = KnownJobs(sizes=[1, 2, 3, 4, 5], gaps=[0, 0, 1, 5, 6])
    observations, rewards, _, clocks, info = play(env, [0] * 5)
    assert clocks == [0.0, 0.0, 1.0, 6.0, 12.0, 30.0]
    assert observations[3].tolist() == [3.0, 4.0]  # job 1 began after this arrival was entered: it ends after it
    assert observations[4].tolist() == [8.0, 5.0]  # assigning job 3 began job 2 at once, so it ends before job 4 comes
    assert rewards == [0.0, -2.0, -11.0, -12.0, -26.0]
    assert info["jobs"]["start"].tolist() == [0.0, 2.0, 6.0, 12.0, 20.0]


@pytest.mark.parametrize("scale", [100.0, 1.0], ids=["default", "many ties"])
def test_rewards_sum_to_minus_the_response_times(scale):
    env = ParkLoadBalance(num_jobs=300, job_interval=55 * scale / 100, job_size_pareto_scale=scale)
    actions = np.random.default_rng(0).integers(10, size=300)
    _, rewards, ends, clocks, info = play(env, actions, seed=3)
    jobs = info["jobs"]
    assert sum(rewards) == -np.sum(jobs["finish"] - jobs["arrival"])
    assert ends == [False] * 299 + [True]
    assert clocks[-1] == jobs["finish"].max()
    assert clocks[:-1] == jobs["arrival"].tolist()


def test_jobs_follow_the_legacy_stream_whatever_the_actions():
    # Restated from the facts on Park: size = floor(scale (X + 1)), gap = floor(E), drawn in turn.
    stream = np.random.RandomState(17)
    expected = [(np.floor((stream.pareto(1.5) + 1) * 100), np.floor(stream.exponential(55))) for _ in range(50)]
    for actions in ([0] * 50, [k % 10 for k in range(50)]):
        *_, info = play(ParkLoadBalance(num_jobs=50), actions, seed=17)
        assert info["jobs"]["size"].tolist() == [size for size, _ in expected]
        assert info["jobs"]["arrival"].tolist() == np.cumsum([gap for _, gap in expected]).tolist()


def test_reset_without_a_seed_continues_the_stream_which_starts_at_42_with_one_job_drawn():
    stream = np.random.RandomState(42)
    drawn = [np.floor((stream.pareto(1.5) + 1) * 100 + 0 * stream.exponential(55)) for _ in range(7)]
    env = ParkLoadBalance(num_jobs=3)
    sizes = [play(env, [0, 1, 2])[-1]["jobs"]["size"] for _ in range(2)]
    assert np.concatenate(sizes).tolist() == drawn[1:]


def test_an_episode_of_one_job_is_one_step():
    env = ParkLoadBalance(num_jobs=1, service_rates=[2.0])
    observations, (reward,), ends, _, info = play(env, [0], seed=0)
    assert ends == [True]
    assert reward == -np.floor(info["jobs"]["size"][0] / 2.0)
    assert observations[-1].tolist() == [0.0, 0.0]


def test_gymnasium_accepts_the_environment():
    spec = gymnasium.envs.registration.EnvSpec(id="reverie/ParkLoadBalance-v0", entry_point=ParkLoadBalance)
    env = gymnasium.make(spec, num_jobs=20, service_rates=[0.5, 1.0, 2.0])
    check_env(env.unwrapped)
    assert env.observation_space == gymnasium.spaces.Box(0.0, 500_000.0, (4,), np.float64)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    assert ParkLoadBalance().action_space.n == len(PARK_SERVICE_RATES) == 10


def test_observations_and_infos_are_not_reused():
    env = ParkLoadBalance(num_jobs=2)
    observation, _ = env.reset(seed=1)
    kept = observation.copy()
    env.step(0)
    assert np.array_equal(observation, kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_jobs": 0}, "num_jobs is 0"),
        ({"num_jobs": np.array(2.5)}, "num_jobs is array"),
        ({"job_interval": 0}, "job_interval is 0"),
        ({"job_interval": float("nan")}, "job_interval is nan"),
        ({"job_size_pareto_shape": -1.5}, "job_size_pareto_shape is -1.5"),
        ({"job_size_pareto_scale": 0.0}, "job_size_pareto_scale is 0.0"),
        ({"observation_cap": float("inf")}, "observation_cap is inf"),
        ({"service_rates": [1.0, 0.0]}, r"service_rates\[1\] is 0.0"),
        ({"service_rates": [-1.0, 1.0]}, r"service_rates\[0\] is -1.0"),
        ({"service_rates": []}, "service_rates is empty"),
        ({"job_size_pareto_shape": 0.05}, "raise the shape"),
    ],
)
def test_an_impossible_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParkLoadBalance(**arguments)


@pytest.mark.parametrize("action", [10, -1, 0.0, None, np.array([1])])
def test_an_action_that_is_no_server_is_refused_and_changes_nothing(action):
    env = ParkLoadBalance(num_jobs=2)
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError), match=r"index of a server|Type-check"):
        env.step(action)
    assert env.jobs()["size"].size == 0


def test_a_step_after_the_end_and_a_seed_out_of_range_are_refused():
    env = ParkLoadBalance(num_jobs=1)
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(0)
    with pytest.raises(ValueError, match="seeds from 0"):
        env.reset(seed=2**32)
