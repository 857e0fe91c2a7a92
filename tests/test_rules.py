"""The classical dispatch rules: choices computed by hand, ties, what holds for all of them, and what they learn."""

from collections import deque
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.envs.core import TimeStep, first
from reverie.policies.adaptive import (
    AdaptiveLeastConnections,
    LittleConnections,
    LoadEstimates,
    ServerEstimates,
    StayEstimates,
    ValueFunctionDispatch,
)
from reverie.policies.rules import (
    JoinShortestQueue,
    LeastWork,
    PowerOfTwoChoices,
    Random,
    RoundRobin,
    ShortestExpectedDelay,
    SizeIntervals,
    WaitPlusService,
    rules,
)
from reverie.policies.views import Rule, pick

KEY = jax.random.key(0)
ACT = eqx.filter_jit(lambda rule, state, step, key: rule.act(state, step, key))
PARK = np.arange(15, 106, 10) / 100
SPEEDS = np.array([0.5, 0.2, 1.0, 0.8, 0.3])
SIZES = np.random.default_rng(0).pareto(2.5, 2000) + 0.1
NAMES = list(rules(SPEEDS, SIZES))


def timestep(observation, first=False, last=False) -> TimeStep:
    batch = observation["mask"].shape[0]
    flags = (jnp.full(batch, flag) for flag in (first, last, last))
    return TimeStep({k: jnp.asarray(v) for k, v in observation.items()}, jnp.zeros(batch), *flags)


def full(work, speed, size, gap=0.0, mask=None, **border) -> TimeStep:
    """A `full` observation from rows [N] (one environment) or [B, N], and numbers or [B]."""
    work, speed = np.broadcast_arrays(np.atleast_2d(work), np.atleast_2d(speed))
    job = np.stack([np.broadcast_to(size, len(work)), np.broadcast_to(gap, len(work))], -1)
    mask = np.ones(work.shape, bool) if mask is None else np.atleast_2d(mask)
    servers = np.stack([work, speed], -1)
    return timestep(
        {"servers": servers.astype(np.float32), "job": job.astype(np.float32), "mask": mask.astype(bool)}, **border
    )


def counts(jobs, gap=0.0, mask=None, **border) -> TimeStep:
    """A `counts` observation from rows [N] (one environment) or [B, N]."""
    jobs = np.atleast_2d(jobs).astype(np.float32)
    mask = np.ones(jobs.shape, bool) if mask is None else np.atleast_2d(mask)
    job = np.full((len(jobs), 1), gap, np.float32)
    return timestep({"servers": jobs[..., None], "job": job, "mask": mask.astype(bool)}, **border)


def latency(rows, gap=0.0, mask=None, **border) -> TimeStep:
    """A `latency` observation from rows [B, N, 6]."""
    mask = np.ones(rows.shape[:2], bool) if mask is None else np.atleast_2d(mask)
    job = np.full((len(rows), 1), gap, np.float32)
    return timestep({"servers": rows.astype(np.float32), "job": job, "mask": mask.astype(bool)}, **border)


def choose(rule, step, key=KEY) -> list[int]:
    batch = step.observation["mask"].shape[0]
    action, _ = ACT(rule, rule.initial_state(batch), step, key)
    assert action.dtype == jnp.int32
    return action.tolist()


def random_step(rule, rng, batch=64, first=True, mask=None) -> TimeStep:
    n = len(SPEEDS)
    mask = np.ones((batch, n), bool) if mask is None else mask
    if rule.view == "counts":
        return counts(rng.integers(0, 6, (batch, n)), rng.exponential(), mask, first=first)
    if rule.view == "latency":
        rows = np.stack([*rng.integers(0, 6, (2, batch, n)), *rng.exponential(1, (4, batch, n))], -1)
        return latency(rows, rng.exponential(), mask, first=first)
    size, gap = rng.exponential(1, batch), rng.exponential(1, batch)
    return full(rng.exponential(2, (batch, n)), rng.uniform(0.1, 2, (batch, n)), size, gap, mask, first=first)


# --- one server out of scores ----------------------------------------------------------------------------------------


def test_ties_go_to_the_fastest_then_to_the_lowest_index():
    mask = jnp.ones(4, bool)
    assert pick(jnp.array([1.0, 1, 1, 2]), jnp.array([1.0, 3, 3, 9]), mask) == 1
    assert pick(jnp.array([1.0, 1, 0.9, 2]), jnp.array([1.0, 3, 3, 9]), mask) == 2
    assert pick(jnp.array([1.0, 1, 1, 2]), jnp.array([1.0, 3, 3, 9]), mask.at[1].set(False)) == 2
    assert pick(jnp.full(4, jnp.inf), jnp.array([1.0, 3, 3, 9]), mask.at[3].set(False)) == 1


def test_float_rounding_does_not_decide_ties():
    percent = np.array([(slow, fast) for slow in range(15, 106, 10) for fast in range(slow + 10, 106, 10)])
    jobs = np.concatenate([percent * times / 5 for times in range(1, 8)])  # jobs / speed are equal in each pair
    score, speed = (jnp.asarray(x, jnp.float32) for x in (jobs, np.tile(percent, (7, 1)) / 100))
    score = score / speed
    assert (score[:, 0] < score[:, 1]).any()  # what rounding would decide
    assert (pick(score, speed, jnp.ones_like(score, bool)) == 1).all()


# --- hand-computed choices -------------------------------------------------------------------------------------------

WORK, SPEED = [4.0, 1.0, 3.0, 2.0], [4.0, 0.5, 2.0, 1.0]  # waits 1, 2, 1.5, 2


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        (LeastWork(), 2.0, 1),
        (WaitPlusService(0.0), 2.0, 0),
        (WaitPlusService(1.0), 2.0, 0),
        (ValueFunctionDispatch(), 2.0, 0),
    ],
)
def test_rules_that_see_everything(rule, size, expected):
    assert choose(rule, full(WORK, SPEED, size, first=True)) == [expected]


def test_the_service_time_counts_c_times():
    work, speed = [0.5, 2.0], [1.0, 2.0]  # waits 0.5 and 1; services of a job of size 2: 2 and 1
    decide = {c: choose(WaitPlusService(c), full(work, speed, 2.0))[0] for c in (0.0, 0.49, 0.51, 1.0)}
    assert decide == {0.0: 0, 0.49: 0, 0.51: 1, 1.0: 1}
    assert choose(WaitPlusService(0.5), full(work, speed, 2.0)) == [1]  # 1.5 both: the fastest


def test_empty_servers_tie_and_the_fastest_takes_the_job():
    for name, rule in rules(SPEEDS, SIZES).items():
        if name in ("least-work", "shortest-wait", "wait-plus-service", "least-completion", "fpi"):
            assert choose(rule, full(np.zeros(5), SPEEDS, 1.0, first=True)) == [2], name
        if name in ("jsq", "sed", "adaptive-least-connections"):
            assert choose(rule, counts(np.zeros(5), first=True)) == [2], name


def test_failed_servers_are_avoided_even_when_they_are_empty():
    for name, rule in rules(SPEEDS[:3], SIZES).items():
        if rule.view == "full":
            step = full(np.tile([0, 0, 9], (50, 1)), [0, 0, 0.1], SIZES[:50], first=True)
            assert choose(rule, step) == [2] * 50, name
            all_failed = choose(rule, full([9, 5, 1], [0, 0, 0], 1.0, mask=[True, True, False], first=True))
            assert all_failed[0] in (0, 1), name


def test_jsq_and_sed_by_hand():
    speeds = [4.0, 1.0, 2.0]
    assert choose(JoinShortestQueue(speeds), counts([[2, 1, 1], [1, 1, 1], [3, 0, 2]])) == [2, 0, 1]
    # (n + 1) / speed: [.75, 2, 1], [1, 1, 1], [1.25, 1, .5]
    assert choose(ShortestExpectedDelay(speeds), counts([[2, 1, 1], [3, 0, 1], [4, 0, 0]])) == [0, 0, 2]


def test_power_of_two_takes_the_better_of_two_different_servers():
    speeds, batch = [1.0, 2.0, 4.0], 30_000
    jobs = np.tile([0.0, 1.0, 8.0], (batch, 1))  # n / speed: 0, .5, 2: server 2 loses against any other
    share = np.bincount(choose(PowerOfTwoChoices(speeds, np.ones(3)), counts(jobs)), minlength=3) / batch
    np.testing.assert_allclose(share, [2 / 3, 1 / 3, 0], atol=0.01)
    # drawn in proportion to speed without replacement: P(no server 0) = 2/7 * 4/5 + 4/7 * 2/3
    share = np.bincount(choose(PowerOfTwoChoices(speeds, speeds), counts(jobs)), minlength=3) / batch
    np.testing.assert_allclose(share, [1 - 64 / 105, 64 / 105, 0], atol=0.01)
    only = np.tile([False, False, True], (batch, 1))
    assert set(choose(PowerOfTwoChoices(speeds, speeds), counts(jobs, mask=only))) == {2}


def test_random_follows_its_weights():
    batch = 40_000
    step = counts(np.zeros((batch, 4)), mask=np.tile([True, True, False, True], (batch, 1)))
    for weights, expected in (([1, 1, 1, 1], [1, 1, 0, 1]), ([0.5, 1.5, 7, 2], [0.5, 1.5, 0, 2])):
        share = np.bincount(choose(Random(weights), step), minlength=4) / batch
        np.testing.assert_allclose(share, np.divide(expected, sum(expected)), atol=0.01)


def sequence(rule, steps) -> list[int]:
    state, chosen = rule.initial_state(1), []
    for step in steps:
        action, state = ACT(rule, state, step, KEY)
        chosen.append(int(action[0]))
    return chosen


def test_weighted_round_robin_is_nginx():
    steps = [counts([0, 0, 0]) for _ in range(14)]
    assert sequence(RoundRobin([5, 1, 1]), steps) == [0, 0, 1, 0, 2, 0, 0] * 2


def test_round_robin_goes_round_skips_what_is_not_allowed_and_starts_again_with_the_episode():
    rule = RoundRobin(np.ones(3))
    steps = [counts([0, 0, 0], first=i == 5) for i in range(9)]
    assert sequence(rule, steps) == [0, 1, 2, 0, 1, 0, 1, 2, 0]
    steps = [counts([0, 0, 0], mask=[True, False, True]) for _ in range(6)]
    assert sequence(rule, steps) == [0, 2, 0, 2, 0, 2]
    assert sequence(RoundRobin([5, 1, 1]), steps) == [0, 0, 0, 2, 0, 0]


# --- value-function dispatch -----------------------------------------------------------------------------------------


def fpi_costs(work, speed, size, rate, mean_size, power=1.0):
    """b + s + l (2 b s + s^2) / (2 (1 - rho)) for a base split in proportion to a power of speed."""
    b, s, split = work / speed, size / speed, rate * speed**power / (speed**power).sum()
    rho = np.minimum(split * mean_size / speed, 0.95)
    return b + s + rho * speed / mean_size * (2 * b * s + s**2) / (2 * (1 - rho))


@pytest.mark.parametrize("power", [1.0, 1.4])
def test_fpi_follows_its_formula_with_the_load_it_was_given(power):
    rng, rule = np.random.default_rng(1), ValueFunctionDispatch(load=0.7, prior_jobs=1e12, split=power)
    work, size = rng.exponential(2, (500, 10)), rng.exponential(3, 500)
    state = LoadEstimates(jnp.full(500, 1e5), jnp.full(500, 3.0), jnp.full(500, 123.0))
    action, _ = rule.act(state, full(work, PARK, size, gap=9.0), KEY)
    costs = fpi_costs(work, PARK, size[:, None], 0.7 * PARK.sum() / 3, 3.0, power)
    assert (costs[np.arange(500), action] <= costs.min(-1) * 1.001).all()
    greedy = choose(WaitPlusService(1.0), full(work, PARK, size))
    assert (costs[np.arange(500), greedy] > costs.min(-1) * 1.01).mean() > 0.05  # the last term decides something


def test_fpi_measures_the_load_of_the_episode_and_forgets_the_one_before():
    rng, rule = np.random.default_rng(2), ValueFunctionDispatch(load=0.5, prior_jobs=4.0)
    state = rule.initial_state(1)
    for begins in (True, False, False, True):
        _, state = rule.act(state, full(np.zeros(10), PARK, 100.0, gap=1000.0, first=begins), KEY)
    gaps, sizes = rng.exponential(1 / 5, 300), rng.exponential(1, 300)
    for k in range(300):
        work = rng.exponential(1, 10)
        action, state = ACT(rule, state, full(work, PARK, sizes[k], gaps[k], first=k == 0), KEY)
        mean_size, seen = sizes[: k + 1].mean(), gaps[1 : k + 1].sum()
        load = (4 + k) / (4 / 0.5 + PARK.sum() * seen / mean_size)
        rate = min(load, 0.95) * PARK.sum() / mean_size
        assert action[0] == fpi_costs(work, PARK, sizes[k], rate, mean_size).argmin(), k


# --- size intervals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_jobs", ["fast", "slow"])
@pytest.mark.parametrize(
    "sizes",
    [
        np.random.default_rng(3).pareto(1.5, 40_000) + 1,
        np.random.default_rng(3).choice([1.0, 50.0], 40_000, p=[0.9, 0.1]),
        np.full(40_000, 7.0),
    ],
    ids=["pareto", "bimodal", "deterministic"],
)
def test_size_intervals_bring_work_in_proportion_to_speed(sizes, small_jobs):
    rule = SizeIntervals.of_equal_load(SPEEDS, sizes, small_jobs)
    chosen = np.array(choose(rule, full(np.zeros((len(sizes), 5)), SPEEDS, sizes)))
    work = np.bincount(chosen, sizes, minlength=5)
    # of one job more or less at each border the largest is 1 % of this sample's work
    np.testing.assert_allclose(work / work.sum(), SPEEDS / SPEEDS.sum(), atol=0.012)


def test_intervals_bring_the_shares_that_are_asked_for():
    sizes, shares = np.random.default_rng(3).pareto(1.5, 40_000) + 1, np.array([0.5, 0.1, 0.1, 0.1, 0.2])
    rule = SizeIntervals.of_shares(shares, np.array([2, 0, 1, 3, 4]), sizes)
    chosen = np.array(choose(rule, full(np.zeros((len(sizes), 5)), SPEEDS, sizes)))
    work = np.bincount(chosen, sizes, minlength=5) / sizes.sum()
    np.testing.assert_allclose(work[[2, 0, 1, 3, 4]], shares, atol=0.012)


def test_small_jobs_go_to_the_fast_servers_and_no_two_intervals_overlap():
    for small_jobs, order in (("fast", [2, 3, 0, 4, 1]), ("slow", [1, 4, 0, 3, 2])):
        rule = SizeIntervals.of_equal_load(SPEEDS, SIZES, small_jobs)
        chosen = choose(rule, full(np.zeros((len(SIZES), 5)), SPEEDS, np.sort(SIZES)))
        assert [server for i, server in enumerate(chosen) if i == 0 or chosen[i - 1] != server] == order


def test_the_nearest_interval_takes_over_from_a_server_that_is_not_allowed():
    rule = SizeIntervals.of_equal_load([1.0, 2.0, 3.0], np.arange(1.0, 7.0))  # cut at 5 and 6 of 21 units of work
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 1]], bool)
    for size, expected in ((0.5, [2, 1, 2, 2]), (5.5, [1, 1, 2, 2]), (9.0, [0, 0, 0, 2])):
        assert choose(rule, full(np.zeros(mask.shape), [1.0, 2.0, 3.0], size, mask=mask)) == expected, size


# --- adaptive weighted least connections -----------------------------------------------------------------------------


def test_adaptive_rates_by_hand():
    rule = AdaptiveLeastConnections([1.0, 1.0], tau=10.0)
    action, state = rule.act(rule.initial_state(1), counts([0, 0], gap=99.0, first=True), KEY)
    assert action[0] == 0
    action, state = rule.act(state, counts([1, 0], gap=3.0), KEY)
    assert action[0] == 1  # nothing has ended yet: 2 / 1 against 1 / 1
    action, state = rule.act(state, counts([1, 0], gap=1.0), KEY)
    # Server 1 ended its job within a gap of 1: it was busy for 1 / hypot(2 / 1, 1). Server 0 was busy all the time.
    kept, emptied = np.exp(-0.1), 1 / np.sqrt(5)
    busy = np.array([3 * kept + 1, emptied])
    nominal = 1 / busy.sum()  # one completion in all this time
    np.testing.assert_allclose(state.busy[0], busy, rtol=1e-6)
    np.testing.assert_allclose(rule.rates(state)[0], np.array([1, 2]) / (busy + 1 / nominal), rtol=1e-6)
    assert action[0] == 1


def test_estimates_outlive_an_episode_but_nothing_is_learned_across_its_border():
    rule = AdaptiveLeastConnections([1.0, 2.0], tau=10.0)
    learned = ServerEstimates(jnp.array([[3.0, 1.0]]), jnp.array([[4.0, 5.0]]), jnp.array([[8.0, 2.0]]))
    for border in ({"first": True}, {"last": True}):
        _, state = rule.act(learned, counts([0, 0], gap=7.0, **border), KEY)
        assert (state.completed == learned.completed).all()
        assert (state.busy == learned.busy).all()
        assert state.jobs.sum() == 1


class Fleet:
    """FIFO servers as NumPy people write them: a queue of finish times each, speeds that change at given times."""

    def __init__(self, speeds_at, servers):
        self.speeds_at, self.now = speeds_at, 0.0
        self.finish = [deque() for _ in range(servers)]

    def jobs(self, gap) -> list[int]:
        self.now += gap
        for queue in self.finish:
            while queue and queue[0] <= self.now:
                queue.popleft()
        return [len(queue) for queue in self.finish]

    def dispatch(self, server, size):
        queue = self.finish[server]
        queue.append((queue[-1] if queue else self.now) + size / self.speeds_at(self.now)[server])


def drive(rule, speeds_at, load, jobs, sizes=None):
    """Actions [T] and rate estimates [T, N] of an adaptive rule on one fleet with Poisson arrivals."""
    rng, n = np.random.default_rng(4), len(speeds_at(0.0))
    sizes = rng.exponential(1, jobs) if sizes is None else sizes
    gaps = rng.exponential(1 / (load * sum(speeds_at(0.0))), jobs).astype(np.float32)
    fleet, state = Fleet(speeds_at, n), rule.initial_state(1)

    @jax.jit
    def act(state, in_progress, gap, first):
        observation = {"servers": in_progress[None, :, None], "job": gap[None, None], "mask": jnp.ones((1, n), bool)}
        no = jnp.zeros(1, bool)
        action, state = rule.act(state, TimeStep(observation, jnp.zeros(1), first[None], no, no), KEY)
        return action[0], rule.rates(state)[0], state

    actions, estimates = [], []
    for k in range(jobs):
        action, rates, state = act(state, np.array(fleet.jobs(gaps[k]), np.float32), gaps[k], np.bool_(k == 0))
        fleet.dispatch(int(action), sizes[k])
        actions.append(int(action))
        estimates.append(np.asarray(rates))
    return np.array(actions), np.array(estimates)


def test_stays_by_hand():
    rule = LittleConnections([1.0, 1.0], tau=10.0, prior=2.0)
    _, state = rule.act(rule.initial_state(1), counts([0, 3], gap=99.0, first=True), KEY)
    action, state = rule.act(state, counts([1, 1], gap=2.0), KEY)
    # One job for 2 at server 0; at the other 3, in the mean 2, for 2, of which two ended. Fleet: 6 for 2 jobs.
    np.testing.assert_allclose(state.presence[0], [2.0, 4.0])
    np.testing.assert_allclose(rule.stays(state)[0], [(2 + 2 * 3) / 2, (4 + 2 * 3) / 4])
    assert action[0] == 1  # 2 x 4 against 2 x 2.5
    even = LittleConnections([1.0, 1.0], tau=10.0, prior=2.0, power=0.0)
    assert even.act(state, counts([1, 3], gap=0.0), KEY)[0][0] == 0  # fewest jobs, whatever the stays
    assert even.act(state, counts([1, 2], gap=0.0), KEY)[0][0] == 0


def test_stays_are_those_that_jobs_had_and_nothing_is_learned_across_a_border(monkeypatch):
    """Little's law: beside the mean stays of all jobs that each server was sent, known afterwards."""
    speeds, rule = np.array([0.3, 0.6, 1.0]), LittleConnections(np.ones(3), tau=1e6)
    monkeypatch.setattr(LittleConnections, "rates", lambda self, state: 1 / self.stays(state), raising=False)
    stays = [[], [], []]
    plain = Fleet.dispatch

    def dispatch(self, server, size):
        plain(self, server, size)
        stays[server].append(self.finish[server][-1] - self.now)

    monkeypatch.setattr(Fleet, "dispatch", dispatch)
    _, estimates = drive(rule, lambda t: speeds, 0.7, 6000)
    np.testing.assert_allclose(1 / estimates[-1], [np.mean(s) for s in stays], rtol=0.08)

    learned = StayEstimates(jnp.array([[3.0, 1.0, 0.0]]), jnp.ones((1, 3)), jnp.full((1, 3), 5.0))
    for border in ({"first": True}, {"last": True}):
        _, state = rule.act(learned, counts([0, 0, 0], gap=7.0, **border), KEY)
        assert (state.completed == learned.completed).all()
        assert (state.presence == learned.presence).all()


@pytest.mark.parametrize("law", ["exponential", "lognormal"])
def test_the_adaptive_rule_finds_the_true_speeds(law):
    speeds = np.array([0.2, 0.5, 1.0])
    sizes = np.random.default_rng(5).lognormal(-0.35, 0.84, 6000) if law == "lognormal" else None  # mean 1, scv 1
    _, estimates = drive(AdaptiveLeastConnections(np.ones(3), tau=600.0), lambda t: speeds, 0.8, 6000, sizes)
    np.testing.assert_allclose(estimates[1500:].mean(0), speeds, rtol=0.12)


def test_a_server_that_was_found_slow_is_tried_again_and_used_when_it_has_recovered():
    def speeds_at(t):
        return (1.0, 1.0) if t < 200 or t > 600 else (0.02, 1.0)

    actions, estimates = drive(AdaptiveLeastConnections(np.ones(2), tau=30.0), speeds_at, 0.4, 1600)
    time = np.arange(1600) / 0.8
    slow, recovered = (time > 300) & (time < 600), time > 900
    assert estimates[slow, 0].mean() < 0.3 * estimates[slow, 1].mean()
    assert 0 < (actions[slow] == 0).mean() < 0.1
    assert 0.35 < (actions[recovered] == 0).mean() < 0.65


# --- what holds for all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_only_allowed_servers_are_chosen(name, seed):
    rng, rule = np.random.default_rng(seed), rules(SPEEDS, SIZES)[name]
    mask = rng.random((64, 5)) < 0.4
    mask[np.arange(64), rng.integers(5, size=64)] = True
    chosen = choose(rule, random_step(rule, rng, mask=mask), jax.random.key(seed))
    assert mask[np.arange(64), chosen].all()


@pytest.mark.parametrize("name", ["jsq", "sed", "least-work", "shortest-wait", "wait-plus-service", "fpi", "sita"])
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(5)))
def test_numbering_the_servers_otherwise_changes_only_their_names(name, seed, order):
    rng, order = np.random.default_rng(seed), np.array(order)
    rule, renamed = rules(SPEEDS, SIZES)[name], rules(SPEEDS[order], SIZES)[name]
    step = random_step(rule, rng)
    moved = {k: v if k == "job" else v[:, order] for k, v in step.observation.items()}
    chosen = np.array(choose(rule, step))
    assert (order[choose(renamed, step._replace(observation=moved))] == chosen).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_scan_chooses_what_single_steps_choose(name):
    rng, rule = np.random.default_rng(6), rules(SPEEDS, SIZES)[name]
    steps = [random_step(rule, rng, batch=8, first=k in (0, 7)) for k in range(12)]
    keys = jax.random.split(KEY, 12)

    @jax.jit
    def scan(rule, steps, keys):
        def one(state, step_and_key):
            action, state = rule.act(state, *step_and_key)
            return state, action

        return jax.lax.scan(one, rule.initial_state(8), (steps, keys))[1]

    compiled = scan(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), keys)
    state = rule.initial_state(8)
    for step, key, expected in zip(steps, keys, compiled, strict=True):
        action, state = rule.act(state, step, key)
        assert action.tolist() == expected.tolist()


# --- names and bad input ---------------------------------------------------------------------------------------------


def test_all_rules_have_names_and_a_view():
    assert len(NAMES) == 29
    assert {rule.view for rule in rules(SPEEDS, SIZES).values()} == {"full", "counts", "latency"}
    assert list(rules(SPEEDS, SIZES, ["sita", "jsq"])) == ["sita", "jsq"]
    assert set(rules([1.0], SIZES)) == set(NAMES)


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(ValueError, match=r"unknown rule 'round-robbin': did you mean 'round-robin'\? .*random, .*sita"):
        rules(SPEEDS, SIZES, ["round-robbin"])
    with pytest.raises(ValueError, match=r"unknown rule 'zzz': the known ones are random"):
        rules(SPEEDS, SIZES, ["zzz"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules([1.0, -1.0], SIZES), "speeds .* positive"),
        (lambda: rules([[1.0, 2.0]], SIZES), "one number for each server"),
        (lambda: rules([0.0, 0.0], SIZES), "speeds .* positive"),
        (lambda: JoinShortestQueue([1.0, np.nan]), "speeds .* positive"),
        (lambda: rules(SPEEDS, []), "sizes must be"),
        (lambda: rules(SPEEDS, [1.0, 0.0]), "sizes must be"),
        (lambda: WaitPlusService(-0.1), "c must be"),
        (
            lambda: AdaptiveLeastConnections(SPEEDS, tau=0.0),
            "AdaptiveLeastConnections: tau must be greater than 0, got 0.0",
        ),
        (lambda: ValueFunctionDispatch(load=1.0), r"load must lie in \(0, 0.95\], got 1.0"),
        (lambda: ValueFunctionDispatch(prior_jobs=0.0), "prior_jobs must be greater than 0"),
    ],
)
def test_impossible_values_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_on_another_view_or_fleet_says_so(name):
    rule = rules(SPEEDS, SIZES)[name]
    if name not in ("random", "random-speed", "round-robin", "weighted-round-robin"):  # these see the mask only
        other = full(np.ones(5), SPEEDS, 1.0) if rule.view != "full" else counts(np.ones(5))
        with pytest.raises(ValueError, match=f"reads the view '{rule.view}'"):
            choose(rule, other)
    if rule.view == "counts":
        with pytest.raises(ValueError, match=r"5 speeds .* 3 servers"):
            choose(rule, counts(np.ones(3)))


def test_a_rule_is_added_as_the_recipe_says():
    """It holds on to its server for as long as that has one more, and then goes where fewest are."""
    page = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    code = page.split("### Add a rule")[1].split("```python")[1].split("```")[0]
    names: dict = {"__name__": "recipe"}
    exec(compile(code, "how-it-works.md", "exec"), names)
    rule = names["Hysteresis"](np.ones(3))
    assert isinstance(rule, Rule)
    state, chosen = rule.initial_state(1), []
    for jobs in ([0, 0, 0], [1, 0, 0], [2, 0, 1], [1, 1, 1], [0, 2, 2]):
        servers = jnp.asarray(jobs, jnp.float32)[None, :, None]
        timestep = first({"servers": servers, "job": jnp.ones((1, 1)), "mask": jnp.ones((1, 3), bool)})
        action, state = rule.act(state, timestep, KEY)
        chosen.append(action.item())
    assert chosen == [0, 0, 1, 1, 0]
