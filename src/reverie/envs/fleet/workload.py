"""Workloads: when jobs arrive and how much work each one brings, drawn job by job from a key.

Every law is sampled by inversion of its distribution function from 32 random bits, so one job costs one call of the
generator, and the stream depends on the key and the index of the job alone: policies are compared on the same jobs.
Servers and dispatch live elsewhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.schedule import Schedule, Time


class Sizes(NamedTuple):
    """A distribution of job sizes: one of two units times a standard variate.

    The variate is 1, exponential, Pareto (from 1 on, perhaps cut off) or lognormal (of median 1), as `law` says.
    """

    law: Int[Array, "*B"]
    """One of FIXED, EXPONENTIAL, PARETO, LOGNORMAL."""
    share: Float[Array, "*B"]
    """How often the first unit is drawn."""
    units: Float[Array, "*B 2"]
    """In work units."""
    spread: Float[Array, "*B"]
    """Pareto: 1 / shape. Lognormal: the standard deviation of the logarithm."""
    cut: Float[Array, "*B"]
    """Pareto: the probability beyond its upper end, which is taken away; 0 where it has no end."""


FIXED, EXPONENTIAL, PARETO, LOGNORMAL = range(4)


class Recording(NamedTuple):
    """Recorded jobs in their order, played from `start` on and in a circle: gaps in time units, sizes in work units.

    The first `length` of the M are jobs, the others padding. Where `length` is 0, jobs are drawn instead.
    """

    gap: Float[Array, "*B M"]
    size: Float[Array, "*B M"]
    start: Int[Array, "*B"]
    length: Int[Array, "*B"]
    prompt: Float[Array, "*B M"] | None = None
    """What has to be read before a job's work can begin, in tokens; None where nothing has."""


class Workload(NamedTuple):
    """Arrivals of intensity `rate` (jobs per time unit), as a renewal process run on the clock that the rate drives.

    `regular` arrivals come at even distance on that clock, the others at exponential ones: a Poisson process, modulated
    where the rate changes. `scale` multiplies the size of jobs. A `recording` replaces all this where it has jobs.
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
    prompt: Float[Array, "*B"] | None = None
    """In tokens; None where no job of the batch has any."""


def draw_job(workload: Workload, key: Key[Array, ""], index: Int[Array, ""], clock: Time) -> Job:
    """Job number `index` of the stream `key`, the job before it (or the start) having come at `clock`."""
    # A key that is folded with a number is itself 64 fresh random bits: nothing else is drawn from it.
    bits = jax.random.key_data(jax.random.fold_in(key, index))[:2]
    # Survival probabilities in (0, 1], as fine at 0 as 32 bits allow: the tail of the laws below is there.
    survival = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    amount = jnp.where(workload.regular > 0, 1.0, -jnp.log(survival[0]))
    gap = schedules.inverse(workload.rate, clock, amount)
    size = sample_size(workload.sizes, survival[1])
    drawn = Job(size * schedules.at(workload.scale, schedules.later(clock, gap)), gap)
    recording = workload.recording
    if not recording.gap.shape[-1]:  # no task of the batch has one
        return drawn
    position = (recording.start + index) % jnp.maximum(recording.length, 1)
    is_recorded = recording.length > 0
    return Job(
        jnp.where(is_recorded, recording.size[position], drawn.size),
        jnp.where(is_recorded, recording.gap[position], drawn.gap),
        None if recording.prompt is None else jnp.where(is_recorded, recording.prompt[position], 0.0),
    )


def sample_size(sizes: Sizes, survival: Float[Array, ""]) -> Float[Array, ""]:
    """The size that a fraction `survival` of all jobs, in (0, 1], exceeds (of two units: within each of them).

    All laws are computed and one is chosen, as a batch would do anyway; they share one logarithm and one power.
    """
    # The number that chooses the unit is uniform again within it, so one number does for both.
    is_first = survival <= sizes.share
    inside = jnp.where(is_first, survival / sizes.share, (survival - sizes.share) / (1 - sizes.share))
    exponential = -jnp.log(inside + (1 - inside) * sizes.cut)
    power = jnp.exp(sizes.spread * jnp.where(sizes.law == LOGNORMAL, _normal(inside), exponential))
    variate = jnp.where(sizes.law == FIXED, 1.0, jnp.where(sizes.law == EXPONENTIAL, exponential, power))
    return variate * jnp.where(is_first, sizes.units[0], sizes.units[1])


def work_rate(workload: Workload, until: float = np.inf) -> float:
    """Work that arrives per time unit, in the long run or, where schedules do not repeat, up to `until`."""
    recorded = workload.recording
    if recorded.length > 0:
        return float(recorded.size[: recorded.length].sum() / recorded.gap[: recorded.length].sum())
    rate, scale = (schedules.mean(s, until) for s in (workload.rate, workload.scale))
    return rate * moments(workload.sizes)[0] * scale


def span(workload: Workload, jobs: int) -> float:
    """The time in which `jobs` jobs are to be expected."""
    recorded = workload.recording
    if recorded.length > 0:
        return float(recorded.gap[: recorded.length].mean()) * jobs
    return float(schedules.inverse(workload.rate, schedules.instant(0.0), jnp.float32(jobs)))


def padded(workload: Workload, rates: int, scales: int, recorded: int, prompts: bool = False) -> Workload:
    """The same jobs from schedules of `rates` and `scales` segments and a recording of `recorded` rows, in which jobs
    have `prompts`, empty ones where they had none."""
    recording, extra = workload.recording, recorded - workload.recording.gap.shape[-1]
    if prompts and recording.prompt is None:
        recording = recording._replace(prompt=jnp.zeros_like(recording.gap))
    if extra:
        gap, size, prompt = jax.tree.map(
            lambda leaf: jnp.pad(leaf, (0, extra)), (recording.gap, recording.size, recording.prompt)
        )
        recording = recording._replace(gap=gap, size=size, prompt=prompt)
    return workload._replace(
        rate=schedules.padded(workload.rate, rates), scale=schedules.padded(workload.scale, scales), recording=recording
    )


def prompt_of_work(workload: Workload) -> float:
    """Tokens to be read for each unit of work."""
    recorded = workload.recording
    if recorded.prompt is None or recorded.length == 0:
        return 0.0
    return float(recorded.prompt[: recorded.length].sum() / recorded.size[: recorded.length].sum())


def moments(sizes: Sizes) -> tuple[float, float]:
    """Mean and second moment of the job size, in work units (inf where they do not exist)."""
    share, units, spread, cut = (np.asarray(leaf, float) for leaf in sizes[1:])

    def of_variate(n: int) -> float:
        if sizes.law == PARETO:
            return _pareto_moment(1 / spread, float(cut), n)
        return {FIXED: 1.0, EXPONENTIAL: float(n), LOGNORMAL: np.exp((n * spread) ** 2 / 2)}[int(sizes.law)]  # n! = n

    first, second = (float((share * units[0] ** n + (1 - share) * units[1] ** n) * of_variate(n)) for n in (1, 2))
    return first, second


def _pareto_moment(shape: float, cut: float, n: int) -> float:
    if cut == 0:
        return shape / (shape - n) if shape > n else np.inf
    if shape == n:
        return -np.log(cut) / (1 - cut)
    return shape / (shape - n) * (1 - cut ** (1 - n / shape)) / (1 - cut)


def _normal(survival: Float[Array, ""]) -> Float[Array, ""]:
    """The standard normal quantile, to one part in 10^6 down to e^-25; Wichura 1988, algorithm AS 241 (PPND7)."""
    centre = 0.5 - survival
    r = 0.180625 - centre**2
    middle = centre * _polynomial(r, 59.109374720, 159.29113202, 50.434271938, 3.3871327179)
    middle = middle / _polynomial(r, 67.187563600, 78.757757664, 17.895169469, 1.0)
    r = jnp.sqrt(-jnp.log(jnp.maximum(jnp.minimum(survival, 1 - survival), 2.0**-33))) - 1.6
    tail = _polynomial(r, 0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777)
    tail = tail / _polynomial(r, 0.12021132975, 0.73700164250, 1.0)
    return jnp.where(jnp.abs(centre) <= 0.425, middle, jnp.sign(centre) * tail)


def _polynomial(x: Array, *coefficients: float) -> Array:
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


# --- laws of job sizes -----------------------------------------------------------------------------------------------


def _sizes(
    law: int, first: float, second: float = 1.0, share: float = 1.0, spread: float = 1.0, cut: float = 0.0
) -> Sizes:
    numbers = (jnp.asarray(x, jnp.float32) for x in (share, (first, second), spread, cut))
    return Sizes(jnp.int32(law), *numbers)


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
    return _sizes(FIXED, size)


def exponential(mean: float) -> Sizes:
    """Exponential sizes of the given mean."""
    _positive("exponential sizes", mean=mean)
    return _sizes(EXPONENTIAL, mean)


def pareto(shape: float, scale: float) -> Sizes:
    """Classical Pareto: P(size > x) = (scale / x)^shape for x >= scale."""
    _positive("Pareto sizes", shape=shape, scale=scale)
    return _sizes(PARETO, scale, spread=1 / shape)


def bounded_pareto(shape: float, low: float, high: float) -> Sizes:
    """Pareto restricted to [low, high]."""
    _positive("bounded Pareto sizes", shape=shape, low=low, high=high)
    if not low < high:
        raise ValueError(f"bounded Pareto sizes: low {low} must lie below high {high}")
    return _sizes(PARETO, low, spread=1 / shape, cut=(low / high) ** shape)


def lognormal(mean: float, scv: float) -> Sizes:
    """Lognormal by mean and squared coefficient of variation."""
    _positive("lognormal sizes", mean=mean, scv=scv)
    variance = np.log1p(scv)
    return _sizes(LOGNORMAL, mean * np.exp(-variance / 2), spread=np.sqrt(variance))


def hyperexponential(share: float, first: float, second: float) -> Sizes:
    """Exponential of mean `first` with probability `share`, of mean `second` otherwise."""
    _share("hyperexponential sizes", share)
    _positive("hyperexponential sizes", first=first, second=second)
    if second > first:  # the larger jobs go to the small survival probabilities, which are the finest
        share, first, second = 1 - share, second, first
    return _sizes(EXPONENTIAL, first, second, share)


def bimodal(share: float, first: float, second: float) -> Sizes:
    """Size `first` with probability `share`, `second` otherwise."""
    _share("bimodal sizes", share)
    _positive("bimodal sizes", first=first, second=second)
    return _sizes(FIXED, first, second, share)


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


def recorded(gap: ArrayLike, size: ArrayLike, start: int = 0, prompt: ArrayLike | None = None) -> Workload:
    """A recorded stream of jobs, played from job `start` on and in a circle. Gaps in time, sizes in work units, prompts
    in tokens."""
    gaps, works = np.asarray(gap, np.float32), np.asarray(size, np.float32)
    if gaps.ndim != 1 or gaps.shape != works.shape or not len(gaps):
        raise ValueError(f"recorded workload: gap {gaps.shape} and size {works.shape} must be two lists of one length")
    if not (np.isfinite(gaps).all() and (gaps >= 0).all()):
        raise ValueError("recorded workload: every gap must be finite and not negative")
    if not (np.isfinite(works).all() and (works > 0).all()):
        raise ValueError("recorded workload: every size must be finite and positive")
    if not 0 <= start < len(gaps):
        raise ValueError(f"recorded workload: start must be a job in [0, {len(gaps)}), got {start}")
    tokens = None if prompt is None else jnp.asarray(np.asarray(prompt, np.float32))
    if tokens is not None and (tokens.shape != gaps.shape or not (jnp.isfinite(tokens) & (tokens >= 0)).all()):
        raise ValueError(
            f"recorded workload: prompts {tokens.shape} must be one finite number, not negative, for each job"
        )
    recording = Recording(jnp.asarray(gaps), jnp.asarray(works), jnp.int32(start), jnp.int32(len(gaps)), tokens)
    return _workload(schedules.constant(1.0), deterministic(1.0))._replace(recording=recording)


def _workload(rate: Schedule, sizes: Sizes) -> Workload:
    nothing = Recording(jnp.zeros((0,)), jnp.zeros((0,)), jnp.int32(0), jnp.int32(0))
    return Workload(rate, jnp.zeros(()), sizes, schedules.constant(1.0), nothing)
