"""The fleet against queueing theory, the exact optimum, and an event-driven simulation in float64 written here."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from reverie.envs.core import TimeStep, batch_step, stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, FleetState, Task, constant_speeds, fleet_task, stack_fleets
from reverie.envs.fleet.load import offered_load
from reverie.envs.fleet.schedule import Schedule
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

THREE = np.array([1.0, 0.5, 0.2])
UNIT = workloads.exponential(1.0)


class Choose(NamedTuple):
    """The policy that is a function of the timestep and a key."""

    choose: Callable[[TimeStep, Array], Array]

    def initial_state(self, batch: int) -> tuple[()]:
        return ()

    def act(self, state: tuple[()], timestep: TimeStep, key: Array) -> tuple[Array, tuple[()]]:
        return self.choose(timestep, key).astype(jnp.int32), state


def in_proportion(speeds) -> Choose:
    logits = jnp.log(jnp.asarray(speeds, jnp.float32))
    return Choose(lambda timestep, key: jax.random.categorical(key, logits, shape=timestep.reward.shape))


only_server = Choose(lambda timestep, key: jnp.zeros(timestep.reward.shape))
least_work = Choose(lambda timestep, key: timestep.observation["servers"][..., 0].argmin(-1))


def poisson_task(speeds, load: float, sizes=UNIT) -> Task:
    mean = workloads.moments(sizes)[0]
    return fleet_task(constant_speeds(speeds), workloads.poisson(mean / (load * float(np.sum(speeds))), sizes))


def copies(task: Task, batch: int) -> Task:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], batch, 0), task)


def run(policy, tasks: Task, steps: int, keep, seed: int = 0, **options):
    """What `keep` keeps of one episode per task, [T, B]."""
    env = FleetEnv(servers=tasks.mask.shape[-1], jobs=steps, **options)
    return compiled_rollout(env, policy, tasks, jax.random.key(seed), steps, keep)[1]


compiled_rollout = eqx.filter_jit(rollout)


def response(state: FleetState, timestep: TimeStep, action: Array) -> Array:
    return state.record.response


def episode_means(policy, tasks: Task, steps: int, **options) -> np.ndarray:
    """Mean response of each of the B episodes, without the first fifth in which the fleet fills."""
    return np.asarray(run(policy, tasks, steps, response, **options), np.float64)[steps // 5 :].mean(0)


def assert_mean(samples: np.ndarray, exact: float, precision: float = 0.01) -> None:
    """The mean of independent samples is the exact one, by four standard errors that are themselves small."""
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert error < precision * exact
    assert abs(samples.mean() - exact) < 4 * error


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_one_server_is_pollaczek_khinchine():
    """M/M/1 and M/G/1, also on a server of speed 2; all laws of sizes in one batch."""
    laws = [
        UNIT,
        workloads.deterministic(1.0),
        workloads.lognormal(1.0, 2.0),
        workloads.hyperexponential(0.9, 0.5, 5.5),
        workloads.bimodal(0.1, 5.5, 0.5),
        workloads.bounded_pareto(1.5, 0.4, 20.0),
    ]
    load, speed, episodes = 0.6, 2.0, 100
    tasks = [copies(poisson_task([speed], load, sizes), episodes) for sizes in laws]
    means = episode_means(only_server, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *tasks), 6000)
    for sizes, sample in zip(laws, means.reshape(len(laws), episodes), strict=True):
        first, second = workloads.moments(sizes)
        exact = oracles.mg1_response(load * speed / first, first / speed, second / speed**2)
        assert_mean(sample, exact, precision=0.02)
    assert oracles.mg1_response(load * speed, 1 / speed, 2 / speed**2) == oracles.mm1_response(load * speed, speed)


@pytest.mark.parametrize(("servers", "load", "known"), [(2, 0.8, 2.7778), (10, 0.8, 1.2046)])
def test_least_work_on_equal_servers_is_one_queue_for_all(servers, load, known):
    exact = oracles.mmk_response(load * servers, 1.0, servers)
    assert exact == pytest.approx(known, abs=1e-4)
    assert_mean(episode_means(least_work, copies(poisson_task(np.ones(servers), load), 300), 4000), exact)


def test_split_by_speed_is_a_row_of_single_servers():
    load, speeds = 0.6, np.array([1.5, 1.0, 0.5])
    exact = oracles.split_by_speed_response(load, speeds)
    assert_mean(episode_means(in_proportion(speeds), copies(poisson_task(speeds, load), 200), 4000), exact)


def test_little_says_how_many_jobs_are_in_the_system():
    """The time average of their number, from `elapsed` rewards: load / (1 - load) in M/M/1."""
    load, steps = 0.6, 6000

    def keep(state, timestep, action):
        return timestep.reward, state.clock.coarse, state.backlog[:, 0] == 0

    tasks = copies(poisson_task([1.0], load), 128)
    reward, clock, idle = (
        np.asarray(x, np.float64)[steps // 5 : -1] for x in run(only_server, tasks, steps, keep, reward="elapsed")
    )
    assert_mean(-reward[1:].sum(0) / (clock[-1] - clock[0]), load / (1 - load), precision=0.02)
    assert_mean(idle.mean(0), 1 - load)  # Poisson arrivals see time averages: the utilisation is the load


def test_capacity_that_is_not_used_was_idle():
    """Work conservation, from step to step: work leaves a busy server at its speed, and nothing else changes it."""
    rng = np.random.default_rng(0)
    speed = schedules.stack([schedules.schedule([0, 30, 50, 90], rng.permutation([1.0, 0.0, 0.5, 2.0])) for _ in "abc"])
    speed = speed._replace(value=speed.value.at[:, -1].set(1.0))
    tasks = copies(fleet_task(speed, workloads.poisson(0.5, UNIT)), 16)

    def keep(state, timestep, action):
        return state.backlog, state.clock.coarse, state.record, action

    backlog, clock, record, action = run(in_proportion(np.ones(3)), tasks, 400, keep)
    steps = len(backlog) - 1  # the last one runs the system empty
    before = jnp.concatenate([jnp.zeros((1, 16, 3)), backlog[: steps - 1]])
    after, gap = backlog[:steps], clock[:steps] - record.arrival[:steps]
    assert np.isin(np.arange(3), action).all()
    over_servers = jax.vmap(schedules.integral, (0, None, None))
    now = schedules.instant(record.arrival[:steps])
    capacity = jax.vmap(jax.vmap(over_servers, (None, 0, 0)), (None, 0, 0))(speed, now, gap)
    added = jnp.where(jnp.arange(3) == action[:steps, :, None], record.size[:steps, :, None], 0.0)
    done = before + added - after
    assert (done >= -1e-4).all()
    assert (done <= capacity + 1e-4).all()
    unused = np.asarray(capacity - done)
    assert (np.asarray(after)[unused > 1e-3] == 0).all()
    assert (unused > 1e-3).mean() > 0.05
    assert (unused < 1e-3).mean() > 0.05


# --- the exact optimum -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "most", "tolerance", "known"),
    [
        (0.5, (22, 15, 9), 1e-6, 1.92445),
        (0.75, (35, 22, 14), 1e-6, 3.24541),
        (0.9, (50, 28, 14), 1e-3, 6.883),  # with queues up to (90, 55, 30): 6.8830
    ],
)
def test_value_iteration_gives_the_known_optimum(load, most, tolerance, known):
    best = oracles.optimal_dispatch(load * THREE.sum(), THREE, most, tolerance)
    assert best.response == pytest.approx(known, rel=max(tolerance, 1e-5))


class Table(eqx.Module):
    """The policy that looks up the numbers of jobs in progress, [n_1, n_2, n_3]."""

    action: Array

    def initial_state(self, batch: int) -> tuple[()]:
        return ()

    def act(self, state: tuple[()], timestep: TimeStep, key: Array) -> tuple[Array, tuple[()]]:
        counts = timestep.observation["servers"][..., 0].astype(jnp.int32)
        row = jnp.minimum(counts, jnp.asarray(self.action.shape) - 1)
        return self.action[row[..., 0], row[..., 1], row[..., 2]], state


@pytest.mark.parametrize("load", [0.5, 0.75])
def test_the_optimal_policy_reaches_its_value_and_no_rule_beats_it(load):
    best = oracles.optimal_dispatch(load * THREE.sum(), THREE, (35, 22, 14), tolerance=1e-5)
    tasks = copies(poisson_task(THREE, load), 400)
    optimal = episode_means(Table(jnp.asarray(best.action, jnp.int32)), tasks, 2500, view="counts")
    assert_mean(optimal, best.response)
    for rule in rules(THREE, [1.0], ["jsq", "sed", "weighted-round-robin"]).values():
        worse = episode_means(rule, tasks, 2500, view="counts") - optimal  # on the same jobs
        assert worse.mean() > 4 * worse.std(ddof=1) / np.sqrt(len(worse))


# --- an event-driven simulation --------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the reference saw: at each arrival [J, N] and of each job [J]."""

    counts: np.ndarray
    backlog: np.ndarray
    park: np.ndarray
    speed: np.ndarray
    response: np.ndarray
    elapsed: np.ndarray
    latency: np.ndarray


def speed_at(s: Schedule, time: float) -> float:
    phase = time if np.isinf(s.period) else time % float(s.period)
    return float(s.value[np.flatnonzero(np.asarray(s.start) <= phase)[-1]])


def changes(s: Schedule, until: float) -> list[float]:
    """The times at which a schedule may change, up to `until`."""
    if np.isinf(s.period):
        return [float(start) for start in s.start]
    turns = range(int(until / float(s.period)) + 1)
    return [float(start) + turn * float(s.period) for turn in turns for start in s.start]


def simulate(speed: list[Schedule], arrival: np.ndarray, size: np.ndarray, action: np.ndarray) -> Seen:
    """Servers with queues and a calendar of events; a completion is entered anew whenever a speed changes."""
    servers, jobs = len(speed), len(size)
    queue = [deque() for _ in speed]  # of [job, remaining work]
    pace, since, entry = [0.0] * servers, [0.0] * servers, [0] * servers
    finish = np.zeros(jobs)
    last = arrival[-1] + 1 + 100 * size.sum()
    calendar: list[tuple] = [(time, 1, server, 0) for server, s in enumerate(speed) for time in changes(s, last)]
    calendar += [(time, 2, job, 0) for job, time in enumerate(arrival)]
    heapq.heapify(calendar)
    seen, integral, now, done = [], np.zeros(jobs + 1), 0.0, 0
    took: list[list[float]] = [[] for _ in speed]  # response times of the jobs finished since the last arrival
    finished_at = [0.0] * servers

    def settle(server: int) -> None:
        if queue[server]:
            queue[server][0][1] -= (now - since[server]) * pace[server]
        since[server] = now

    def plan(server: int) -> None:
        entry[server] += 1
        if queue[server] and pace[server] > 0:
            heapq.heappush(calendar, (now + queue[server][0][1] / pace[server], 0, server, entry[server]))

    arrived = 0
    while done < jobs:
        time, kind, which, number = heapq.heappop(calendar)
        integral[arrived] += (time - now) * sum(map(len, queue))
        now = time
        if kind == 0 and number == entry[which]:
            settle(which)
            job = queue[which].popleft()[0]
            finish[job] = finished_at[which] = now
            took[which].append(now - arrival[job])
            done += 1
            plan(which)
        elif kind == 1:
            settle(which)
            pace[which] = speed_at(speed[which], now)
            plan(which)
        elif kind == 2:
            for server in range(servers):
                settle(server)
            remaining = [[work for _, work in q] for q in queue]
            park = [sum(r[1:]) + r[0] / (p or 1.0) if r else 0.0 for r, p in zip(remaining, pace, strict=True)]
            latency = [
                [len(q), len(t), sum(t), max(t, default=0.0), 0.0, now - last_one]
                for q, t, last_one in zip(queue, took, finished_at, strict=True)
            ]
            seen.append(([len(q) for q in queue], [sum(r) for r in remaining], park, list(pace), latency))
            took = [[] for _ in speed]
            arrived = which + 1
            queue[action[which]].append([which, size[which]])
            plan(action[which])
    counts, backlog, park, paces, latency = (np.array(column, float) for column in zip(*seen, strict=True))
    return Seen(counts, backlog, park, paces, finish - arrival, integral[1:], latency)


class Case(NamedTuple):
    speed: list[Schedule]
    gap: np.ndarray
    size: np.ndarray
    action: np.ndarray


@st.composite
def cases(draw) -> Case:
    """Fleets that change and fail, and jobs; all numbers are such that float32 is exact, ties included."""
    jobs = 12
    rows = []
    for _ in range(draw(st.integers(2, 3))):
        start = np.append(0, np.cumsum(draw(st.lists(st.integers(1, 8), min_size=2, max_size=2))))
        value = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), min_size=3, max_size=3))
        periodic = draw(st.booleans())
        value[-1] = value[-1] if periodic and any(value) else 1.0
        rows.append(schedules.schedule(start, value, period=float(start[-1] + 4) if periodic else np.inf))
    quarters = st.integers(1, 24).map(lambda n: n / 4)
    gap = draw(st.lists(st.just(0.0) | quarters, min_size=jobs, max_size=jobs).filter(any))
    size = draw(st.lists(quarters, min_size=jobs, max_size=jobs))
    action = draw(st.lists(st.integers(0, len(rows) - 1), min_size=jobs, max_size=jobs))
    return Case(rows, np.array(gap), np.array(size), np.array(action))


@partial(jax.jit, static_argnums=0)
def play(env: FleetEnv, task: Task, actions: Array):
    """The observations, rewards and records of an episode with given actions: [J + 1], [J], [J]."""
    state, opening = env.reset(task, jax.random.key(0))

    def step(state, action):
        state, timestep = env.step(task, state, action, jax.random.key(0))
        return state, (timestep, state.record)

    _, (timesteps, records) = jax.lax.scan(step, state, actions)
    observations = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), opening.observation, timesteps.observation)
    return observations, timesteps.reward, records


@settings(deadline=None, max_examples=80, derandomize=True)
@given(cases())
def test_views_and_rewards_are_those_of_an_event_simulation(case):
    rows = 4  # one or two of them padding
    workload = workloads.recorded(case.gap.tolist(), case.size.tolist())
    task = fleet_task(schedules.stack(case.speed), workload, servers=rows)
    n, action = len(case.speed), jnp.asarray(case.action, jnp.int32)
    seen = simulate(case.speed, np.cumsum(case.gap), case.size, case.action)
    near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

    full, reward, record = play(FleetEnv(rows, 12, "full", "admission"), task, action)
    near(record.response, seen.response)
    near(reward, -seen.response)
    near(record.arrival, np.cumsum(case.gap))
    near(full["servers"][:-1, :n, 0], seen.backlog)
    near(full["servers"][:-1, :n, 1], seen.speed)
    near(full["job"][:-1], np.stack([case.size, case.gap], -1))
    assert (np.asarray(full["servers"])[:, n:] == 0).all()

    _, reward, _ = play(FleetEnv(rows, 12, "full", "lateness", 3.0), task, action)
    near(reward, -np.maximum(seen.response - 3, 0))

    counts, reward, _ = play(FleetEnv(rows, 12, "counts", "elapsed"), task, action)
    near(reward, -seen.elapsed)
    assert (np.asarray(counts["servers"])[:-1, :n, 0] == seen.counts).all()
    near(counts["job"][:-1, 0], case.gap)

    latency, reward, _ = play(FleetEnv(rows, 12, "latency", "elapsed"), task, action)
    near(reward, -seen.elapsed)
    near(latency["servers"][:-1, :n], seen.latency)
    near(latency["job"], counts["job"])
    completions, total, longest = (np.asarray(latency["servers"])[:, :n, k] for k in (1, 2, 3))
    assert completions.sum() == 12  # the last observation has those of the drain
    near(total.sum(), seen.response.sum())
    near(longest.max(), seen.response.max())
    assert not np.asarray(latency["servers"])[:, n:].any()
    assert not np.asarray(latency["servers"])[-1][:, [0, 5]].any()

    park, reward, _ = play(FleetEnv(rows, 12, "park", "elapsed"), task, action)
    near(reward, -seen.elapsed)
    near(park["vector"][:-1, :n], seen.park)
    near(park["vector"][:-1, -1], case.size)
    for observation in (full, counts, latency, park):
        assert np.asarray(observation["mask"]).tolist() == [[True] * n + [False] * (rows - n)] * 13
    for empty in (counts["servers"][-1], counts["job"][-1], park["vector"][-1], full["servers"][-1, :, 0]):
        assert not np.asarray(empty).any()


def drifting_tasks(batch: int, seed: int = 0) -> Task:
    """Ten servers that change and fail, with bursts of Pareto jobs."""
    rng, speeds = np.random.default_rng(seed), np.arange(10) / 10 + 0.15
    tasks = []
    for _ in range(batch):
        start = np.append(0, np.sort(rng.uniform(0, 20_000, 5)))
        value = np.stack([rng.permutation(speeds) for _ in start], -1)  # [N, P]
        value[rng.integers(10), 2] = 0.0
        workload = workloads.modulated([40.0, 120.0], [2000.0, 2000.0], workloads.pareto(1.5, 100.0), rng, phases=8)
        tasks.append(fleet_task(schedules.stack([schedules.schedule(start, v) for v in value]), workload))
    return stack_tasks(tasks)


def test_lateness_and_its_deadline_come_together():
    for reward, deadline in (("lateness", None), ("admission", 3.0)):
        with pytest.raises(ValueError, match=f"needs a deadline; got {reward} and {deadline}"):
            FleetEnv(reward=reward, deadline=deadline)
    with pytest.raises(ValueError, match="deadline must be greater than 0"):
        FleetEnv(reward="lateness", deadline=0.0)


def test_both_rewards_sum_to_minus_all_response_times():
    def keep(state, timestep, action):
        return timestep.reward, state.record.response

    policy, tasks = in_proportion(np.arange(10) + 1.0), drifting_tasks(8)
    elapsed, times = run(policy, tasks, 300, keep, reward="elapsed")
    admission, same_times = run(policy, tasks, 300, keep, reward="admission")
    np.testing.assert_allclose(times, same_times, rtol=1e-6)
    for rewards in (elapsed, admission):
        np.testing.assert_allclose(rewards.sum(0), -times.sum(0), rtol=1e-4)
    assert (np.asarray(elapsed) <= 0).all()


@jax.jit
def alternating(task: Task) -> tuple[Array, Array]:
    """Arrival and response of 200,000 jobs that go to the servers in turn."""
    env = FleetEnv(2, 200_000)
    state, _ = env.reset(task, jax.random.key(0))

    def step(state, action):
        state, _ = env.step(task, state, action, jax.random.key(0))
        return state, (state.record.arrival, state.record.response)

    return jax.lax.scan(step, state, jnp.arange(200_000, dtype=jnp.int32) % 2)[1]


@pytest.mark.parametrize("repeats", [True, False])
def test_the_last_of_200_000_jobs_is_as_exact_as_the_first(repeats):
    """Regular arrivals on servers that change and fail, beside cumulative capacities in float64."""
    jobs, size, shape = 200_000, 30.0, np.float32([1.1, 0.0, 0.6])
    starts = [np.float32([0, 211.3, 640.7]), np.float32([0, 77.7, 150.1])]
    last = [float(np.float32(1000.3)), float(np.float32(333.3))]
    if not repeats:  # what changes once and for all changes late: at 5.5 and at 8.8 million
        starts = [np.append(np.float32(0), start[1:] + np.float32(5.5e6) * (1 + k)) for k, start in enumerate(starts)]
        last = [np.inf, np.inf]
    speed = schedules.stack([schedules.schedule(s, shape, period) for s, period in zip(starts, last, strict=True)])
    task = fleet_task(speed, workloads.regular(55.1, workloads.deterministic(size)))
    arrival, response = (np.asarray(x, float) for x in alternating(task))
    gap = float(np.float32(1) / np.float32(1 / 55.1))
    exact = gap * np.arange(1, jobs + 1)
    np.testing.assert_allclose(arrival, exact, rtol=1e-7)  # half of the last of 24 bits
    for server, (start, period) in enumerate(zip(starts, last, strict=True)):
        turns = 0 if np.isinf(period) else int(exact[-1] / float(period)) + 10
        edges = (
            (float(period) * np.arange(turns)[:, None] + start.astype(float)).ravel() if turns else start.astype(float)
        )
        edges = np.append(edges, edges[-1] + 1e7)
        value = np.resize(shape.astype(float), len(edges) - 1)
        done = np.append(0.0, np.cumsum(value * np.diff(edges)))  # [C] work that could be done by each edge
        begun, finish = np.interp(exact[server::2], edges, done), []
        for work in begun.tolist():
            finish.append(max(work, finish[-1] if finish else 0.0) + size)
        piece = np.searchsorted(done, finish, side="left") - 1
        expected = edges[piece] + (finish - done[piece]) / value[piece] - exact[server::2]
        np.testing.assert_allclose(response[server::2], expected, rtol=1e-3)
        assert np.ptp(expected[-1000:]) > 50 or not repeats  # speeds matter, to the end


# --- batches, padding, borders ---------------------------------------------------------------------------------------


def test_a_padded_fleet_behaves_as_it_is():
    row = jax.tree.map(lambda leaf: leaf[0], drifting_tasks(1))
    padded = fleet_task(row.speed, row.workload, servers=13)
    actions = jnp.asarray(np.random.default_rng(0).integers(10, size=200), jnp.int32)
    observed, reward, record = play(FleetEnv(10, 200, "park", "elapsed"), row, actions)
    wide, wide_reward, wide_record = play(FleetEnv(13, 200, "park", "elapsed"), padded, actions)
    np.testing.assert_allclose(wide_record.response, record.response, rtol=1e-6)
    np.testing.assert_allclose(wide_reward, reward, rtol=1e-5)
    np.testing.assert_allclose(np.delete(wide["vector"], np.s_[10:13], -1), observed["vector"], rtol=1e-5)
    assert not np.asarray(wide["vector"])[:, 10:13].any()
    assert np.asarray(wide["mask"]).sum(-1).tolist() == [10] * 201
    assert offered_load(padded) == pytest.approx(offered_load(row))


class Outline(NamedTuple):
    """What decides the shapes of a task: few of them are few programs, in which all else is drawn."""

    servers: int
    segments: int
    jobs: int = 0
    """Of a recording; 0 draws them from a law."""
    modulated: bool = False
    scales: int = 1


WIDE, NARROW, PLAIN, SHORT = Outline(3, 4, 17), Outline(1, 1, 0, True, 3), Outline(2, 2), Outline(3, 1, 1)


def unlike_tasks(outlines: Sequence[Outline], rng: np.random.Generator) -> list[Task]:
    """Tasks of different fleet sizes, numbers of changes, laws of jobs and recordings."""

    def changing(segments: int) -> Schedule:
        start = np.append(0, np.cumsum(rng.uniform(1, 20, segments - 1)))
        period = start[-1] + 5 if rng.random() < 0.5 else np.inf
        return schedules.schedule(start, rng.uniform(0.2, 2, segments), period)

    def task(o: Outline) -> Task:
        segments = [o.segments, *rng.integers(1, o.segments + 1, o.servers - 1)]
        speed = schedules.stack([changing(n) for n in segments])
        if o.jobs:
            first = int(rng.integers(o.jobs))
            return fleet_task(speed, workloads.recorded(rng.exponential(2, o.jobs), rng.exponential(1, o.jobs), first))
        slow = workloads.modulated([1.0, 3.0], [9.0, 9.0], workloads.pareto(1.5, 0.4), rng, phases=4)
        workload = slow if o.modulated else workloads.poisson(2.0, UNIT)
        return fleet_task(speed, workload._replace(scale=changing(o.scales)))

    return [task(outline) for outline in outlines]


@settings(deadline=None, max_examples=24, derandomize=True)
@given(st.sampled_from([(WIDE, NARROW), (SHORT, PLAIN, NARROW), (PLAIN, WIDE, SHORT, NARROW)]), st.integers(0, 2**16))
def test_tasks_of_any_shape_stack_and_padding_is_without_effect(outlines, seed):
    rng = np.random.default_rng(seed)
    tasks = unlike_tasks(outlines, rng)
    batch = stack_fleets(tasks)
    servers = batch.mask.shape[-1]
    assert servers == max(task.mask.shape[-1] for task in tasks)
    actions = jnp.asarray([rng.integers(task.mask.shape[-1], size=25) for task in tasks], jnp.int32)
    together = jax.vmap(partial(play, FleetEnv(servers, 25, "latency", "elapsed")))(batch, actions)
    for i, task in enumerate(tasks):
        n = task.mask.shape[-1]
        seen, reward, record = play(FleetEnv(n, 25, "latency", "elapsed"), task, actions[i])
        wide, wide_reward, wide_record = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        for a, b in ((wide_record.response, record.response), (wide_record.size, record.size), (wide_reward, reward)):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4)
        np.testing.assert_allclose(wide["servers"][:, :n], seen["servers"], rtol=2e-5, atol=1e-3)
        assert not np.asarray(wide["servers"])[:, n:].any()
        assert not np.asarray(wide["mask"])[:, n:].any()
        row = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        assert offered_load(row) == pytest.approx(offered_load(task), rel=1e-5)


def test_a_batch_of_different_tasks_is_each_of_them_alone():
    env, tasks = FleetEnv(10, 100, "park", "elapsed"), drifting_tasks(5)
    actions = jnp.asarray(np.random.default_rng(0).integers(10, size=(5, 100)), jnp.int32)
    batch = jax.vmap(lambda task, action: play(env, task, action))(tasks, actions)
    for i in range(5):
        alone = play(env, jax.tree.map(lambda leaf, i=i: leaf[i], tasks), actions[i])
        for together, single in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(together[i], single, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("view", ["full", "counts", "latency", "park"])
def test_no_view_shows_the_future(view):
    """Two worlds that differ only after time t give equal observations up to t, whatever is in progress then."""
    sizes, change = workloads.pareto(1.5, 1.0), 40.0
    actions = jnp.asarray(np.random.default_rng(0).integers(3, size=100), jnp.int32)

    def world(later_speed: float, later_interval: float) -> Task:
        speed = schedules.stack([schedules.schedule([0, 20.0, change], [v, 1.5 - v, later_speed]) for v in THREE])
        return fleet_task(speed, workloads.stepped([0.0, change], [1.0, later_interval], sizes))

    env = FleetEnv(3, 100, view, "elapsed")
    one, _, record = play(env, world(2.0, 0.5), actions)
    two, _, other = play(env, world(0.1, 2.0), actions)
    past = np.asarray(record.arrival) <= change
    assert 20 < past.sum() < 80
    assert (np.asarray(record.response)[past] != np.asarray(other.response)[past]).any()  # jobs cross the change
    for name in one:
        # To rounding: what is left of a job in service is found from when it will be finished.
        np.testing.assert_allclose(np.asarray(one[name])[:-1][past], np.asarray(two[name])[:-1][past], rtol=2e-5)
        if name != "mask":
            assert (np.asarray(one[name])[:-1][~past] != np.asarray(two[name])[:-1][~past]).any()


def test_all_policies_meet_the_same_jobs_and_a_seed_repeats_itself():
    def keep(state, timestep, action):
        return state.record.size, state.record.arrival, state.record.response

    tasks, at_random = drifting_tasks(4), in_proportion(np.arange(10) + 1.0)
    one, again = (run(at_random, tasks, 100, keep) for _ in range(2))
    other, reseeded = run(least_work, tasks, 100, keep), run(least_work, tasks, 100, keep, seed=1)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert (np.asarray(one[2]) != np.asarray(other[2])).any()
    assert (np.asarray(reseeded[0]) != np.asarray(other[0])).all()


def test_episodes_follow_one_another_with_a_reset_between_them():
    tasks = drifting_tasks(3)
    env = FleetEnv(10, 5, "counts", "elapsed")

    def keep(state, timestep, action):
        return timestep, state.record.size, state.clock.coarse

    timestep, size, clock = jax.jit(
        lambda: rollout(env, in_proportion(np.ones(10)), tasks, jax.random.key(0), 17, keep)
    )()[1]
    step = np.arange(1, 18) % 6  # rollout begins after a reset: five jobs, a reset, five jobs, ...
    expected = np.repeat(step[:, None], 3, 1)
    np.testing.assert_array_equal(timestep.is_first, expected == 0)
    np.testing.assert_array_equal(timestep.is_last, expected == 5)
    np.testing.assert_array_equal(timestep.is_terminal, expected == 5)
    opening = np.asarray(timestep.is_first)
    assert (np.asarray(timestep.reward)[opening] == 0).all()
    assert (np.asarray(timestep.reward)[~opening] < 0).all()
    assert (np.asarray(timestep.observation["servers"])[opening] == 0).all()
    np.testing.assert_array_equal(clock[opening], timestep.observation["job"][..., 0][opening])
    sizes = np.asarray(size).T[~opening.T].reshape(3, -1)[:, :15]
    assert np.unique(sizes).size == sizes.size  # each episode has jobs of its own


def test_memory_goes_on_where_it_is_handed_over():
    class Counting(NamedTuple):
        def initial_state(self, batch):
            return jnp.zeros((batch,), jnp.int32)

        def act(self, state, timestep, key):
            return state % 3, state + 1

    tasks, env = copies(poisson_task(THREE, 0.5), 2), FleetEnv(3, 100)
    before, _ = compiled_rollout(env, Counting(), tasks, jax.random.key(0), 4, response)
    assert before.policy_state.tolist() == [4, 4]
    after, actions = compiled_rollout(
        env, Counting(), tasks, jax.random.key(1), 3, lambda s, t, action: action, before.policy_state
    )
    assert after.policy_state.tolist() == [7, 7]
    assert actions[:, 0].tolist() == [1, 2, 0]


def test_a_forbidden_server_is_no_extra_server():
    task = fleet_task(constant_speeds(THREE), workloads.poisson(1.0, UNIT), servers=5)
    for action in (3, 4, 5, -1):
        for reward in ("admission", "elapsed"):
            _, rewards, record = play(FleetEnv(5, 3, "counts", reward), task, jnp.array([0, action, 1], jnp.int32))
            assert np.isnan(rewards).tolist() == [False, True, False]
            assert np.isnan(record.response).tolist() == [False, True, False]


@pytest.mark.parametrize("view", ["full", "counts", "latency", "park"])
def test_observations_are_as_specified(view):
    env, tasks = FleetEnv(10, 20, view), drifting_tasks(2)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    _, opening = env.reset(task, jax.random.key(0))
    assert {name: entry.shape for name, entry in env.observation_spec.items()} == {
        name: value.shape for name, value in opening.observation.items()
    }
    assert bool(opening.is_first)
    assert not bool(opening.is_last)
    assert float(opening.reward) == 0
    assert env.action_spec.n == 10


def test_slowdown_is_response_over_size():
    _, _, record = play(FleetEnv(3, 4), poisson_task(THREE, 0.5), jnp.array([0, 2, 2, 1], jnp.int32))
    np.testing.assert_allclose(record.slowdown, record.response / record.size)


# --- loads and bad input ---------------------------------------------------------------------------------------------


def test_offered_load_is_work_over_capacity():
    park = np.arange(10) / 10 + 0.15
    task = fleet_task(constant_speeds(park), workloads.poisson(55.0, workloads.pareto(1.5, 100.0)))
    assert offered_load(task) == pytest.approx(300 / 55 / 6)
    two = schedules.stack([schedules.schedule([0, 1], [1.0, 0.0], period=4.0), schedules.constant(0.75)])
    assert offered_load(fleet_task(two, workloads.recorded([1.0, 3.0], [2.0, 1.0]))) == pytest.approx(0.75)
    scaled = workloads.regular(2.0, UNIT)._replace(scale=schedules.schedule([0, 1], [1.0, 3.0], period=2.0))
    assert offered_load(fleet_task(two, scaled)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FleetEnv(servers=0), "servers must be at least 1, got 0"),
        (lambda: FleetEnv(jobs=0), "jobs must be at least 1, got 0"),
        (lambda: constant_speeds([1.0, 0.0]), r"positive number, got \[1.0, 0.0\]"),
        (lambda: constant_speeds([1.0, np.nan]), "positive number"),
        (lambda: constant_speeds([]), "one number per server"),
        (lambda: constant_speeds([[1.0]]), "one number per server"),
        (lambda: fleet_task(constant_speeds(THREE), workloads.poisson(1.0, UNIT), 2), "3 servers do not fit into 2"),
        (lambda: fleet_task(constant_speeds(THREE), workloads.poisson(1.0, UNIT), 0), "3 servers do not fit into 0"),
        (
            lambda: FleetEnv(servers=10).reset(poisson_task(THREE, 0.5), jax.random.key(0)),
            "the task has 3 rows of servers and the environment 10",
        ),
    ],
)
def test_impossible_fleets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_step_leaves_running_episodes_alone():
    """A reset of one episode touches no other."""
    tasks, env = copies(poisson_task(THREE, 0.5), 2), FleetEnv(3, 50, "counts", "elapsed")
    states, timesteps = jax.vmap(env.reset)(tasks, jax.random.split(jax.random.key(0), 2))
    for _ in range(3):
        states, timesteps = batch_step(env, tasks, states, timesteps, jnp.array([0, 1]), jax.random.key(1))
    ended = timesteps._replace(is_last=jnp.array([True, False]))
    after, seen = batch_step(env, tasks, states, ended, jnp.array([0, 1]), jax.random.key(2))
    assert after.dispatched.tolist() == [0, 4]
    assert seen.is_first.tolist() == [True, False]
    plain, _ = batch_step(env, tasks, states, timesteps, jnp.array([0, 1]), jax.random.key(2))
    assert float(after.clock.coarse[1]) == float(plain.clock.coarse[1])


def test_the_recipe_for_a_view_shows_less_of_the_same_world():
    page = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    code, names = page.split("### Add a view")[1].split("```python\n")[1].split("```")[0], {"__name__": "recipe"}
    exec(compile(code, "how-it-works.md", "exec"), names)
    shown, held = (
        compiled_rollout(
            world,
            in_proportion(THREE),
            copies(poisson_task(THREE, 0.9), 4),
            jax.random.key(0),
            40,
            lambda state, timestep, action: (timestep.observation["servers"], state.record.response),
        )[1]
        for world in (names["Idle"](servers=3, jobs=40), FleetEnv(servers=3, jobs=40, view="counts"))
    )
    np.testing.assert_array_equal(shown[0], np.minimum(held[0], 1))
    np.testing.assert_array_equal(shown[1], held[1])
    assert held[0].max() > 1
