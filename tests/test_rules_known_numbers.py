"""The classical rules in the fleet simulator against numbers that were computed without either.

Sources: the stationary distribution of a three-server Markov chain (exact), closed forms of queueing theory (exact),
an event simulation of 1.5 million jobs, and the mean and median of 200 episodes of Park's own environment.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, Task, constant_speeds, fleet_task
from reverie.envs.fleet.park import PARK_SERVICE_RATES
from reverie.policies.adaptive import AdaptiveLeastConnections
from reverie.policies.rollout import rollout
from reverie.policies.rules import SizeIntervals, rules
from reverie.policies.views import Rule

PARK = np.array(PARK_SERVICE_RATES)
THREE = np.array([1.0, 0.5, 0.2])
QUANTILES = -np.log1p(-(np.arange(100_000) + 0.5) / 100_000)  # of the exponential law of mean 1


@eqx.filter_jit
def responses(rule: Rule, tasks: Task, jobs: int) -> Array:
    """Response times [T, B] under a rule, on its own view."""
    env = FleetEnv(tasks.mask.shape[-1], jobs, rule.view)
    return rollout(env, rule, tasks, jax.random.key(0), jobs, lambda state, *_: state.record.response)[1]


def steady_state(rule: Rule, speeds, load: float, jobs: int, episodes: int) -> tuple[float, float]:
    """Mean response with Poisson arrivals and exponential sizes of mean 1, its standard error; the first third is left
    out, as the fleet fills."""
    task = fleet_task(constant_speeds(speeds), workload.poisson(1 / (load * np.sum(speeds)), workload.exponential(1.0)))
    tasks = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], episodes, 0), task)
    means = np.asarray(responses(rule, tasks, jobs), float)[jobs // 3 :].mean(0)
    return means.mean(), means.std(ddof=1) / np.sqrt(episodes)


@pytest.mark.parametrize(
    ("name", "load", "exact"),
    [
        ("sed", 0.5, 2.0944),
        ("sed", 0.75, 3.6610),
        ("jsq", 0.5, 2.1422),
        ("jsq", 0.75, 3.6406),
        ("p2c", 0.5, 2.5618),
        ("random-speed", 0.5, 3.5294),
    ],
)
def test_three_servers_are_as_their_markov_chain(name, load, exact):
    mean, error = steady_state(rules(THREE, QUANTILES, [name])[name], THREE, load, jobs=600, episodes=400)
    assert error < 0.015 * exact
    assert abs(mean - exact) < 4 * error


@pytest.mark.parametrize(
    ("name", "load", "known"),
    [
        ("least-completion", 0.6, 1.393),
        ("least-completion", 0.8, 1.923),
        ("fpi", 0.6, 1.358),
        ("fpi", 0.8, 1.840),
        ("sed", 0.6, 1.519),
        ("weighted-round-robin", 0.6, 2.657),
    ],
)
def test_ten_servers_are_as_an_event_simulation(name, load, known):
    mean, error = steady_state(rules(PARK, QUANTILES, [name])[name], PARK, load, jobs=900, episodes=200)
    assert error < 0.015 * known
    assert abs(mean - known) < 4 * error


def test_size_intervals_are_as_pollaczek_khinchine_says():
    """Under SITA each server is an M/G/1 queue of its own, with the sizes of its interval."""
    load, rule = 0.6, SizeIntervals.of_equal_load(THREE, QUANTILES)
    lower, upper = np.array([0.0, *rule.cutoffs]), np.array([*rule.cutoffs, np.inf])
    speed, rate = THREE, load * THREE.sum()  # small jobs go to the fast ones, and THREE begins with the fastest

    def moment(polynomial):  # of the exponential law, over each interval
        return sum(
            sign * np.exp(-np.minimum(x, 700)) * np.polyval(polynomial, np.minimum(x, 700))
            for sign, x in ((1, lower), (-1, upper))
        )

    share, first, second = moment([1]), moment([1, 1]), moment([1, 2, 2])
    np.testing.assert_allclose(rate * first / speed, load, rtol=1e-3)
    exact = (first / speed + share * rate * second / speed**2 / (2 * (1 - load))).sum()
    mean, error = steady_state(rule, THREE, load, jobs=1500, episodes=300)
    assert error < 0.015 * exact
    assert abs(mean - exact) < 4 * error


def test_the_adaptive_rule_makes_good_for_wrong_speeds():
    best, wrong = 3.6610, THREE[::-1]  # exact for SED with the true speeds
    adaptive, error = steady_state(AdaptiveLeastConnections(wrong, tau=60.0), THREE, 0.75, jobs=900, episodes=200)
    stale, _ = steady_state(rules(wrong, QUANTILES, ["sed"])["sed"], THREE, 0.75, jobs=900, episodes=200)
    assert abs(adaptive - best) < 0.1 * best + 3 * error
    assert stale > 1.8 * best


@pytest.fixture(scope="module")
def park_episodes():
    """The jobs of `env.seed(s); env.reset()` in Park's own environment, s = 0 .. 199."""
    tasks = []
    for seed in range(200):
        random, jobs = np.random.RandomState(seed), np.empty((1000, 2))  # Park's legacy stream
        for job in jobs:
            job[:] = np.floor((random.pareto(1.5) + 1) * 100), np.floor(random.exponential(55))
        tasks.append(fleet_task(constant_speeds(PARK), workload.recorded(jobs[:, 1].tolist(), jobs[:, 0].tolist())))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


@pytest.mark.parametrize(
    ("name", "mean", "median", "tolerance"),
    [
        ("round-robin", 18_275, 13_323, 0.001),  # the same decisions: what is left is Park's rounding of services
        ("least-completion", 1_026, 717, 0.02),
        ("jsq", 1_243, 797, 0.02),
        ("shortest-wait", 942, 681, 0.04),
        ("random-speed", 6_553, 3_681, 0.05),
    ],
)
def test_park_episodes_are_as_in_park(park_episodes, name, mean, median, tolerance):
    sizes = np.random.default_rng(0).pareto(1.5, 1000) * 100 + 100
    means = np.asarray(responses(rules(PARK, sizes, [name])[name], park_episodes, 1000), float).mean(0)
    np.testing.assert_allclose([means.mean(), np.median(means)], [mean, median], rtol=tolerance)
