"""Servers that are not ours alone: queueing theory, rewards that add up, and batches with and without others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Others, constant_speeds, fleet_task, stack_fleets
from reverie.envs.fleet.families import draw_tasks, family
from reverie.envs.fleet.load import offered_load, with_load
from reverie.evaluate.opponents import opponents
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

KEY = jax.random.key(0)
UNIT = workloads.exponential(1.0)


def others(rate: float, weights) -> Others:
    return Others(jnp.float32(rate), jnp.asarray(weights, jnp.float32), UNIT)


def test_our_jobs_wait_behind_those_of_others_as_in_one_queue():
    """Two Poisson streams on one server are M/M/1 at their joint load: 1 / (1 - 0.7) in the mean."""
    task = fleet_task(constant_speeds([1.0]), workloads.poisson(1 / 0.3, UNIT))
    task = task._replace(others=others(0.4, [1.0]))
    assert offered_load(task) == pytest.approx(0.7)
    env, jobs = FleetEnv(servers=1, jobs=4000), 4000
    tasks = stack_tasks([task] * 64)
    response = rollout(env, rules([1.0], [1.0])["least-work"], tasks, KEY, jobs, lambda s, *_: s.record.response)[1]
    assert float(response[200:].mean()) == pytest.approx(1 / 0.3, rel=0.04)


@pytest.mark.parametrize("view", ["counts", "latency"])
def test_rewards_still_sum_to_our_response_times(view):
    """The integral of our jobs in progress, by events of our jobs alone, is the sum of our response times."""
    env, jobs = FleetEnv(jobs=200, view=view, reward="elapsed"), 200
    tasks = draw_tasks(family("neighbours"), 4, 0)
    rule = {"counts": rules(np.ones(10), [300.0])["jsq"], "latency": rules(np.ones(10), [300.0])["ewma"]}[view]
    reward, response = rollout(env, rule, tasks, KEY, jobs, lambda s, t, a: (t.reward, s.record.response))[1]
    np.testing.assert_allclose(-reward.sum(0), response.sum(0), rtol=1e-4)


def test_others_are_the_same_whatever_we_do():
    """Where others use one server and we two, what we find there does not depend on what we send elsewhere."""
    task = fleet_task(constant_speeds([1.0, 1.0, 1.0]), workloads.poisson(2.0, UNIT))
    tasks = stack_tasks([task._replace(others=others(0.8, [1.0, 0.0, 0.0]))])
    env, jobs = FleetEnv(servers=3, jobs=300, view="counts"), 300
    work = [
        rollout(env, rules(speeds, [1.0])["random-speed"], tasks, KEY, jobs, lambda s, *_: s.backlog)[1][:, 0]
        for speeds in ([1e-20, 1.0, 1.0], [1e-20, 1.0, 1e-20])
    ]
    np.testing.assert_array_equal(work[0][:-1, 0], work[1][:-1, 0])
    assert (work[0][:, 1] != work[1][:, 1]).any()
    assert work[0][:, 0].mean() > 1


def test_tasks_with_and_without_others_stand_in_one_batch():
    """Who shares a batch with a shared fleet, and has as many servers, is as alone as before."""
    alone, shared = (
        jax.tree.map(lambda leaf: leaf[0], draw_tasks(family(name), 1, 0)) for name in ("hard", "neighbours")
    )
    small = fleet_task(constant_speeds(np.ones(3)), alone.workload)
    env, jobs = FleetEnv(jobs=100), 100
    rule = rules(np.ones(10), [300.0])["least-work"]

    def responses(tasks):
        return rollout(env, rule, tasks, KEY, jobs, lambda s, *_: s.record.response)[1]

    among, before = responses(stack_fleets([alone, shared, small])), responses(stack_fleets([alone, alone, small]))
    np.testing.assert_allclose(among[:, [0, 2]], before[:, [0, 2]], rtol=1e-6)
    assert not np.allclose(among[:, 1], before[:, 1])


def test_load_counts_others_and_is_scaled_with_them():
    for task in [jax.tree.map(lambda leaf, i=i: leaf[i], draw_tasks(family("neighbours"), 8, 1)) for i in range(8)]:
        assert 0.5 <= offered_load(task) <= 0.9
        assert offered_load(with_load(task, 0.6)) == pytest.approx(0.6, rel=1e-3)


def test_slots_of_a_proxy_are_no_rule_where_others_take_them_too():
    for name in ("neighbours", "shared"):  # nor do they say what is left of jobs that share a server
        roles = {c.name: c.role for c in opponents(draw_tasks(family(name), 2, 0), "counts")}
        assert roles["late-binding"] == "oracle"
        assert roles["jsq"] == "rule"
