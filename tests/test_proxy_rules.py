"""Rules that proxies run: their formulas by hand, and their mean responses beside an independent event simulation.

The reference: Park's ten speeds at load .8, exponential sizes, time in mean sizes at speed 1, three runs of 150,000
jobs of a simulation that shares no code with this one and was checked against theory.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import TimeStep, first, stack_tasks
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.families import PARK_SPEEDS
from reverie.policies.latency import ResponseRule
from reverie.policies.residual import ResidualLife
from reverie.policies.rollout import rollout
from reverie.policies.rules import Guarded, LateBinding, rules

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
        _, state = rule.act(rule.initial_state(1), idle, KEY)  # all have had a job, as far as this rule knows
        return rule.act(jnp.zeros_like(state), timestep._replace(is_first=jnp.zeros(1, bool)), key)[0].item()

    idle = first(
        {
            "servers": jnp.stack([jnp.zeros(3), jnp.ones(3)], -1)[None],
            "job": jnp.ones((1, 2)),
            "mask": jnp.ones((1, 3), bool),
        }
    )
    idle = idle._replace(is_first=jnp.ones(1, bool))
    assert {act([0.0, 0.0, 1.0], key) for key in jax.random.split(KEY, 20)} == {0, 1}
    assert act([2.0, 3.0, 4.0], KEY) == 2


def test_the_fastest_idle_server_first_is_the_shortest_wait_where_speeds_are_as_listed():
    env, jobs = FleetEnv(jobs=500), 500
    load = workloads.poisson(1 / (0.8 * PARK_SPEEDS.sum()), workloads.exponential(1.0))
    tasks = stack_tasks([fleet_task(constant_speeds(PARK_SPEEDS), load)] * 4)
    listed = rules(PARK_SPEEDS, np.ones(10), ["late-binding-fastest", "shortest-wait"])
    one, other = (
        rollout(env, rule, tasks, KEY, jobs, lambda state, *_: state.record.server)[1] for rule in listed.values()
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cap", [1, 2, 4])
def test_a_cap_starts_jobs_where_a_slot_frees_first(cap):
    """Beside a list of finish times in double precision: a job goes where the fewest are in progress while anyone has
    less than `cap`, else to the server at which so many have finished first that a slot is free."""
    rule, jobs = LateBinding(PARK_SPEEDS, cap), 400
    env = FleetEnv(jobs=jobs)
    load = workloads.poisson(1 / (0.95 * PARK_SPEEDS.sum()), workloads.exponential(1.0))
    tasks = stack_tasks([fleet_task(constant_speeds(PARK_SPEEDS), load)])
    record = rollout(env, rule, tasks, KEY, jobs, lambda state, *_: state.record)[1]
    finish, waited = [[] for _ in PARK_SPEEDS], 0
    for job in range(jobs):
        server, size, now = (float(leaf[job, 0]) for leaf in (record.server, record.size, record.arrival))
        counts = np.array([sum(end > now + 1e-3 for end in ends) for ends in finish])
        frees = np.array(
            [sorted(ends)[-cap] if count >= cap else now for ends, count in zip(finish, counts, strict=True)]
        )
        if (counts < cap).any():
            assert counts[int(server)] == counts.min()
        else:
            waited += 1
            assert frees[int(server)] == pytest.approx(frees.min(), abs=1e-2)
        ends = finish[int(server)]
        ends.append(max([now, *ends]) + size / PARK_SPEEDS[int(server)])
        assert ends[-1] - now == pytest.approx(float(record.response[job, 0]), rel=1e-3, abs=1e-3)
    assert waited > 20


def test_guardrails_keep_each_class_of_sizes_even_and_wide_ones_do_nothing():
    """A rule that sends everything to one server is held back; g says how far it may go."""
    speeds, jobs = np.ones(4), 300
    env = FleetEnv(servers=4, jobs=jobs)
    task = fleet_task(constant_speeds(speeds), workloads.regular(0.2, workloads.deterministic(1.0)))
    tasks = stack_tasks([task])

    def servers(g):
        rule = Guarded(Stubborn(), speeds, smallest=1.0, g=g)
        return np.asarray(rollout(env, rule, tasks, KEY, jobs, lambda state, *_: state.record.server)[1][:, 0])

    counts = np.bincount(servers(1.0), minlength=4)  # at load 1.25 nobody runs empty once all have work
    assert np.ptp(counts) <= 2  # g base^(0 + 1), in jobs
    assert np.ptp(np.bincount(servers(4.0), minlength=4)) > 2
    np.testing.assert_array_equal(servers(1e9), 0)


class Stubborn(eqx.Module):
    """The first server that it may choose."""

    view = "full"

    def initial_state(self, batch):
        return ()

    def act(self, state, timestep, key):
        return timestep.observation["mask"].argmax(-1), state


def test_residual_life_is_the_mean_of_what_longer_responses_had_left():
    rule = ResidualLife(jnp.ones(1), unit=1.0)
    state = rule.initial_state(1)
    for response in (1.0, 1.0, 10.0, 40.0):
        _, state = rule.act(state, seen([[0, 1, response, response]]), KEY)
    left = rule.residual(state, jnp.array([[[0.0, 5.0, 20.0, 80.0]]]))
    np.testing.assert_allclose(left[0, 0], [13.0, 20.0, 20.0, 80.0])  # of all; of 10 and 40; of 40; as long again


def test_an_old_job_is_avoided_where_sizes_have_heavy_tails():
    rule = ResidualLife(jnp.ones(2), unit=1.0)
    state = rule.initial_state(1)
    for _ in range(8):
        _, state = rule.act(state, seen([[0, 1, 3.0, 3.0], [0, 1, 3.0, 3.0]]), KEY)
    state = state._replace(
        count=state.count.at[..., 20].add(1.0),
        total=state.total.at[..., 20].add(100.0),
        age=state.age.at[0, 0, 0].set(8.0).at[0, 1, 0].set(0.0),
    )
    assert rule.act(state, seen([[1, 0, 0, 0], [1, 0, 0, 0]]), KEY)[0].tolist() == [1]


def test_impossible_numbers_of_rules_are_named():
    for make, name in (
        (lambda: LateBinding(np.ones(2), cap=0), "cap"),
        (lambda: Guarded(Stubborn(), np.ones(2), smallest=0.0), "smallest"),
        (lambda: ResidualLife(np.ones(2), unit=np.nan), "unit"),
    ):
        with pytest.raises(ValueError, match=name):
            make()
