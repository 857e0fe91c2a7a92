"""Task families: what they promise of loads, speeds and changes, and that their tasks stack."""

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.commands.worlds import World
from reverie.envs.core import ArraySpec, Suite, stack_tasks, suite
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import (
    LATENCY_FEATURES,
    Fleet,
    FleetEnv,
    Task,
    constant_speeds,
    fleet_task,
    stack_fleets,
)
from reverie.envs.fleet.families import (
    FAMILIES,
    PARK_MEAN_SIZE,
    PARK_SPEEDS,
    draw_tasks,
    family,
    levels,
    measured,
    trace_unit,
    traced,
    windows,
)
from reverie.envs.fleet.load import capacity, offered_load, with_load
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.suites import VIEWS, fleet_suite, suite_fleets
from reverie.envs.fleet.traces import Trace
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

DRAWS = 60
UNIT = workloads.exponential(1.0)


Drawn = dict[str, list[Task]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return {name: [draw(np.random.default_rng(seed)) for seed in range(DRAWS)] for name, draw in FAMILIES.items()}


@pytest.fixture(scope="module")
def seen(drawn: Drawn) -> Drawn:
    """The same tasks in NumPy, which is quicker to look at."""
    return jax.device_get(drawn)


def loads(task: Task) -> np.ndarray:
    """The offered load in each segment of the arrival rate, on the speeds of the long run."""
    rate = task.workload.rate
    return offered_load(task) * rate.value.astype(float) / schedules.mean(Schedule(*rate))


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_of_a_family_stack_and_depend_on_the_generator_alone(name, drawn):
    batch = stack_tasks(drawn[name])
    assert batch.mask.shape == (DRAWS, 8 if name == "llm" else 10)
    assert batch.mask.all()
    for first, again in zip(
        jax.tree.leaves(drawn[name][0]), jax.tree.leaves(family(name)(np.random.default_rng(0))), strict=True
    ):
        np.testing.assert_array_equal(first, again)
    if name not in ("easy", "medium", "hard", "overload", "mixed"):
        firsts = {tuple(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(task)])) for task in drawn[name]}
        assert len(firsts) > DRAWS / 2  # a day has 48 beginnings, the others never repeat


@pytest.mark.parametrize(("name", "load"), [("easy", 0.455), ("medium", 0.667), ("hard", 0.909), ("overload", 1.111)])
def test_levels_of_difficulty_have_their_loads(name, load, seen):
    task = seen[name][0]
    assert offered_load(task) == pytest.approx(load, abs=1e-3)
    np.testing.assert_allclose(task.speed.value[:, 0], PARK_SPEEDS)
    assert PARK_SPEEDS.tolist() == pytest.approx(np.arange(15, 106, 10) / 100)
    assert workloads.moments(task.workload.sizes)[0] == pytest.approx(PARK_MEAN_SIZE)


def test_calm_jobs_are_as_large_as_parks_and_vary_less(seen):
    for task in seen["calm"][:5]:
        mean, square = workloads.moments(task.workload.sizes)
        assert mean == pytest.approx(PARK_MEAN_SIZE)
        assert square / mean**2 - 1 == pytest.approx(1.0, rel=1e-4)
        assert set(np.round(loads(task), 3)) <= {0.455, 0.667, 0.909, 1.111}


def test_shifting_speeds_sum_to_the_same_at_any_time_and_half_of_the_tasks_wander(seen):
    wandering = []
    for task in seen["shifting"]:
        value = task.speed.value  # [N, P]
        np.testing.assert_allclose(value.sum(0), PARK_SPEEDS.sum(), rtol=1e-5)
        assert value.min() > 0
        assert 0.4 <= offered_load(task) <= 0.95
        in_order = np.sort(value, 0)
        wandering.append(not np.allclose(in_order, in_order[:, :1], rtol=1e-4))  # otherwise servers change places
    assert 0.2 < np.mean(wandering) < 0.8


def test_the_mixture_has_each_of_three_levels_a_third_of_the_time(seen):
    found = [round(offered_load(task), 3) for task in seen["mixed"]]
    assert sorted(set(found)) == [0.455, 0.667, 0.909]
    assert min(found.count(load) for load in set(found)) > DRAWS / 5


def test_drift_permutes_the_speeds_and_half_of_the_time_a_server_fails_and_recovers(seen):
    failures, numbers = 0, set()
    for task in seen["drift"]:
        start, speeds = task.speed.start[0], task.speed.value
        assert (task.speed.start == start).all()
        assert start[-1] < 75_000
        lasts = np.append(np.diff(start) > 0, True)
        down = (speeds == 0).any(0) & lasts
        failures += down.any()
        assert not down[-1]
        if down.any():
            assert (speeds[:, down] == 0).sum(0).tolist() == [1] * down.sum()
            assert len(np.unique(speeds[:, down].argmin(0))) == 1  # the same server all the time
            assert np.diff(np.append(start, np.inf))[down].sum() == pytest.approx(5_000, rel=1e-4)
        np.testing.assert_allclose(np.sort(speeds[:, ~down], 0), np.repeat(PARK_SPEEDS[:, None], (~down).sum(), 1))
        orders = {tuple(column) for column in speeds[:, ~down & lasts].T}
        numbers.add(len(orders) - 1)
        assert offered_load(task) == pytest.approx(2 / 3, rel=1e-3)
    assert 15 < failures < 45
    assert numbers <= {2, 3, 4} | {1}  # a change may fall into the time of the failure altogether
    assert {2, 3, 4} <= numbers


def test_a_rule_that_knows_the_speeds_copes_with_drift_and_one_that_trusts_the_first_does_not(drawn):
    tasks = stack_tasks(drawn["drift"])

    def mean_response(rule) -> float:
        env = FleetEnv(view=rule.view)
        play = jax.jit(
            lambda tasks, key: rollout(env, rule, tasks, key, 1000, lambda state, *_: state.record.response)[1].mean(0)
        )
        return float(jnp.median(play(tasks, jax.random.key(0))))

    # To any rule that was told a fixed list of speeds, the truth is a permutation of it most of the time.
    rule = rules(PARK_SPEEDS, [PARK_MEAN_SIZE], ["shortest-wait", "sed"])
    knows, trusts = mean_response(rule["shortest-wait"]), mean_response(rule["sed"])
    assert knows < 1_000
    assert trusts > 1.3 * knows


def test_bursts_exceed_the_capacity_and_their_mean_does_not(seen):
    mean = np.mean([offered_load(task) for task in seen["burst"]])
    assert mean == pytest.approx(0.694, abs=0.03)
    for task in seen["burst"]:
        assert sorted(set(np.round(loads(task), 3))) == [0.417, 1.25]
        assert task.workload.rate.period > 72_000 * 1.2  # a path is longer than an episode of 1,000 jobs
    stays = [np.diff(task.workload.rate.start) * task.workload.rate.value[:-1] for task in seen["burst"]]  # in jobs
    in_burst = np.concatenate([stay[loads(task)[:-1] > 1] for stay, task in zip(stays, seen["burst"], strict=True)])
    assert in_burst.mean() == pytest.approx(50, rel=0.1)


def test_days_begin_at_every_hour(seen):
    for task in seen["diurnal"]:
        assert offered_load(task) == pytest.approx(2 / 3, rel=1e-3)
        assert loads(task).min() == pytest.approx(1 / 3, abs=0.01)
        assert loads(task).max() == pytest.approx(1, abs=0.01)
    assert len({float(task.workload.rate.value[0]) for task in seen["diurnal"]}) > 15


def test_the_continuous_family_covers_its_ranges(seen):
    bursty = 0
    for task in seen["continuous"]:
        assert task.speed.value.sum() == pytest.approx(6, rel=1e-5)
        assert 1 <= task.speed.value.max() / task.speed.value.min() <= 10
        assert workloads.moments(task.workload.sizes)[0] == pytest.approx(300, rel=1e-4)
        assert 1.4 <= 1 / task.workload.sizes.spread <= 2.5
        calm, peak = loads(task).min(), loads(task).max()
        mean = (2 * calm + peak) / 3  # a third of the time at the peak
        assert 0.3 - 1e-3 <= mean <= 1 + 1e-3
        assert peak / calm == pytest.approx(1) or 2 <= peak / calm <= 4
        bursty += peak > 1.5 * calm
    assert 15 < bursty < 45


def test_levels_change_within_the_episode_and_never_to_themselves(seen):
    for task in seen["levels"]:
        level = np.round(loads(task), 3)
        assert set(level) <= {0.455, 0.667, 0.909, 1.111}
        assert (np.diff(level) != 0).all()
        start, rate = task.workload.rate.start, task.workload.rate.value
        jobs = np.diff(start) * rate[:-1]  # expected in each stretch but the last
        assert (jobs >= 50 - 1e-2).all()
        assert jobs.sum() <= 950 + 1e-2
    assert len({float(task.workload.rate.value[0]) for task in seen["levels"]}) == 4
    task = levels((100.0, 50.0), jobs=200, changes=1)(np.random.default_rng(0))
    assert task.workload.rate.value.shape == (2,)
    for arguments in (((100.0,), 200, 1), ((100.0, 50.0), 200, 0), ((100.0, 50.0), 0, 1)):
        with pytest.raises(ValueError, match="two intervals, one change and one job at least"):
            levels(*arguments)


def trace(jobs: int = 50) -> Trace:
    rng = np.random.default_rng(0)
    return Trace("test", np.append(0, np.cumsum(rng.exponential(0.2, jobs - 1))), rng.exponential(3.0, jobs))


def test_windows_of_a_trace_keep_order_and_proportions():
    recording, speeds, load = trace(), np.array([1.0, 3.0]), 0.8
    draw = traced(recording, load, 20, Fleet.constant(speeds))
    gaps, beginnings = np.diff(recording.arrival, prepend=0), set()
    for seed in range(40):
        task = draw(np.random.default_rng(seed))
        np.testing.assert_allclose(task.speed.value[:, 0], speeds)
        work, gap = np.asarray(task.workload.recording.size), np.asarray(task.workload.recording.gap)
        first = int(np.argmin(np.abs(recording.work * trace_unit(recording) - work[0])))
        beginnings.add(first)
        np.testing.assert_allclose(work, recording.work[first : first + 20] * trace_unit(recording), rtol=1e-5)
        stretch = gap[1:].sum() / gaps[first + 1 : first + 20].sum()
        np.testing.assert_allclose(gap, gaps[first : first + 20] * stretch, rtol=1e-4)
    assert len(beginnings) > 15
    disjoint = np.concatenate(
        [task.workload.recording.size for task in windows(recording, load, 20, Fleet.constant(speeds))]
    )
    np.testing.assert_allclose(disjoint, recording.work[:40] * trace_unit(recording), rtol=1e-5)  # each job once
    whole = traced(recording, load, 50, Fleet.constant(speeds))(np.random.default_rng(0))
    assert offered_load(whole) == pytest.approx(load)
    assert float(whole.workload.recording.size.mean()) == pytest.approx(PARK_MEAN_SIZE)


def test_a_window_of_a_trace_can_have_the_load_for_itself():
    recording, speeds = trace(), np.array([1.0, 3.0])
    slow_start = replace(recording, arrival=recording.arrival + np.minimum(np.arange(50), 25) * 100)
    for seed in range(20):
        task = traced(slow_start, 0.8, 20, Fleet.constant(speeds), per_window=True)(np.random.default_rng(seed))
        work, gap = np.asarray(task.workload.recording.size), np.asarray(task.workload.recording.gap)
        assert work.sum() / (gap[1:].sum() * speeds.sum()) == pytest.approx(0.8, rel=1e-5)
    with pytest.raises(ValueError, match="choose one"):
        traced(slow_start, "recorded", 20, Fleet.constant(speeds), per_window=True)


def test_a_trace_as_recorded_keeps_its_clock():
    recording, speeds = trace(), np.array([1.0, 3.0])
    task = traced(recording, "recorded", 50, Fleet.constant(speeds))(np.random.default_rng(0))
    gap = np.asarray(task.workload.recording.gap) / trace_unit(recording)
    np.testing.assert_allclose(gap, np.diff(recording.arrival, prepend=0), rtol=1e-4)
    np.testing.assert_allclose(task.workload.recording.size / trace_unit(recording), recording.work, rtol=1e-5)


def test_responses_to_a_trace_are_those_of_its_own_units():
    recording, load, jobs = trace(), 0.8, 50
    task = traced(recording, load, jobs, Fleet.constant([1.0, 3.0]))(np.random.default_rng(0))
    gaps = np.diff(recording.arrival, prepend=0) * recording.work.sum() / (load * 4) / recording.span
    own = fleet_task(constant_speeds([1.0, 3.0]), workloads.recorded(gaps, recording.work))
    rule = rules([1.0, 3.0], [1.0], ["least-completion"])["least-completion"]
    response = [
        np.asarray(rollout(FleetEnv(2, jobs), rule, batch, jax.random.key(0), jobs, lambda s, *_: s.record.response)[1])
        for batch in (stack_tasks([task]), stack_tasks([own]))
    ]
    np.testing.assert_allclose(response[0] / trace_unit(recording), response[1], rtol=1e-4)


def test_impossible_traces_are_refused():
    for load in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="load is"):
            traced(trace(), load, 10)
    for jobs in (0, 51):
        with pytest.raises(ValueError, match=rf"jobs must lie in \[1, 50\], the length of test; got {jobs}"):
            traced(trace(), 0.5, jobs)
    with pytest.raises(ValueError, match="all 3 jobs arrive at the same time"):
        traced(Trace("batch", np.zeros(3), np.ones(3)), 0.5, 2)


def test_measured_fleets_have_speeds_of_machines(shared_data):
    folder = shared_data / "traces" / "azure_vm_noise_2024"
    draw = measured(next(folder.glob("PostgreSQL*short*B8ms*")), load=0.8)
    tasks = [draw(np.random.default_rng(seed)) for seed in range(5)]
    for task in tasks:
        assert task.speed.value.shape == (10, 1)
        assert float(task.speed.value.sum()) == pytest.approx(6, rel=1e-5)
        assert offered_load(task) == pytest.approx(0.8, rel=1e-4)
    spread = np.std([np.asarray(task.speed.value) for task in tasks]) / 0.6
    assert 0.1 < spread < 0.35  # 0.22 over all machines of the file
    with pytest.raises(ValueError, match="offered load must be a positive number, got -1"):
        measured(next(folder.glob("PostgreSQL*short*B8ms*")), load=-1.0)


def test_measured_fleets_drift_as_machines_do(shared_data):
    draw = measured(next((shared_data / "traces" / "azure_vm_noise_2024").glob("PostgreSQL*long*B8ms*")), segments=8)
    tasks = [draw(np.random.default_rng(seed)) for seed in range(3)]
    assert stack_tasks(tasks).speed.value.shape == (3, 10, 8)
    for task in tasks:
        assert (np.asarray(task.speed.value) > 0).all()
        assert (np.asarray(task.speed.value).std(-1) > 0).all()
        long_run = [schedules.mean(Schedule(*row)) for row in zip(*task.speed, strict=True)]
        assert sum(long_run) == pytest.approx(6, rel=1e-4)
        assert float(task.speed.period.mean()) == pytest.approx(1000 * 75, rel=1e-2)  # an episode at load 0.667


@pytest.mark.parametrize("name", ["hard", "burst", "diurnal", "levels"])
def test_another_load_is_the_same_stream_on_another_clock(name):
    task = family(name)(np.random.default_rng(0))
    load = offered_load(task, workloads.span(task.workload, 1000))
    faster = with_load(task, 2 * load, jobs=1000)
    assert offered_load(faster, workloads.span(faster.workload, 1000)) == pytest.approx(2 * load, rel=1e-5)

    @jax.jit
    def jobs(task: Task):
        def following(clock, index):
            job = workloads.draw_job(task.workload, jax.random.key(0), index, clock)
            return schedules.later(clock, job.gap), job

        return jax.lax.scan(following, schedules.instant(0.0), jnp.arange(300))[1]

    one, other = jobs(task), jobs(faster)
    np.testing.assert_array_equal(one.size, other.size)
    np.testing.assert_allclose(one.gap, 2 * other.gap, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["levels", "calm", "drift", "shifting"])
def test_another_load_is_the_mean_over_the_episode_also_where_the_last_level_is_not(name):
    """Work that is to be expected over what the fleet can do until the last job comes, by sums of small steps."""
    for seed in range(4):
        task = with_load(family(name)(np.random.default_rng(seed)), 0.8, jobs=1000)
        grid = np.arange(0.0, 200_000.0, 4.0)

        def on_grid(start, value, grid=grid):
            return np.asarray(value, float)[np.searchsorted(np.asarray(start), grid, side="right") - 1]

        rate = on_grid(task.workload.rate.start, task.workload.rate.value)
        until = np.searchsorted(np.cumsum(rate * 4.0), 1000.0)
        work = rate[:until].sum() * workloads.moments(task.workload.sizes)[0]
        speed = sum(on_grid(*row)[:until].sum() for row in zip(task.speed.start, task.speed.value, strict=True))
        assert work / speed == pytest.approx(0.8, rel=2e-3)


def test_families_of_unlike_shapes_are_one_suite_and_each_task_plays_as_alone():
    recording = traced(trace(), 0.5, 20)(np.random.default_rng(0))
    named = {name: [family(name)(np.random.default_rng(seed)) for seed in range(2)] for name in ("hard", "drift")}
    named |= {"trace": [recording], "small": [fleet_task(constant_speeds([1.0]), workloads.poisson(9.0, UNIT))]}
    tasks = suite(named, stack_fleets)
    world = Suite(FleetEnv(tasks.task.mask.shape[-1], 20), tuple(named))
    assert tasks.index.tolist() == [0, 0, 1, 1, 2, 3]
    assert world.observation_spec["task"] == ArraySpec((), "task", 4)
    rule = rules([1.0] * 10, [1.0], ["shortest-wait"])["shortest-wait"]

    def keep(state, timestep, action):
        return timestep.observation["task"], state.record.response

    index, response = rollout(world, rule, tasks, jax.random.key(3), 20, keep)[1]
    assert (np.asarray(index) == np.asarray(tasks.index)).all()
    alone = rollout(world.world, rule, tasks.task, jax.random.key(3), 20, lambda state, *_: state.record.response)[1]
    np.testing.assert_array_equal(response, alone)
    assert np.isfinite(np.asarray(response)).all()


def test_the_suite_of_fleets_has_16_tasks_of_one_load_and_unlike_fleets():
    world, tasks = fleet_suite("fleets", suite_fleets("fleets", draws=2), jobs=30, view="counts")
    assert len(world.names) == len(set(world.names)) == 16
    assert np.bincount(tasks.index).tolist() == [2] * 16
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], tasks.task) for i in range(32)]
    for i, task in enumerate(each):
        assert capacity(task) == pytest.approx(6.0, rel=1e-4)
        drawn = "bursty" in world.names[i // 2]  # its mean hangs on how long bursts happened to last
        assert offered_load(task) == pytest.approx(0.8, rel=0.25 if drawn else 1e-3), world.names[i // 2]
    assert sorted({int(task.mask.sum()) for task in each}) == [4, 6, 8, 10]
    assert world.observation_spec["task"] == ArraySpec((), "task", 16)
    rule = rules([1.0] * 10, [1.0], ["random"])["random"]
    keep = lambda state, timestep, action: (timestep.observation["task"], state.record.response)  # noqa: E731
    index, response = rollout(world, rule, tasks, jax.random.key(3), 30, keep)[1]
    assert (np.asarray(index) == np.asarray(tasks.index)).all()
    assert (np.asarray(response) > 0).all()


def test_tasks_of_unlike_views_are_one_suite_and_each_is_seen_as_alone():
    """Room that a view does not need is 0, and what the others show changes nothing."""
    world, tasks = fleet_suite("schemas", suite_fleets("schemas"), jobs=30, view="full")
    assert world.observation_spec["servers"] == ArraySpec((10, len(LATENCY_FEATURES)), "servers")
    assert world.observation_spec["job"] == ArraySpec((2,))
    rule = rules([1.0] * 10, [1.0], ["random"])["random"]
    keep = lambda state, timestep, action: (timestep, state.record.response)  # noqa: E731
    seen, response = rollout(world, rule, tasks, jax.random.key(3), 30, keep)[1]
    for number, view in enumerate(VIEWS["schemas"]):
        alone = FleetEnv(10, 30, view)
        shown, same = rollout(alone, rule, tasks.task.task, jax.random.key(3), 30, keep)[1]
        np.testing.assert_array_equal(response[:, number], same[:, number])
        for name, value in shown.observation.items():
            wide, narrow = seen.observation[name][:, number], value[:, number]
            np.testing.assert_array_equal(wide[..., : narrow.shape[-1]], narrow)
            assert not wide[..., narrow.shape[-1] :].any()
        np.testing.assert_array_equal(seen.reward[:, number], shown.reward[:, number])


def test_another_load_for_recordings_and_changing_sizes():
    task = traced(trace(), 0.5, 20)(np.random.default_rng(0))
    faster = with_load(task, 0.25)
    assert offered_load(faster) == pytest.approx(0.25)
    ratio = np.asarray(faster.workload.recording.gap[1:] / task.workload.recording.gap[1:])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    scale = schedules.schedule([0, 10.0], [1.0, 3.0], period=20.0)
    growing = fleet_task(
        constant_speeds([1.0]), workloads.regular(4.0, workloads.deterministic(1.0))._replace(scale=scale)
    )
    assert offered_load(growing) == pytest.approx(0.5)
    slower = with_load(growing, 0.25)
    assert float(slower.workload.scale.period) == 40.0  # the jobs that were large are large again


@pytest.mark.parametrize("load", [0.0, -0.5, np.inf, np.nan])
def test_impossible_loads_are_refused(load):
    with pytest.raises(ValueError, match="offered load must be a positive number"):
        with_load(family("hard")(np.random.default_rng(0)), load)


def test_a_task_without_a_mean_load_cannot_be_scaled():
    heavy = fleet_task(constant_speeds([1.0]), workloads.poisson(1.0, workloads.pareto(1.0, 1.0)))
    batch = fleet_task(constant_speeds([1.0]), workloads.recorded([0.0, 0.0], [1.0, 1.0]))
    for task in (heavy, batch):
        with pytest.raises(ValueError, match="offered load must be a positive number, got inf"):
            with_load(task, 0.5)


def test_a_longer_pool_begins_with_a_shorter_one():
    short, long = draw_tasks(family("levels"), 2, seed=7), draw_tasks(family("levels"), 4, seed=7)
    other = draw_tasks(family("levels"), 2, seed=8)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b[:2]).all()), short, long))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), short, other))


def test_an_unknown_family_is_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown task family 'brust': did you mean 'burst'\? the known ones are easy, "
    ):
        family("brust")
    with pytest.raises(ValueError, match="unknown task family 'zzz': the known ones are easy, "):
        family("zzz")


def test_help_names_every_family():
    said = inspect.getsource(World)
    assert all(f" {name}," in said or f" {name}." in said or f" {name} (" in said for name in FAMILIES)
