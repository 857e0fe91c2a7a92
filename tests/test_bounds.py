"""Bounds are below everything that can be done, and as high as theory says."""

import jax
import numpy as np
import pytest

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.evaluate.bounds import lower_bound, pooled_srpt
from reverie.evaluate.capacity import load_at, speeds
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.trials import play
from reverie.policies.rules import rules

SIZES = workloads.exponential(1.0)


def one_server(speed):
    return fleet_task(schedules.stack([speed]), workloads.poisson(1.0, SIZES))


def test_srpt_is_that_computed_by_hand():
    """A job of 3 is interrupted at time 1 by one of 1; the job of 2.5 that comes at 1.5 waits for both."""
    responses = pooled_srpt(
        one_server(schedules.constant(1.0)), np.array([0.0, 1.0, 1.5, 9.0]), np.array([3.0, 1.0, 2.5, 2.0])
    )
    np.testing.assert_allclose(responses, [4.0, 1.0, 5.0, 2.0])


def test_srpt_reaches_its_mean_in_an_m_m_1_queue():
    rng = np.random.default_rng(0)
    arrival, size = np.cumsum(rng.exponential(1 / 0.8, 100_000)), rng.exponential(1.0, 100_000)
    mean = pooled_srpt(one_server(schedules.constant(1.0)), arrival, size).mean()
    assert mean == pytest.approx(2.3528, rel=0.03)  # Schrage and Miller's integral at load 0.8


def test_a_pooled_server_stands_still_where_all_servers_do():
    """Speed 1 up to time 2, none up to 5, then 2: a job of 2 at 0 is done at 2, one of 4 at 1 at 5 + 2."""
    task = one_server(schedules.schedule([0.0, 2.0, 5.0], [1.0, 0.0, 2.0]))
    np.testing.assert_allclose(pooled_srpt(task, np.array([0.0, 1.0]), np.array([2.0, 4.0])), [2.0, 6.0])


def test_speeds_repeat_and_line_up():
    fleet = [schedules.schedule([0.0, 1.0], [1.0, 2.0], period=2.0), schedules.schedule([0.0, 1.5], [4.0, 3.0])]
    task = fleet_task(schedules.stack(fleet), workloads.poisson(1.0, SIZES), servers=3)
    start, speed = speeds(task, 3.2)
    np.testing.assert_allclose(start, [0, 1, 1.5, 2, 3])
    np.testing.assert_allclose(speed, [[1, 4, 0], [2, 4, 0], [2, 3, 0], [1, 3, 0], [2, 3, 0]])


def test_bound_holds_in_every_episode_for_every_rule():
    fleet = [schedules.schedule([0.0, 30.0, 60.0], [1.0, 0.0, 0.5], period=100.0), *[schedules.constant(0.4, 3)] * 2]
    task = fleet_task(schedules.stack(fleet), workloads.poisson(1.0, workloads.exponential(0.4)))
    tasks = jax.tree.map(lambda leaf: leaf[None, None].repeat(20, axis=1), task)
    known = rules([1.0, 0.4, 0.4], [1.0], ["least-completion", "fpi", "sed"])
    contestants = [Contestant(name, rule, FleetEnv(view=rule.view), "rule") for name, rule in known.items()]
    closest = []
    for jobs in play(contestants, tasks, jax.random.key(0), 100):
        for e in range(20):
            bound = lower_bound(task, jobs.arrival[0, :, e], jobs.size[0, :, e])
            closest.append(jobs.response[0, :, e].mean() / bound)
    assert 1.0 <= min(closest) < 2.0  # below all, and not far below


def test_no_job_is_faster_than_on_the_fastest_server():
    task = fleet_task(constant_speeds([2.0, 1.0, 1.0]), workloads.poisson(1.0, SIZES))
    assert lower_bound(task, np.array([0.0, 100.0]), np.array([6.0, 2.0])) == pytest.approx((3 + 1) / 2)


def test_the_level_is_the_load_in_force():
    workload = workloads.stepped([0.0, 10.0], [4.0, 2.0], workloads.deterministic(3.0))
    task = fleet_task(constant_speeds([1.0, 2.0]), workload, servers=4)
    np.testing.assert_array_equal(load_at(task, np.array([0.0, 9.99, 10.0, 99.0])), [0.25, 0.25, 0.5, 0.5])
