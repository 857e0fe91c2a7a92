"""Workloads against the distributions and processes that they are named after, computed here with SciPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.workload import Workload

ONE = workloads.deterministic(1.0)


def truncated_pareto(shape: float, low: float, high: float):
    return stats.truncpareto(shape, high / low, scale=low)


class Hyperexponential:
    def __init__(self, share: float, first: float, second: float):
        self.branches = ((share, stats.expon(scale=first)), (1 - share, stats.expon(scale=second)))

    def cdf(self, x):
        return sum(weight * branch.cdf(x) for weight, branch in self.branches)

    def moment(self, n):
        return sum(weight * branch.moment(n) for weight, branch in self.branches)


def lognormal(mean: float, scv: float):
    sigma = np.sqrt(np.log1p(scv))
    return stats.lognorm(sigma, scale=mean / np.exp(sigma**2 / 2))


CONTINUOUS = {
    "exponential": (workloads.exponential(2.0), stats.expon(scale=2.0)),
    "Pareto": (workloads.pareto(1.5, 100.0), stats.pareto(1.5, scale=100.0)),
    "Pareto, light": (workloads.pareto(4.5, 3.0), stats.pareto(4.5, scale=3.0)),
    "bounded Pareto": (workloads.bounded_pareto(1.5, 1.0, 1e4), truncated_pareto(1.5, 1.0, 1e4)),
    "bounded Pareto, shape 2": (workloads.bounded_pareto(2.0, 5.0, 50.0), truncated_pareto(2.0, 5.0, 50.0)),
    "lognormal": (workloads.lognormal(3.0, 10.0), lognormal(3.0, 10.0)),
    "lognormal, narrow": (workloads.lognormal(3.0, 0.1), lognormal(3.0, 0.1)),
    "hyperexponential": (workloads.hyperexponential(0.1, 9.0, 0.5), Hyperexponential(0.1, 9.0, 0.5)),
    "hyperexponential, turned": (workloads.hyperexponential(0.9, 0.5, 9.0), Hyperexponential(0.9, 0.5, 9.0)),
}
"""Laws with a density, beside the same in SciPy."""

sample_sizes = jax.jit(jax.vmap(workloads.sample_size, (None, 0)))


@partial(jax.jit, static_argnums=2)
def stream(workload: Workload, seed: int, jobs: int) -> workloads.Job:
    """The first jobs of a stream, in turn: size and gap [J]."""
    key = jax.random.key(seed)

    def following(clock, index):
        job = workloads.draw_job(workload, key, index, clock)
        return schedules.later(clock, job.gap), job

    return jax.lax.scan(following, schedules.instant(0.0), jnp.arange(jobs))[1]


def arrivals(workload: Workload, seed: int, jobs: int) -> np.ndarray:
    return np.cumsum(np.asarray(stream(workload, seed, jobs).gap, np.float64))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_sizes_follow_their_law(name):
    sizes, exact = CONTINUOUS[name]
    drawn = np.asarray(stream(workloads.poisson(1.0, sizes), 0, 100_000).size, np.float64)
    assert stats.kstest(drawn, exact.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if "hyper" not in name])
def test_quantiles_are_right_far_into_the_tail(name):
    sizes, exact = CONTINUOUS[name]
    survival = np.array([0.999, 0.5, 0.1, 1e-3, 1e-6, 1e-9])
    np.testing.assert_allclose(sample_sizes(sizes, jnp.asarray(survival, jnp.float32)), exact.isf(survival), rtol=2e-4)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_moments_are_those_of_the_law(name):
    sizes, exact = CONTINUOUS[name]
    expected = [exact.moment(1), np.inf if name == "Pareto" else exact.moment(2)]
    np.testing.assert_allclose(workloads.moments(sizes), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "Pareto"])
def test_what_is_sampled_has_the_moments_that_are_promised(name):
    """The integral of size^n over the survival probability s = exp(-t), in the steps that float32 allows."""
    sizes = CONTINUOUS[name][0]
    edge = np.linspace(0, -np.log(0.5 * 2.0**-32), 1_000_001)
    drawn = np.asarray(sample_sizes(sizes, jnp.asarray(np.exp(-(edge[1:] + edge[:-1]) / 2), jnp.float32)), np.float64)
    weight = np.exp(-edge[:-1]) - np.exp(-edge[1:])
    np.testing.assert_allclose([weight @ drawn, weight @ drawn**2], workloads.moments(sizes), rtol=3e-3)


def test_sizes_of_laws_without_density():
    assert (np.asarray(stream(workloads.poisson(1.0, workloads.deterministic(7.5)), 0, 1000).size) == 7.5).all()
    sizes = workloads.bimodal(0.03, 50.0, 2.0)
    drawn = np.asarray(stream(workloads.poisson(1.0, sizes), 0, 100_000).size)
    assert set(np.unique(drawn)) == {50.0, 2.0}
    assert stats.binomtest(int((drawn == 50).sum()), drawn.size, 0.03).pvalue > 0.01
    np.testing.assert_allclose(workloads.moments(sizes), [0.03 * 50 + 0.97 * 2, 0.03 * 2500 + 0.97 * 4], rtol=1e-6)
    assert workloads.moments(workloads.deterministic(7.5)) == (7.5, 7.5**2)
    assert workloads.moments(workloads.pareto(1.0, 2.0)) == (np.inf, np.inf)


def test_rare_events_beyond_the_24_bits_of_a_float_happen():
    """Of 2^24 exponential draws two lie beyond log(2^23) on average; an ordinary float32 uniform yields none."""
    workload = workloads.poisson(1.0, workloads.exponential(1.0))

    def extremes(seed):
        draw = jax.vmap(workloads.draw_job, (None, None, 0, None))
        job = draw(workload, jax.random.key(seed), jnp.arange(2**17), schedules.instant(0.0))
        return job.gap.max(), job.size.max()

    gaps, sizes = jax.jit(lambda seeds: jax.lax.map(extremes, seeds))(jnp.arange(128))
    assert 23.01 * np.log(2) < gaps.max() < 23
    assert 23.01 * np.log(2) < sizes.max() < 23


@pytest.mark.parametrize("branches", [(0.01, 100.0, 1.0), (0.99, 1.0, 100.0)])
def test_the_larger_jobs_of_a_hyperexponential_reach_as_far_as_32_bits_do(branches):
    size = float(sample_sizes(workloads.hyperexponential(*branches), jnp.array([1e-9]))[0])
    assert size == pytest.approx(100 * np.log(0.01 / 1e-9), rel=1e-4)


# --- the stream ------------------------------------------------------------------------------------------------------


def test_sizes_and_gaps_are_independent_of_each_other_and_of_the_past():
    job = stream(workloads.poisson(1.0, workloads.exponential(1.0)), 0, 100_000)
    size, gap = np.asarray(job.size), np.asarray(job.gap)
    for a, b in ((size, gap), (size[1:], gap[:-1]), (size[1:], size[:-1]), (gap[1:], gap[:-1])):
        assert abs(stats.spearmanr(a, b).statistic) < 4 / np.sqrt(len(a))


def test_a_job_depends_on_key_and_index_alone():
    workload = workloads.poisson(3.0, workloads.pareto(1.5, 100.0))
    draw = jax.jit(workloads.draw_job)
    job = draw(workload, jax.random.key(1), 5, schedules.instant(0.0))
    again = draw(workload, jax.random.key(1), 5, schedules.instant(1234.5))
    assert (float(job.size), float(job.gap)) == (float(again.size), float(again.gap))
    for other in (
        draw(workload, jax.random.key(1), 6, schedules.instant(0.0)),
        draw(workload, jax.random.key(2), 5, schedules.instant(0.0)),
    ):
        assert float(job.size) != float(other.size)
        assert float(job.gap) != float(other.gap)


# --- arrivals --------------------------------------------------------------------------------------------------------


def test_poisson_gaps_are_exponential_and_regular_ones_even():
    gap = np.asarray(stream(workloads.poisson(4.0, ONE), 0, 100_000).gap, np.float64)
    assert stats.kstest(gap, stats.expon(scale=4.0).cdf).pvalue > 0.01
    assert (np.asarray(stream(workloads.regular(4.0, ONE), 0, 100).gap) == 4.0).all()


def changing_workloads() -> dict[str, Workload]:
    return {
        "modulated": workloads.modulated([1.0, 0.1], [50.0, 10.0], ONE, np.random.default_rng(0), phases=16),
        "three phases": workloads.modulated([1.0, 0.1, 5.0], [30.0, 5.0, 40.0], ONE, np.random.default_rng(0)),
        "diurnal": workloads.diurnal(0.5, 0.8, 100.0, ONE),
        "stepped": workloads.stepped([0.0, 50.0, 400.0], [2.0, 0.1, 1.0], ONE),
    }


@pytest.mark.parametrize("name", changing_workloads())
def test_arrivals_follow_their_rate(name):
    """Time rescaling: the integral of the rate over each gap is exponential of mean 1, whatever the rate does."""
    rate = changing_workloads()[name].rate
    gap = stream(changing_workloads()[name], 0, 20_000).gap
    clock = jnp.concatenate([jnp.zeros((1,)), jnp.cumsum(gap)[:-1]])
    amount = jax.jit(jax.vmap(schedules.integral, (None, 0, 0)))(rate, schedules.instant(clock), gap)
    assert stats.kstest(np.asarray(amount, np.float64), stats.expon.cdf).pvalue > 0.01


def test_regular_arrivals_follow_a_changing_rate_too():
    workload = workloads.stepped([0.0, 10.0], [2.0, 0.5], ONE)._replace(regular=jnp.ones(()))
    np.testing.assert_allclose(arrivals(workload, 0, 9), [2, 4, 6, 8, 10, 10.5, 11, 11.5, 12])


def test_modulated_arrivals_have_the_rate_and_dispersion_of_their_chain():
    """Counts in [0, t] of the two-state MMPP; Fischer and Meier-Hellstern, "The MMPP cookbook", 1993, section 2."""
    fast, slow, stay_fast, stay_slow, t = 2.0, 0.25, 8.0, 24.0, 60.0
    rng, windows = np.random.default_rng(0), 10  # of length t, of each of 250 paths that last 1024 on average
    paths = stack_tasks(
        [workloads.modulated([1 / fast, 1 / slow], [stay_fast, stay_slow], ONE, rng, phases=64) for _ in range(250)]
    )
    clock = np.cumsum(np.asarray(jax.vmap(stream, (0, 0, None))(paths, jnp.arange(250), 900).gap, np.float64), -1)
    assert clock[:, -1].min() > windows * t
    counts = np.diff([(clock <= w * t).sum(-1) for w in range(windows + 1)], axis=0).ravel()
    share = stay_fast / (stay_fast + stay_slow)
    mean = share * fast + (1 - share) * slow
    leave = 1 / stay_fast + 1 / stay_slow
    variance_of_rate = share * (1 - share) * (fast - slow) ** 2
    dispersion = 1 + 2 * variance_of_rate / (mean * leave) * (1 - (1 - np.exp(-leave * t)) / (leave * t))
    assert dispersion > 5
    error = counts.std(ddof=1) / np.sqrt(len(counts))
    assert abs(counts.mean() - mean * t) < 3 * error
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(dispersion, rel=0.08)


def test_phases_come_in_whole_turns_of_the_right_length():
    workload = workloads.modulated([1.0, 0.1, 5.0], [30.0, 5.0, 40.0], ONE, np.random.default_rng(0), phases=3000)
    rate, start = np.asarray(workload.rate.value), np.append(workload.rate.start, workload.rate.period)
    stay = np.diff(start)
    for interval, sojourn in ((1.0, 30.0), (0.1, 5.0), (5.0, 40.0)):
        here = np.isclose(rate, 1 / interval)
        assert here.sum() == 1000
        assert stay[here].mean() == pytest.approx(sojourn, rel=0.1)
    assert workloads.modulated([1.0, 2.0, 3.0], [1.0] * 3, ONE, np.random.default_rng(0), 4).rate.value.shape == (6,)
    first = [
        float(workloads.modulated([1.0, 2.0], [9.0, 1.0], ONE, np.random.default_rng(seed), 2).rate.value[0])
        for seed in range(200)
    ]
    assert first.count(1.0) == pytest.approx(180, abs=4 * np.sqrt(200 * 0.9 * 0.1))  # as in the long run


def test_diurnal_rate_integrates_to_its_sine():
    interval, swing, day = 0.5, 0.6, 96.0
    rate = workloads.diurnal(interval, swing, day, ONE, steps=48).rate
    for hours in (2.0, 24.0, 48.0, 73.0, 96.0, 96.0 + 10.0, 5 * 96.0):
        wave = swing * day / (2 * np.pi) * (1 - np.cos(2 * np.pi * hours / day))
        exact = (hours + wave) / interval
        step = abs(hours % 2)  # the steps are 2 long: exact at their borders
        got = float(jax.jit(schedules.integral)(rate, schedules.instant(0.0), hours))
        assert got == pytest.approx(exact, rel=1e-5 if step == 0 else 1e-2)
    assert schedules.mean(rate) == pytest.approx(1 / interval)


def test_steps_have_their_rates():
    start, interval = [0.0, 1000.0, 3000.0], [2.0, 0.25, 10.0]
    times = arrivals(workloads.stepped(start, interval, ONE), 0, 10_000)
    assert times[-1] > 13_000
    for begin, end, gap in zip(start, [1000.0, 3000.0, 13_000.0], interval, strict=True):
        expected = (end - begin) / gap
        assert abs(((times >= begin) & (times < end)).sum() - expected) < 4 * np.sqrt(expected)


def test_scale_changes_the_size_of_jobs_by_the_time_of_their_arrival():
    workload = workloads.regular(1.0, workloads.deterministic(2.0))
    workload = workload._replace(scale=schedules.schedule([0.0, 2.5], [1.0, 3.0]))
    assert stream(workload, 0, 4).size.tolist() == [2, 2, 6, 6]


def test_a_recording_is_played_in_order_from_its_start_and_in_a_circle():
    gap, size = [0.5, 0.0, 2.0, 1.0], [3.0, 1.0, 4.0, 1.5]
    for start in range(4):
        job = stream(workloads.recorded(gap, size, start), seed=start, jobs=10)
        order = (start + np.arange(10)) % 4
        assert job.gap.tolist() == np.array(gap)[order].tolist()
        assert job.size.tolist() == np.array(size)[order].tolist()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: workloads.deterministic(0.0), "deterministic sizes: size must be a positive number, got 0.0"),
        (lambda: workloads.exponential(-1.0), "mean must be a positive number"),
        (lambda: workloads.pareto(0.0, 1.0), "shape must be a positive number"),
        (lambda: workloads.pareto(1.5, np.nan), "scale must be a positive number, got nan"),
        (lambda: workloads.bounded_pareto(1.5, 2.0, 2.0), "low 2.0 must lie below high 2.0"),
        (lambda: workloads.lognormal(1.0, np.inf), "scv must be a positive number, got inf"),
        (lambda: workloads.hyperexponential(1.5, 1.0, 1.0), r"share must lie in \[0, 1\], got 1.5"),
        (lambda: workloads.hyperexponential(0.5, 1.0, 0.0), "second must be a positive number"),
        (lambda: workloads.bimodal(-0.1, 1.0, 1.0), r"share must lie in \[0, 1\], got -0.1"),
        (lambda: workloads.poisson(0.0, ONE), "interval must be a positive number, got 0.0"),
        (lambda: workloads.regular(np.inf, ONE), "interval must be a positive number, got inf"),
        (lambda: workloads.modulated([1.0], [1.0], ONE, np.random.default_rng(0)), "two or more of each"),
        (lambda: workloads.modulated([1.0, 2.0], [1.0], ONE, np.random.default_rng(0)), "2 intervals and 1 sojourns"),
        (lambda: workloads.modulated([1.0, 0.0], [1.0, 1.0], ONE, np.random.default_rng(0)), "interval must be"),
        (lambda: workloads.modulated([1.0, 1.0], [1.0, -1.0], ONE, np.random.default_rng(0)), "sojourn must be"),
        (lambda: workloads.modulated([1.0, 2.0], [1.0, 1.0], ONE, np.random.default_rng(0), 0), "phases must be"),
        (lambda: workloads.diurnal(1.0, 1.0, 24.0, ONE), r"swing must lie in \[0, 1\), got 1.0"),
        (lambda: workloads.diurnal(1.0, 0.5, 0.0, ONE), "day must be a positive number"),
        (lambda: workloads.stepped([0.0, 1.0], [1.0], ONE), "one length"),
        (lambda: workloads.stepped([1.0], [1.0], ONE), "begin at 0"),
        (lambda: workloads.stepped([0.0], [-1.0], ONE), "interval must be a positive number"),
        (lambda: workloads.recorded([], []), "one length"),
        (lambda: workloads.recorded([1.0, 2.0], [1.0]), "one length"),
        (lambda: workloads.recorded([1.0, -2.0], [1.0, 1.0]), "every gap must be finite and not negative"),
        (lambda: workloads.recorded([1.0, 2.0], [1.0, 0.0]), "every size must be finite and positive"),
        (lambda: workloads.recorded([1.0], [1.0], start=1), r"start must be a job in \[0, 1\), got 1"),
    ],
)
def test_impossible_workloads_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
