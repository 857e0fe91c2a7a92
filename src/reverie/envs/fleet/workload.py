"""Workloads: when jobs arrive and how much work each one brings, drawn job by job from a key.

Every law is sampled by inversion of its distribution function from 32 random bits, so one job costs one call of the
generator, and the stream depends on the key and the index of the job alone: policies are compared on the same jobs.
Servers and dispatch live elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.schedule import Schedule


class Sizes(NamedTuple):
    """A distribution of job sizes in work units: `law` chooses the family, `parameters` its three numbers."""

    law: Int[Array, "*B"]
    parameters: Float[Array, "*B 3"]


class Recording(NamedTuple):
    """Recorded jobs in their order, played from `start` on and in a circle: gaps in time units, sizes in work units."""

    gap: Float[Array, "*B M"]
    size: Float[Array, "*B M"]
    start: Int[Array, "*B"]


class Workload(NamedTuple):
    """Arrivals of intensity `rate` (jobs per time unit), as a renewal process run on the clock that the rate drives.

    `regular` arrivals come at even distance on that clock, the others at exponential ones: a Poisson process, modulated
    where the rate changes. `scale` multiplies the size of jobs. A `recording` (M > 0) replaces all this where given.
    """

    rate: Schedule
    regular: Float[Array, "*B"]
    sizes: Sizes
    scale: Schedule
    recording: Recording


class Job(NamedTuple):
    """A job: its size in work units, and the time since the arrival before it."""

    size: Float[Array, "*B"]
    gap: Float[Array, "*B"]


def draw_job(workload: Workload, key: Key[Array, ""], index: Int[Array, ""], clock: Float[Array, ""]) -> Job:
    """Job number `index` of the stream `key`, the job before it (or the start) having come at `clock`."""
    recording = workload.recording
    if recording.gap.shape[-1]:
        position = (recording.start + index) % recording.gap.shape[-1]
        return Job(recording.size[position], recording.gap[position])
    bits = jax.random.bits(jax.random.fold_in(key, index), (2,), jnp.uint32)
    # Survival probabilities in (0, 1], as fine at 0 as 32 bits allow: the tail of the laws below is there.
    survival = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    amount = jnp.where(workload.regular > 0, 1.0, -jnp.log(survival[0]))
    gap = schedules.inverse(workload.rate, clock, amount)
    size = sample_size(workload.sizes, survival[1])
    return Job(size * schedules.at(workload.scale, clock + gap), gap)


def sample_size(sizes: Sizes, survival: Float[Array, ""]) -> Float[Array, ""]:
    """The size that a fraction `survival` of all jobs, in (0, 1], exceeds (for mixtures: within their branch)."""
    return jax.lax.switch(sizes.law, [law.sample for law in LAWS], sizes.parameters, survival)


def moments(sizes: Sizes) -> tuple[float, float]:
    """Mean and second moment of the job size, in work units (inf where they do not exist)."""
    p = np.asarray(sizes.parameters, float)
    law = LAWS[int(sizes.law)]
    return float(law.moment(p, 1)), float(law.moment(p, 2))


# --- laws of job sizes -----------------------------------------------------------------------------------------------


class Law(NamedTuple):
    """A family of distributions: its inverse survival function, and its n-th moment, of three parameters p."""

    sample: Callable[[Array, Array], Array]
    moment: Callable[[np.ndarray, int], float]


def _pareto_moment(p: np.ndarray, n: int) -> float:
    shape, scale, _ = p
    return shape * scale**n / (shape - n) if shape > n else np.inf


def _bounded_pareto_sample(p: Array, survival: Array) -> Array:
    shape, low, high = p
    top = jnp.exp(jnp.log(low / high) * shape)  # what survives to the upper end
    return low * jnp.exp(-jnp.log(survival + (1 - survival) * top) / shape)


def _bounded_pareto_moment(p: np.ndarray, n: int) -> float:
    shape, low, high = p
    mass = shape * low**shape / (1 - (low / high) ** shape)
    if shape == n:
        return mass * np.log(high / low)
    return mass * (high ** (n - shape) - low ** (n - shape)) / (n - shape)


def _lognormal_sample(p: Array, survival: Array) -> Array:
    # ndtri is infinite at 1, to which the largest of the 2^32 values rounds.
    return jnp.exp(p[0] - p[1] * jax.scipy.special.ndtri(jnp.minimum(survival, 1 - 2.0**-24)))


def _hyperexponential_sample(p: Array, survival: Array) -> Array:
    # The number that chooses the branch is uniform again within it, so one number does for both.
    share, first, second = p
    inside = jnp.where(survival <= share, survival / share, (survival - share) / (1 - share))
    return -jnp.where(survival <= share, first, second) * jnp.log(inside)


def _mixture_moment(p: np.ndarray, n: int) -> float:
    share, first, second = p
    return share * first**n + (1 - share) * second**n


DETERMINISTIC = Law(lambda p, survival: p[0], lambda p, n: p[0] ** n)
EXPONENTIAL = Law(lambda p, survival: -p[0] * jnp.log(survival), lambda p, n: n * p[0] ** n)
PARETO = Law(lambda p, survival: p[1] * jnp.exp(-jnp.log(survival) / p[0]), _pareto_moment)
BOUNDED_PARETO = Law(_bounded_pareto_sample, _bounded_pareto_moment)
LOGNORMAL = Law(_lognormal_sample, lambda p, n: float(np.exp(n * p[0] + (n * p[1]) ** 2 / 2)))
HYPEREXPONENTIAL = Law(
    _hyperexponential_sample,
    lambda p, n: n * _mixture_moment(p, n),
)
BIMODAL = Law(lambda p, survival: jnp.where(survival <= p[0], p[1], p[2]), _mixture_moment)
LAWS = (DETERMINISTIC, EXPONENTIAL, PARETO, BOUNDED_PARETO, LOGNORMAL, HYPEREXPONENTIAL, BIMODAL)
"""In the order of `Sizes.law`. Moments are wanted for n = 1 and 2 only, where n! = n."""


def _sizes(law: Law, *parameters: float) -> Sizes:
    values = [*parameters, *[0.0] * (3 - len(parameters))]
    return Sizes(jnp.int32(LAWS.index(law)), jnp.asarray(values, jnp.float32))


def _positive(law: str, **parameters: float | int) -> None:
    for name, value in parameters.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{law}: {name} must be a positive number, got {value}")


def _share(law: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{law}: share must lie in [0, 1], got {share}")


def deterministic(size: float) -> Sizes:
    """Every job has the same size."""
    _positive("deterministic sizes", size=size)
    return _sizes(DETERMINISTIC, size)


def exponential(mean: float) -> Sizes:
    """Exponential sizes of the given mean."""
    _positive("exponential sizes", mean=mean)
    return _sizes(EXPONENTIAL, mean)


def pareto(shape: float, scale: float) -> Sizes:
    """Classical Pareto: P(size > x) = (scale / x)^shape for x >= scale."""
    _positive("Pareto sizes", shape=shape, scale=scale)
    return _sizes(PARETO, shape, scale)


def bounded_pareto(shape: float, low: float, high: float) -> Sizes:
    """Pareto restricted to [low, high]."""
    _positive("bounded Pareto sizes", shape=shape, low=low, high=high)
    if not low < high:
        raise ValueError(f"bounded Pareto sizes: low {low} must lie below high {high}")
    return _sizes(BOUNDED_PARETO, shape, low, high)


def lognormal(mean: float, scv: float) -> Sizes:
    """Lognormal by mean and squared coefficient of variation."""
    _positive("lognormal sizes", mean=mean, scv=scv)
    variance = np.log1p(scv)
    return _sizes(LOGNORMAL, np.log(mean) - variance / 2, np.sqrt(variance))


def hyperexponential(share: float, first: float, second: float) -> Sizes:
    """Exponential of mean `first` with probability `share`, of mean `second` otherwise."""
    _share("hyperexponential sizes", share)
    _positive("hyperexponential sizes", first=first, second=second)
    if second > first:  # the branch of the larger jobs goes to the small survival probabilities, which are the finest
        share, first, second = 1 - share, second, first
    return _sizes(HYPEREXPONENTIAL, share, first, second)


def bimodal(share: float, first: float, second: float) -> Sizes:
    """Size `first` with probability `share`, `second` otherwise."""
    _share("bimodal sizes", share)
    _positive("bimodal sizes", first=first, second=second)
    return _sizes(BIMODAL, share, first, second)


# --- arrivals --------------------------------------------------------------------------------------------------------


def poisson(interval: float, sizes: Sizes) -> Workload:
    """Poisson arrivals, `interval` time units apart on average."""
    _positive("Poisson arrivals", interval=interval)
    return _workload(schedules.constant(1 / interval), sizes)


def regular(interval: float, sizes: Sizes) -> Workload:
    """One job every `interval` time units."""
    _positive("regular arrivals", interval=interval)
    return _workload(schedules.constant(1 / interval), sizes)._replace(regular=jnp.ones(()))


def modulated(
    intervals: Sequence[float], sojourns: Sequence[float], sizes: Sizes, rng: np.random.Generator, phases: int = 64
) -> Workload:
    """A Markov-modulated Poisson process: phases come in turn, each for an exponential time.

    Arguments: `intervals` [K] mean gap in each phase, `sojourns` [K] mean stay in each, `rng` draws the path, `phases`
    how many stays are drawn before the path repeats, rounded up to whole turns through the K. The first phase is drawn
    in proportion to the sojourns: the process is stationary. With K = 2 this is the classical two-state MMPP.
    """
    if len(intervals) != len(sojourns) or len(intervals) < 2:
        raise ValueError(
            f"modulated arrivals: {len(intervals)} intervals and {len(sojourns)} sojourns, want two or more of each"
        )
    for interval, sojourn in zip(intervals, sojourns, strict=True):
        _positive("modulated arrivals", interval=interval, sojourn=sojourn)
    _positive("modulated arrivals", phases=phases)
    states, stays = len(intervals), np.asarray(sojourns, float)
    phase = (rng.choice(states, p=stays / stays.sum()) + np.arange(-(-phases // states) * states)) % states
    stay = rng.exponential(stays[phase])
    start = np.concatenate([[0.0], np.cumsum(stay)])
    rate = schedules.schedule(start[:-1], 1 / np.asarray(intervals, float)[phase], period=start[-1])
    return _workload(rate, sizes)


def diurnal(interval: float, swing: float, day: float, sizes: Sizes, steps: int = 48) -> Workload:
    """Poisson arrivals whose rate follows a sine of length `day` around 1 / interval, in `steps` even steps.

    Arguments: `swing` in [0, 1), the sine's amplitude as a share of the mean rate; the day begins at its mean, rising.
    """
    _positive("diurnal arrivals", interval=interval, day=day, steps=steps)
    if not 0 <= swing < 1:
        raise ValueError(f"diurnal arrivals: swing must lie in [0, 1), got {swing}")
    hours = np.arange(steps)
    # The mean of the sine over each step, so that the steps integrate to the sine exactly at their borders.
    wave = (np.cos(2 * np.pi * hours / steps) - np.cos(2 * np.pi * (hours + 1) / steps)) * steps / (2 * np.pi)
    return _workload(schedules.schedule(hours * day / steps, (1 + swing * wave) / interval, period=day), sizes)


def stepped(start: ArrayLike, intervals: ArrayLike, sizes: Sizes) -> Workload:
    """Poisson arrivals of mean gap `intervals[l]` from time `start[l]` on: levels that change inside an episode."""
    gaps = np.asarray(intervals, float)
    for gap in gaps:
        _positive("stepped arrivals", interval=gap)
    return _workload(schedules.schedule(start, 1 / gaps), sizes)


def recorded(gap: ArrayLike, size: ArrayLike, start: int = 0) -> Workload:
    """A recorded stream of jobs, played from job `start` on and in a circle. Gaps in time, sizes in work units."""
    gaps, works = np.asarray(gap, np.float32), np.asarray(size, np.float32)
    if gaps.ndim != 1 or gaps.shape != works.shape or not len(gaps):
        raise ValueError(f"recorded workload: gap {gaps.shape} and size {works.shape} must be two lists of one length")
    if not (np.isfinite(gaps).all() and (gaps >= 0).all()):
        raise ValueError("recorded workload: every gap must be finite and not negative")
    if not (np.isfinite(works).all() and (works > 0).all()):
        raise ValueError("recorded workload: every size must be finite and positive")
    if not 0 <= start < len(gaps):
        raise ValueError(f"recorded workload: start must be a job in [0, {len(gaps)}), got {start}")
    recording = Recording(jnp.asarray(gaps), jnp.asarray(works), jnp.int32(start))
    return _workload(schedules.constant(1.0), deterministic(1.0))._replace(recording=recording)


def _workload(rate: Schedule, sizes: Sizes) -> Workload:
    nothing = Recording(jnp.zeros((0,)), jnp.zeros((0,)), jnp.int32(0))
    return Workload(rate, jnp.zeros(()), sizes, schedules.constant(1.0), nothing)
