"""Contestants meet the same jobs, keep what they may keep, and the tables say what happened."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.sharing import sharing
from reverie.evaluate.contestants import Contestant, key_of
from reverie.evaluate.statistics import verdict
from reverie.evaluate.trials import adaptive, contenders, lower_bounds, play, standard
from reverie.evaluate.watch import Watched, waits, watch
from reverie.policies.objectives import objective
from reverie.policies.rules import rules

SPEEDS = [1.0, 2.0, 3.0]
SIZES = workloads.exponential(2.0)
TRIALS, JOBS = 4, 60


def poisson(load):
    return fleet_task(constant_speeds(SPEEDS), workloads.poisson(2.0 / 6.0 / load, SIZES))


def repeated(task, trials=TRIALS):
    return stack_tasks([task] * trials)


HARD = {"hard": repeated(poisson(0.9))}
KEY = jax.random.key(3)
BLIND = rules(SPEEDS, [1.0, 2.0, 3.0], ["jsq", "sed"])
SOME = rules(SPEEDS, [1.0, 2.0, 3.0], ["jsq", "sed", "least-completion", "fpi"])


class Fixed(eqx.Module):
    """Takes server 0 in the first episode that it remembers, 1 in the second, and so on; counts what it saw."""

    weight: Float[Array, ""]

    def initial_state(self, batch):
        return {"first": jnp.zeros(batch, jnp.int32), "last": jnp.zeros(batch, jnp.int32)}

    def act(self, state, timestep, key):
        traced.append(self)
        state = {"first": state["first"] + timestep.is_first, "last": state["last"] + timestep.is_last}
        return state["last"] * (state["first"] == state["last"] + 1), state


traced = []


def agent(seed, name="fixed"):
    return Contestant(name, Fixed(jnp.float32(seed)), FleetEnv(view="counts"), "agent", seed)


def fifo(arrival, size, server, speed):
    """Response times by Lindley's recursion, job by job."""
    free = np.zeros(len(speed))
    response = np.empty(len(arrival))
    for j, (at, work, n) in enumerate(zip(arrival, size, server, strict=True)):
        free[n] = max(free[n], at) + work / speed[n]
        response[j] = free[n] - at
    return response


def rows_of(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


# --- common random numbers -------------------------------------------------------------------------------------------


def test_contestants_meet_the_same_jobs_whatever_they_see_and_do():
    trials = jax.tree.map(lambda leaf: leaf[None], HARD["hard"])
    contestants = [*contenders(SOME, "counts"), agent(0)]
    played = play(contestants, trials, KEY, JOBS)
    for other in played[1:]:
        np.testing.assert_allclose(other.size, played[0].size, rtol=1e-6)
        np.testing.assert_allclose(other.arrival, played[0].arrival, rtol=1e-5)
    servers = {jobs.server.tobytes() for jobs in played}
    assert len(servers) == len(contestants)  # and each did something else with them
    (alone,) = play(contestants[1:2], trials, KEY, JOBS)
    np.testing.assert_array_equal(alone.server, played[1].server)  # the others were not in its way


def test_trials_differ_and_depend_on_key_and_task_name_alone():
    def sizes(tasks, key, name="hard"):
        return [row["mean_size"] for row in rows_of(standard([agent(0)], tasks, key, JOBS).results, task=name)]

    alone = sizes(HARD, KEY)
    assert len(set(alone)) == TRIALS
    assert sizes({"other": repeated(poisson(0.5)), **HARD}, KEY) == alone
    assert sizes({"other": HARD["hard"]}, KEY, "other") != alone
    assert sizes(HARD, jax.random.key(4)) != alone


def test_records_are_those_of_first_come_first_served():
    trials = jax.tree.map(lambda leaf: leaf[None], HARD["hard"])
    for jobs in play(contenders(SOME, "full"), trials, KEY, JOBS):
        for e in range(TRIALS):
            arrival, size, server = jobs.arrival[0, :, e], jobs.size[0, :, e], jobs.server[0, :, e]
            expected = fifo(arrival, size, server, SPEEDS)
            np.testing.assert_allclose(jobs.response[0, :, e], expected, rtol=1e-3, atol=1e-3)


# --- memory ----------------------------------------------------------------------------------------------------------


def two_episodes(task):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), task)


def test_memory_lives_through_a_trial_and_not_beyond():
    for _ in range(2):
        (jobs,) = play([agent(0)], two_episodes(HARD["hard"]), KEY, JOBS)
        assert (jobs.server[0] == 0).all()
        assert (jobs.server[1] == 1).all()  # it has seen one episode begin and end before


def test_runs_of_one_algorithm_share_the_compilation():
    traced.clear()
    play([agent(0)], two_episodes(HARD["hard"]), KEY, JOBS + 1)  # a length that no other test has compiled
    once = len(traced)
    play([agent(1), agent(2)], two_episodes(HARD["hard"]), KEY, JOBS + 1)
    assert len(traced) == once > 0


# --- tables ----------------------------------------------------------------------------------------------------------


def test_results_are_statistics_of_the_jobs():
    (jobs,) = play([agent(0)], jax.tree.map(lambda leaf: leaf[None], HARD["hard"]), key_of(KEY, "hard"), JOBS)
    rows = standard([agent(0)], HARD, KEY, JOBS).results
    assert len(rows) == TRIALS
    for e, row in enumerate(rows):
        response, size = jobs.response[0, :, e], jobs.size[0, :, e]
        assert row == {
            "experiment": "standard",
            "agent": "fixed",
            "role": "agent",
            "sees": "counts",
            "windows": None,
            "training_seed": 0,
            "task": "hard",
            "evaluation_seed": e,
            "episode": 0,
            "level": None,
            "jobs": JOBS,
            "mean_size": size.mean(),
            "mean": response.mean(),
            "median": np.median(response),
            "p95": np.percentile(response, 95),
            "p99": np.percentile(response, 99),
            "mean_slowdown": (response / size).mean(),
            "p99_slowdown": np.percentile(response / size, 99),
            "late": None,
        }


def test_jobs_count_for_the_level_at_their_arrival():
    """Regular arrivals every 2 time units up to time 41, then every 1: 20 jobs at load 1/6, the rest at 1/3."""
    workload = workloads.stepped([0.0, 41.0], [2.0, 1.0], workloads.deterministic(2.0))._replace(regular=jnp.ones(()))
    tasks = {"steps": two_episodes(repeated(fleet_task(constant_speeds(SPEEDS), workload)))}
    contestants = [agent(0), agent(1), *contenders(BLIND, "counts")]
    rows = adaptive(contestants, tasks, KEY, JOBS).results
    assert len(rows) == len(contestants) * TRIALS * 2 * 3
    for c in contestants:
        for e, k in np.ndindex(TRIALS, 2):
            mine = rows_of(rows, agent=c.name, training_seed=c.training_seed, evaluation_seed=e, episode=k)
            whole, low, high = mine
            assert [(row["level"], row["jobs"]) for row in mine] == [(None, 60), (0.167, 20), (0.333, 40)]
            assert whole["mean"] == pytest.approx((20 * low["mean"] + 40 * high["mean"]) / 60)
    judged = {(row["agent"], row["level"]): row for row in verdict(rows)}
    assert judged["fixed", None]["seeds"] == 2
    assert judged["fixed", 0.333]["ratio"] > judged["sed", 0.333]["ratio"] >= 1


def test_response_times_of_all_jobs_are_kept_as_a_distribution():
    tables = standard([agent(0)], HARD, KEY, JOBS)
    (jobs,) = play([agent(0)], jax.tree.map(lambda leaf: leaf[None], HARD["hard"]), key_of(KEY, "hard"), JOBS)
    survival = np.array([row["survival"] for row in tables.responses])
    response = np.array([row["response"] for row in tables.responses])
    assert (survival[0], response[0]) == (1.0, jobs.response.min())
    assert (np.diff(response) > 0).all()
    for share, time in zip(survival[::20], response[::20], strict=True):
        assert (jobs.response > time).mean() == pytest.approx(share, abs=1 / jobs.response.size)


def test_rules_that_are_told_what_agents_are_not_are_oracles():
    def roles(view):
        return {c.name: (c.role, c.world.view) for c in contenders(SOME, view)}

    assert roles("counts") == {
        "jsq": ("rule", "counts"),
        "sed": ("rule", "counts"),
        "least-completion": ("oracle", "full"),
        "fpi": ("oracle", "full"),
    }
    assert {role for role, _ in roles("full").values()} == {role for role, _ in roles("park").values()} == {"rule"}


def test_late_binding_counts_as_known_in_every_view_and_the_present_speeds_do_not():
    named = {name: rules(SPEEDS, [1.0, 2.0])[name] for name in ("late-binding-fastest", "shortest-wait")}
    (late, told) = contenders(named, "counts")
    assert (late.role, late.world.view, late.knows) == ("rule", "full", "who is idle")
    assert (told.role, told.knows) == ("oracle", None)


def test_jobs_beyond_the_deadline_are_counted():
    (jobs,) = play([agent(0)], jax.tree.map(lambda leaf: leaf[None], HARD["hard"]), key_of(KEY, "hard"), JOBS)
    rows = standard([agent(0)], HARD, KEY, JOBS, deadline=2.0).results
    assert [row["late"] for row in rows] == [(jobs.response[0, :, e] > 2).mean() for e in range(TRIALS)]
    for text in ("mean", "median", "p95", "p99", "late:2.0"):
        wanted = objective(text)
        expected = [row[wanted.metric] for row in rows]
        np.testing.assert_allclose(wanted(jnp.asarray(jobs.response[0], jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p98", "did you mean 'p99'"),
        ("late", "needs a deadline"),
        ("late:-1", "positive number"),
        ("mean:3", "unknown"),
    ],
)
def test_an_unknown_objective_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        objective(text)


@pytest.mark.parametrize(
    "how", [None, sharing(np.array([0.5, 0.0, 3.0]), np.array([0.5, 1.0, 0.0]), np.array([2, 9, 3]))]
)
def test_lower_bounds_belong_to_the_same_trials_and_are_below_all(how):
    """Also where jobs share servers, whose response times are known in the end alone."""
    tasks = {"hard": repeated(poisson(0.6)._replace(sharing=how))}
    rows = [*standard(contenders(SOME, "counts"), tasks, KEY, JOBS).results, *lower_bounds(tasks, KEY, JOBS)]
    judged = verdict(rows)  # raises where the trials were not the same
    assert judged[0]["agent"] == "lower-bound"
    assert judged[0]["ratio"] < 1
    bounds = {row["evaluation_seed"]: row["mean"] for row in rows_of(rows, role="bound")}
    assert all(row["mean"] > bounds[row["evaluation_seed"]] for row in rows if row["role"] != "bound")


@pytest.mark.parametrize(
    ("contestants", "tasks", "message"),
    [
        ([], HARD, "needs contestants and tasks, got 0 and 1"),
        ([agent(0)], {}, "got 1 and 0"),
        ([agent(0), agent(1), agent(0)], HARD, "'fixed' with training seed 0 stands there twice"),
        ([agent(0, "jsq"), *contenders(SOME, "full")], HARD, "'jsq' stands there both as agent and as rule"),
    ],
)
def test_impossible_trials_are_refused(contestants, tasks, message):
    with pytest.raises(ValueError, match=message):
        standard(contestants, tasks, KEY, JOBS)


# --- one episode to look at ------------------------------------------------------------------------------------------


def test_an_episode_can_be_watched_job_by_job():
    contestant = contenders(SOME, "full")[0]
    jobs, servers = watch(contestant, poisson(0.9), "hard", KEY, JOBS)
    (row,) = standard([contestant], {"hard": repeated(poisson(0.9), 1)}, KEY, JOBS).results
    assert [job["job"] for job in jobs] == list(range(JOBS))
    assert np.mean([job["response"] for job in jobs]) == pytest.approx(row["mean"])
    assert {job["level"] for job in jobs} == {0.9}
    assert [(s["server"], s["time"], s["speed"]) for s in servers] == [(0, 0.0, 1.0), (1, 0.0, 2.0), (2, 0.0, 3.0)]
    finish = fifo(*([job[name] for job in jobs] for name in ("arrival", "size", "server")), SPEEDS)
    np.testing.assert_allclose([job["response"] for job in jobs], finish, rtol=1e-3, atol=1e-3)


def test_waits_are_what_earlier_jobs_left():
    jobs = [
        {"arrival": 1.0, "response": 4.0, "server": 0},
        {"arrival": 2.0, "response": 5.0, "server": 0},
        {"arrival": 3.0, "response": 0.5, "server": 2},
    ]
    fleet = Watched(jobs, [{"server": n, "time": 0.0, "speed": 1.0} for n in range(3)])
    found = waits(fleet, np.array([0.5, 1.0, 2.5, 6.0, 8.0]))
    np.testing.assert_allclose(found, [[0, 4, 4.5, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_the_page_about_an_own_policy_runs_as_printed(capsys):
    page = (Path(__file__).parents[1] / "docs" / "own-policy.md").read_text(encoding="utf-8")
    names = {"__name__": "own_policy"}
    for code in page.split("```python\n")[1:]:
        exec(compile(code.split("```")[0], "own-policy.md", "exec"), names)
    judged = {row["agent"]: row for row in names["judged"]}
    assert judged.keys() == {"restless", "jsq", "sed", "round-robin"}
    assert (judged["restless"]["role"], judged["restless"]["sees"]) == ("agent", "counts")
    assert judged["restless"]["mean"] == pytest.approx(judged["sed"]["mean"], rel=0.1)  # the rule that it varies
    assert judged["round-robin"]["ratio"] > 2
    assert "restless" in capsys.readouterr().out
