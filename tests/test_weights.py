"""One queue in a proxy and weights that are held, beside theory, the simulator job by job, and events in Python."""

import math
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import mmk_response

from reverie.envs.core import Environment, batch_reset, stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Task, constant_speeds, fleet_task
from reverie.envs.fleet.sharing import sharing
from reverie.envs.fleet.weights import FEATURES, LEAST, Proxy, WeightsEnv, _choose, action_of, check_stay, weights_of
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.opponents import opponents
from reverie.evaluate.trials import play
from reverie.policies.adaptive import AdaptiveLeastConnections
from reverie.policies.rules import ShortestExpectedDelay
from reverie.policies.tunable import tunable
from reverie.policies.weights import AdaptiveWeights, HeldWeights
from reverie.runs.build import build
from reverie.runs.config_json import config_from_json, config_to_json
from reverie.serve import rates
from reverie.settings.config import TrainConfig, WorldConfig
from reverie.settings.presets import preset
from reverie.train import evolve

KEY = jax.random.key(0)
COLUMN = {name: place for place, name in enumerate(FEATURES)}
SLOTS = np.array([1, 2, 4, 8])
A, B = np.array([1.0, 2.0, 0.5, 2.0]), np.array([0.0, 0.3, 0.5, 0.75])


def unlike() -> Task:
    """Four servers that share, of speeds that change, and prompts to be read."""
    speed = schedules.stack([schedules.schedule([0, 4000, 9000], rng) for rng in np.array(SPEEDS)])
    rng = np.random.default_rng(3)
    recorded = workloads.recorded(rng.exponential(60.0, 600), rng.exponential(300.0, 600), prompt=rng.random(600) * 40)
    task = fleet_task(speed, recorded)
    return task._replace(sharing=sharing(A, B, SLOTS, np.array([0.0, 0.2, 0.1, 0.3])))


SPEEDS = [[2.0, 1.0, 3.0], [1.0, 3.0, 0.5], [3.0, 2.0, 1.0], [1.5, 1.5, 2.5]]


def steady() -> Task:
    """The same at speeds that stay, without prompts."""
    speeds = constant_speeds([2.0, 1.0, 3.0, 1.5])
    task = fleet_task(speeds, workloads.poisson(40.0, workloads.exponential(300.0)))
    return task._replace(sharing=sharing(A, B, SLOTS))


@cache
def program(env: WeightsEnv):
    """Play one episode of each task [E, ...], the action of every interval drawn, or all equal."""

    @eqx.filter_jit
    def run(tasks: Task, drawn: float, steps: int, key: jax.Array):
        def one(carry, number):
            states, timesteps = carry
            draw = jax.random.uniform(jax.random.fold_in(KEY, number), timesteps.observation["mask"].shape, minval=-1)
            actions = jnp.where(drawn > 0, draw, 1.0)
            after = jax.vmap(env.step, (0, 0, 0, None))(tasks, states, actions, KEY)
            return after, (after[1], actions)

        opened = batch_reset(env, tasks, key)
        (ended, _), (timesteps, actions) = jax.lax.scan(one, opened, jnp.arange(steps))
        timesteps = jax.tree.map(lambda one, all: jnp.concatenate([one[None], all]), opened[1], timesteps)
        return timesteps, actions, ended.waiting, ended.record

    return run


CHANGING = WeightsEnv(4, 600, Proxy(hold=700.0, caps=(1, 2, 3, 5)))


@pytest.fixture(scope="module")
def changing():
    """Weights that change from interval to interval, few places: jobs wait in the proxy."""
    found = program(CHANGING)(stack_tasks([steady()] * 2), 1.0, 60, KEY)
    timesteps, actions, waiting, record = jax.tree.map(np.asarray, found)
    return timesteps, actions, waiting, record


def events(arrival, size, weights, caps, hold, speed, a, b):
    """When each job is sent, where, and when it leaves: events in double precision, one by one, at constant speeds and
    as many slots as the caps let be taken."""
    servers, jobs = len(speed), len(size)
    inside = [dict[int, float]() for _ in range(servers)]  # what is left of jobs
    sent, server, left = np.zeros(jobs), np.zeros(jobs, int), np.full(jobs, np.nan)
    changed, queue, now, came = [0.0] * servers, list[int](), 0.0, 0

    def rate(i: int) -> float:
        return speed[i] / (a[i] + b[i] * len(inside[i]))

    while came < jobs or queue or any(inside):
        ends = [(now + min(jobs_.values()) / rate(i), i) for i, jobs_ in enumerate(inside) if jobs_]
        until, who = min(ends, default=(math.inf, -1))
        if came < jobs and arrival[came] < until:
            until, who = arrival[came], -1
        for i, jobs_ in enumerate(inside):
            inside[i] = {job: rest - (until - now) * rate(i) for job, rest in jobs_.items()}
        now = until
        if who < 0:
            queue.append(came)
            came += 1
        else:
            done = min(inside[who], key=lambda job: inside[who][job])
            left[done] = changed[who] = now
            del inside[who][done]
        # The weights of the interval, of the last one to the end of all work.
        w = weights[min(math.ceil(now / hold) - 1, math.ceil(arrival[-1] / hold) - 1)]
        while queue and (free := [i for i in range(servers) if len(inside[i]) < caps[i]]):
            best = min(free, key=lambda i: ((len(inside[i]) + 1) / w[i], -w[i], changed[i]))
            job = queue.pop(0)
            inside[best][job], sent[job], server[job], changed[best] = size[job], now, best, now
    return sent, server, left


@pytest.mark.parametrize("episode", [0, 1])
def test_every_job_is_sent_and_leaves_when_an_event_simulation_lets_it(changing, episode):
    _, actions, waiting, record = changing
    arrival, size = record.arrival[episode].astype(float), record.size[episode].astype(float)
    weights = np.asarray(weights_of(jnp.asarray(actions[:, episode])), float)
    sent, server, left = events(arrival, size, weights, CHANGING.proxy.caps, 700.0, [2.0, 1.0, 3.0, 1.5], A, B)
    np.testing.assert_array_equal(record.server[episode], server)
    np.testing.assert_allclose(waiting.waited[episode], sent - arrival, atol=0.2)
    np.testing.assert_allclose(record.response[episode], left - arrival, rtol=1e-3, atol=0.2)
    assert (waiting.waited[episode] > 1).mean() > 0.2, "the queue was hardly used"


def test_no_job_is_lost_and_rewards_are_the_time_that_jobs_are_there(changing):
    timesteps, _, waiting, record = changing
    assert (waiting.sent == 600).all()
    assert np.isfinite(record.response).all()
    assert (np.diff(record.arrival + waiting.waited) >= -0.02).all(), "the queue is not first come, first served"
    reward = np.cumsum(timesteps.reward, 0)[timesteps.is_last.argmax(0), [0, 1]]  # up to the end
    np.testing.assert_allclose(-reward, record.response.sum(-1), rtol=1e-5)
    assert (timesteps.reward[timesteps.is_last.argmax(0).max() + 1 :] == 0).all(), "time goes on without jobs"


def test_the_proxy_tells_of_the_interval_before_what_is_true_of_it(changing):
    timesteps, actions, waiting, record = changing
    seen, step, waited = timesteps.observation, 30, waiting.waited
    begin, end = 700.0 * (step - 2), 700.0 * (step - 1)  # the interval before the one that has just ended
    assert not seen["servers"][:2].any()  # nothing is known as yet
    came, sent, left = (
        each[0].astype(float) for each in (record.arrival, record.arrival + waited, record.arrival + record.response)
    )
    at = [record.server[0] == i for i in range(4)]
    rows = seen["servers"][step, 0]
    assert rows[:, COLUMN["in progress"]].tolist() == [((sent <= end) & (left > end) & mine).sum() for mine in at]
    done = [(left > begin) & (left <= end) & mine for mine in at]
    assert rows[:, COLUMN["completions"]].tolist() == [mine.sum() for mine in done]
    in_force = action_of(weights_of(jnp.asarray(actions[step - 2, 0])))
    np.testing.assert_allclose(rows[:, COLUMN["weight"]], in_force, atol=1e-6)
    waits = ((came <= end) & (sent > end)).sum()
    assert seen["proxy"][step, 0].tolist() == [waits, ((came > begin) & (came <= end)).sum(), 700.0]
    kept, before = np.exp(-0.1 * np.arange(step, -1, -1))[:, None], seen["servers"][: step + 1, 0]
    there = before[..., COLUMN["in progress"]]
    found = {"completions": before[..., COLUMN["completions"]], "busy": 700.0 * (there > 0), "jobs": 700.0 * there}
    for name, each in found.items():
        np.testing.assert_allclose(rows[:, COLUMN[f"{name} so far"]], (kept * each).sum(0), rtol=1e-5)


def test_a_correction_of_nothing_is_the_rule_and_any_other_is_a_factor():
    tasks = jax.tree.map(lambda leaf: leaf[None], stack_tasks([unlike()] * 2))  # [K, E]
    plain = WeightsEnv(4, 600, Proxy(hold=300.0, span=4.0))
    corrected = replace(plain, correction=2.0)
    rule = AdaptiveWeights(AdaptiveLeastConnections(np.ones(4), tau=1200.0), gain=0.5)
    contestants = [Contestant("rule", rule, plain, "rule"), Contestant("nothing", Says(jnp.zeros(4)), corrected)]
    one, other = play(contestants, tasks, KEY, 600)
    np.testing.assert_array_equal(one.server, other.server)
    np.testing.assert_allclose(one.response, other.response, rtol=1e-6)
    equal = play([Contestant("equal", HeldWeights(jnp.ones(4)), plain, "rule")], tasks, KEY, 600)[0]
    assert (equal.server != one.server).mean() > 0.05
    shown, action = jnp.array([1.0, 0.5, 0.0, -1.0]), jnp.array([0.0, 1.0, -1.0, 9.0])
    meant = LEAST ** ((1 - shown) / 2) * jnp.array([1.0, 2.0, 0.5, 2.0])
    np.testing.assert_allclose(corrected._weights(shown, action), np.round(256 * meant / meant.max()) / 256)


class Says(eqx.Module):
    """The same action every time."""

    action: jax.Array

    def initial_state(self, batch):
        return ()

    def act(self, state, timestep, key):
        return jnp.broadcast_to(self.action, timestep.observation["mask"].shape), state


def test_equal_servers_behind_one_queue_are_a_queue_of_erlang():
    task = fleet_task(constant_speeds([1.0] * 4), workloads.poisson(1 / 3.2, workloads.exponential(1.0)))
    env = WeightsEnv(4, 3000, Proxy(hold=50.0))
    record = program(env)(stack_tasks([task] * 32), 0.0, 24, KEY)[3]
    found = np.asarray(record.response)[:, 300:].mean(1)
    assert np.isfinite(found).all()
    assert abs(found.mean() - mmk_response(3.2, 1.0, 4)) < 3.5 * found.std() / 32**0.5
    assert found.std() / 32**0.5 < 0.03 * found.mean()


def test_constant_weights_without_caps_are_the_rule_that_sends_each_job(played):
    """Shortest expected delay by the same weights, on servers that share, queue and read, at speeds that change."""
    one, job_by_job = played["held"], played["sed"]
    np.testing.assert_array_equal(one.server, job_by_job.server)
    np.testing.assert_allclose(one.response, job_by_job.response, rtol=2e-4, atol=0.02)
    np.testing.assert_allclose(one.arrival, job_by_job.arrival, rtol=1e-6)
    np.testing.assert_array_equal(one.size, job_by_job.size)


NOMINAL = np.array([101, 256, 77, 187]) / 256


@pytest.fixture(scope="module")
def played():
    """Who holds weights and who sends each job meet the same jobs in a trial."""
    tasks = jax.tree.map(lambda leaf: leaf[None], stack_tasks([unlike()] * 2))  # [K, E]
    no_caps = WeightsEnv(4, 600, Proxy(hold=900.0, caps=(1000,)))
    contestants = [
        Contestant("held", HeldWeights(jnp.asarray(NOMINAL)), no_caps, "rule"),
        Contestant("sed", ShortestExpectedDelay(NOMINAL), FleetEnv(view="counts"), "rule"),
    ]
    return dict(zip(("held", "sed"), play(contestants, tasks, KEY, 600), strict=True))


def test_actions_are_weights_by_logarithm_rounded_and_kept_from_the_floor():
    weights = np.asarray(weights_of(jnp.array([-9.0, -1.0, 0.0, 1.0, 9.0])))
    np.testing.assert_allclose(weights, [LEAST, LEAST, round(256 * LEAST**0.5) / 256, 1.0, 1.0])
    given = jnp.array([[512.0, 256.0, 16.0, 1.0], [3.0, 3.0, 3.0, 0.0]])
    wanted = [[1.0, 0.5, LEAST, LEAST], [1.0, 1.0, 1.0, LEAST]]
    np.testing.assert_allclose(np.asarray(weights_of(action_of(given))), wanted, atol=1 / 512)


@pytest.mark.parametrize(
    ("jobs", "idle_first", "chosen"),
    [
        ([0, 0, 3, 0], False, 3),  # the heaviest of those that are idle
        ([0, 0, 3, 0], True, 1),  # whoever has been idle for longest, of whatever weight
        ([0, 1, 1, 1], False, 3),  # 2 / 1 is less than 1 / 0.4, and the other of weight 1 has as many
        ([0, 1, 1, 1], True, 0),
        ([1, 9, 1, 1], True, 3),  # of equals the one where nothing has changed for longest
        ([1, 9, 0, 9], False, 0),  # the third has no place
    ],
)
def test_a_job_goes_where_weighted_leastconn_sends_it(jobs, idle_first, chosen):
    weights, unchanged = jnp.array([0.4, 0.2, 1.0, 1.0]), jnp.array([5.0, 8.0, 1.0, 3.0])
    free = jnp.array([True, True, jobs[2] > 0, True])
    assert int(_choose(jnp.array(jobs), weights, jnp.asarray(idle_first), free, unchanged)) == chosen


def test_the_rule_here_is_the_one_that_serve_follows(changing):
    timesteps = changing[0]
    rows = timesteps.observation["servers"][2:32, 0]
    configured, rule = np.array([3.0, 1.0, 2.0, 4.0]), rates.Rule(tau=4000.0, failure=1.0, gain=0.7)
    ours, memory = AdaptiveWeights(AdaptiveLeastConnections(configured, tau=4000.0), 0.7), rates.nothing_known(4)
    state = ours.initial_state(1)
    for number, row in enumerate(rows):
        now = jax.tree.map(lambda leaf, k=number: jnp.asarray(leaf[k + 2, :1]), timesteps)
        action, state = ours.act(state, now, KEY)
        memory = rates.watch(rule, memory, 700.0, row[:, 0], row[:, COLUMN["completions"]], np.zeros(4))
    raw = rates.estimate(memory, configured) ** rule.gain
    np.testing.assert_allclose(np.asarray(action[0]), np.asarray(action_of(jnp.asarray(raw))), atol=1e-4)
    assert np.ptp(np.asarray(action)) > 0.2
    # So steep that three of four would have the least weight, which the guard `spread` of serve keeps out.
    steep, _ = AdaptiveWeights(ours.estimates, 60.0).act(state, now, KEY)
    np.testing.assert_allclose(np.asarray(steep[0]), np.asarray(action_of(jnp.asarray(configured))), atol=1e-5)


def test_what_is_tuned_of_weights_is_judged_by_the_jobs_of_the_world_of_weights():
    tasks, free = stack_tasks([steady()] * 2), tunable("adaptive-weights", [2.0, 1.0, 3.0, 1.5], [300.0])
    vectors = jnp.array([[0.0, 0.0], [0.0, -30.0]])  # a gain of nothing is equal weights
    costs = np.asarray(evolve.play(free, vectors, tasks, KEY, 600, lambda response: response.mean(0), CHANGING.proxy))
    episode = jax.random.split(jax.random.split(KEY, 1)[0], 3)[0]
    equal = np.asarray(program(CHANGING)(tasks, 0.0, 60, episode)[3].response.mean(-1))
    np.testing.assert_allclose(costs[1], equal, rtol=1e-5)
    assert (np.abs(costs[0] / equal - 1) > 1e-3).all()


def test_opponents_of_who_sets_weights_are_configured_and_adaptive_ones_and_those_who_send_jobs_know_more():
    found = {c.name: c for c in opponents(stack_tasks([steady()] * 2), "weights", proxy=Proxy(hold=123.0))}
    rules = {name for name, c in found.items() if c.role == "rule"}
    assert rules == {"equal-weights", "nominal-weights", "adaptive-weights"}
    assert all(found[name].world.proxy.hold == 123.0 for name in (*rules, "weights-at-first"))
    np.testing.assert_allclose(
        found["weights-at-first"].policy.weights[0], np.array([2.0, 1.0, 3.0, 1.5]) * [1, 1 / 1.3, 4 / 2.5, 1]
    )


def test_what_does_not_fit_is_refused():
    task, world = steady(), WeightsEnv(4, 10)
    with pytest.raises(ValueError, match=r"caps must be none, one for all or one for each of 4 rows"):
        WeightsEnv(4, 10, Proxy(caps=(1, 2))).reset(task, KEY)
    with pytest.raises(ValueError, match="4 rows of servers and the environment 5"):
        replace(world, servers=5).reset(task, KEY)
    with pytest.raises(ValueError, match="join or leave"):
        check_stay(task._replace(member=task.member.at[1].set(False)))
    with pytest.raises(ValueError, match="the reward is `elapsed`"):
        WorldConfig(view="weights")
    with pytest.raises(ValueError, match="proxy, gain and correction are about the view `weights`"):
        WorldConfig(proxy=Proxy(hold=1.0))
    counts = FleetEnv(4, 10, "counts", "elapsed").reset(task, KEY)[1]
    with pytest.raises(ValueError, match="play it on a WeightsEnv of that size"):
        HeldWeights(jnp.ones(4)).act((), counts, KEY)


@pytest.mark.parametrize("agent", ["sac", "dreamer"])
def test_the_preset_is_an_agent_with_a_weight_for_each_server_and_its_settings_are_kept(agent):
    plan = preset(agent, "weights")
    assert config_from_json(TrainConfig, config_to_json(plan)) == plan
    trainer = build(replace(plan, world=replace(plan.fleet, tasks=1)))
    assert isinstance(trainer.env, Environment)
    state = jax.eval_shape(trainer.init, KEY)
    opened = jax.eval_shape(lambda pool: batch_reset(trainer.env, pool, KEY)[1], trainer.pool)

    def act(networks, opened):
        policy = trainer.agent.policy(networks)
        return policy.act(policy.initial_state(1), opened, KEY)[0]

    assert eqx.filter_eval_shape(act, state.averaged, opened).shape == (1, 10)
