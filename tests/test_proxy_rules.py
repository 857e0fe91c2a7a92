"""Rules that proxies run: their formulas by hand, and their mean responses beside an independent event simulation.

The reference: Park's ten speeds at load .8, exponential sizes, time in mean sizes at speed 1, three runs of 150,000
jobs of a simulation that shares no code with this one and was checked against theory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import TimeStep, first, stack_tasks
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.families import PARK_SPEEDS
from reverie.policies.latency import ResponseRule
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

KEY = jax.random.key(0)
REFERENCE = {"shortest-wait": 1.92, "late-binding": 2.08, "c3": 2.10, "ewma": 2.33, "normalised-service": 2.32}
REFERENCE |= {"peak-ewma": 2.31, "p2c-peak-ewma": 4.51, "adaptive-least-connections": 2.24}


@pytest.mark.parametrize("name", REFERENCE)
def test_mean_responses_are_those_of_an_independent_simulation(name):
    rule = rules(PARK_SPEEDS, np.ones(10), [name])[name]
    jobs, episodes = 6000, 16
    task = fleet_task(
        constant_speeds(PARK_SPEEDS), workloads.poisson(1 / (0.8 * PARK_SPEEDS.sum()), workloads.exponential(1.0))
    )
    tasks = stack_tasks([task] * episodes)
    env = FleetEnv(jobs=jobs, view=rule.view)
    response = jax.jit(lambda: rollout(env, rule, tasks, KEY, jobs, lambda s, *_: s.record.response)[1])()
    assert float(response[500:].mean()) == pytest.approx(REFERENCE[name], rel=0.1)


def seen(rows, begins: bool = False) -> TimeStep:
    """An observation of one fleet: [in progress, finished, sum, longest] of each server, one time unit later."""
    servers = jnp.pad(jnp.asarray(rows, jnp.float32), ((0, 0), (0, 2)))[None]
    timestep = first({"servers": servers, "job": jnp.ones((1, 1)), "mask": jnp.ones((1, len(rows)), bool)})
    return jax.tree.map(lambda x: x[None], timestep._replace(observation={}))._replace(
        observation=timestep.observation, is_first=jnp.array([begins])
    )


def test_averages_take_several_responses_as_if_each_were_their_mean():
    rule = ResponseRule(jnp.ones(2), "ewma", rate=0.5)
    state = rule.initial_state(1)
    for rows in ([[1, 1, 4.0, 4.0], [1, 1, 1.0, 1.0]], [[1, 2, 4.0, 3.0], [1, 0, 0, 0]]):
        action, state = rule.act(state, seen(rows), KEY)
    np.testing.assert_allclose(state.response, [[2 + (4 - 2) * 0.25, 1.0]])  # 4, then twice 2 at rate 1/2
    assert action.tolist() == [1]


def test_a_peak_follows_the_longest_at_once_and_fades_with_silence():
    rule = ResponseRule(jnp.ones(1), "peak", tau=2.0)
    state = rule.initial_state(1)
    _, state = rule.act(state, seen([[0, 2, 6.0, 5.0]]), KEY)
    assert state.response.item() == 5
    _, state = rule.act(state, seen([[1, 0, 0, 0]]), KEY)
    assert state.response.item() == pytest.approx(5 * np.exp(-0.5))
    _, state = rule.act(state, seen([[1, 1, 1.0, 1.0]]), KEY)
    kept = np.exp(-0.5)
    assert state.response.item() == pytest.approx(5 * kept * kept + (1 - kept))


def test_service_is_a_response_over_the_jobs_that_were_there():
    rule = ResponseRule(jnp.ones(1), "normalised", tau=1e9)
    state = rule.initial_state(1)
    for rows, begins in (([[0, 0, 0, 0]], True), ([[1, 0, 0, 0]], False), ([[2, 0, 0, 0]], False)):
        _, state = rule.act(state, seen(rows, begins), KEY)  # jobs that met 1, 2 and 3 in progress, themselves included
    _, state = rule.act(state, seen([[2, 1, 4.0, 4.0]]), KEY)
    assert state.service.item() == pytest.approx(4 / 2)  # the three met 2 in the mean; the fleet's mean is the same


def test_weights_follow_what_servers_complete_while_they_are_busy():
    """Three completions a time unit beside one: three jobs of four, whatever is in progress."""
    rule = rules(np.array([1.0, 1.0]), np.ones(10), ["orca"])["orca"]
    memory, credit = rule.initial_state(1)
    memory = memory._replace(completed=jnp.array([[300.0, 100.0]]), busy=jnp.array([[100.0, 100.0]]))
    taken = []
    for _ in range(40):
        servers = jnp.full((1, 2, 1), 9.0)
        timestep = first({"servers": servers, "job": jnp.zeros((1, 1)), "mask": jnp.ones((1, 2), bool)})
        timestep = timestep._replace(is_first=jnp.zeros(1, bool), is_last=jnp.zeros(1, bool))
        action, (_, credit) = rule.act((memory, credit), timestep, KEY)
        taken.append(action.item())
    assert taken.count(0) == 30


def test_a_server_of_which_nothing_is_known_is_tried_when_idle_and_not_flooded():
    rule = ResponseRule(jnp.ones(3), "c3")
    state = rule.initial_state(1)
    known, idle, waiting = [3, 1, 9.0, 9.0], [0, 0, 0, 0], [1, 0, 0, 0]
    assert rule.act(state, seen([known, idle, waiting]), KEY)[0].tolist() == [1]
    assert rule.act(state, seen([known, waiting, waiting]), KEY)[0].tolist() == [0]


def test_late_binding_takes_any_idle_server_and_else_the_first_to_free():
    rule = rules(np.array([1.0, 1.0, 4.0]), np.ones(10), ["late-binding"])["late-binding"]

    def act(work, key):
        servers = jnp.stack([jnp.asarray(work), jnp.array([1.0, 1.0, 4.0])], -1)[None]
        timestep = first({"servers": servers, "job": jnp.ones((1, 2)), "mask": jnp.ones((1, 3), bool)})
        return rule.act((), timestep, key)[0].item()

    assert {act([0.0, 0.0, 1.0], key) for key in jax.random.split(KEY, 20)} == {0, 1}
    assert act([2.0, 3.0, 4.0], KEY) == 2
