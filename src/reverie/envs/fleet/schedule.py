"""Piecewise-constant functions of time, integrated and inverted exactly.

One mechanism serves everything that changes: the speed of a server (whose integral is capacity and whose inverse is a
finish time), the rate of arrivals (whose inverse turns unit gaps into real ones: bursts, days, levels) and the scale of
job sizes. Nothing here knows of servers or jobs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike


class Schedule(NamedTuple):
    """`value[p]` holds from `start[p]` to `start[p + 1]`; after `period` it all begins again (inf: it never does).

    `start[0]` is 0 and `start` does not fall; segments of no length are padding, so that schedules of different length
    stand in one batch. Leading axes (servers, tasks) are `jax.vmap`.
    """

    start: Float[Array, "*B P"]
    value: Float[Array, "*B P"]
    period: Float[Array, "*B"]


class Time(NamedTuple):
    """A time as the sum of two float32, `coarse` the nearest: 48 bits, so that millions of jobs neither shift the clock
    nor blur where in its period a schedule is."""

    coarse: Float[Array, "*B"]
    fine: Float[Array, "*B"]


def instant(time: jax.typing.ArrayLike) -> Time:
    """A time that one float32 holds."""
    coarse = jnp.asarray(time, jnp.float32)
    return Time(coarse, jnp.zeros_like(coarse))


def later(time: Time, duration: Float[Array, ""]) -> Time:
    """`time + duration`, with what rounding takes away kept in `fine` (Knuth's two-sum)."""
    coarse = time.coarse + duration
    added = coarse - time.coarse
    fine = time.fine + ((time.coarse - (coarse - added)) + (duration - added))
    nearest = coarse + fine
    return Time(nearest, fine - (nearest - coarse))


def schedule(start: ArrayLike, value: ArrayLike, period: float = np.inf) -> Schedule:
    """A schedule from its segments.

    Arguments: `start` and `value` [P], times and values of the segments; `period`, after which it repeats.
    Errors: ValueError where lengths differ, `start` does not begin at 0 or falls, a value is negative or not finite,
    the period is not beyond the last start, or the value stays 0 from some time on (a job could then never end).
    """
    # Judged as stored, in float32, where small values become 0 and near times the same.
    starts, values, end = (np.asarray(x, np.float32) for x in (start, value, period))
    if starts.ndim != 1 or starts.shape != values.shape or not len(starts):
        raise ValueError(f"schedule: start {starts.shape} and value {values.shape} must be two lists of one length")
    if starts[0] != 0 or (np.diff(starts) < 0).any() or not np.isfinite(starts).all():
        raise ValueError(f"schedule: start must begin at 0 and never fall, got {starts.tolist()}")
    if (values < 0).any() or not np.isfinite(values).all():
        raise ValueError(f"schedule: values must be finite and not negative, got {values.tolist()}")
    if not end > starts[-1]:
        raise ValueError(f"schedule: period {period} must lie beyond the last start {starts[-1]}")
    lasting = values[-1:] if np.isinf(end) else values[np.diff(starts, append=end) > 0]
    if not lasting.any():
        raise ValueError(f"schedule: it must not stay at 0 for ever, or work would never end; got {values.tolist()}")
    return Schedule(jnp.asarray(starts), jnp.asarray(values), jnp.asarray(end))


def constant(value: float, segments: int = 1) -> Schedule:
    """A schedule that never changes, padded to `segments` [P]."""
    return schedule([0.0] * segments, [value] * segments)


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Schedules of different length side by side, the shorter ones padded: start and value [N, P], period [N]."""
    longest = max(s.start.shape[-1] for s in schedules)
    rows = [padded(s, longest) for s in schedules]
    return Schedule(*(jnp.asarray(np.stack(leaves)) for leaves in zip(*rows, strict=True)))


def padded(s: Schedule, segments: int) -> Schedule:
    """The same function in `segments` segments: the last one is repeated, and its repetitions have no length."""
    extra = segments - s.start.shape[-1]

    def longer(x: Array) -> Array:
        return jnp.asarray(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)], mode="edge"))

    return s if extra == 0 else s._replace(start=longer(s.start), value=longer(s.value))


def at(s: Schedule, time: Time) -> Float[Array, ""]:
    """The value at `time`."""
    if s.start.shape[-1] == 1:
        return s.value[0]
    return s.value[(_until(s.start, _phase(s, time)) <= 0).sum() - 1]


def integral(s: Schedule, time: Time, duration: Float[Array, ""]) -> Float[Array, ""]:
    """The integral over [time, time + duration): for a server, the work it can do in that time."""
    if s.start.shape[-1] == 1:
        return s.value[0] * duration
    phase = _phase(s, time)
    rest = _until(s.period, phase)
    within = _partial(s, phase, jnp.minimum(duration, rest))
    beyond = jnp.maximum(duration - rest, 0)
    whole = jnp.where(jnp.isinf(s.period), 0.0, jnp.floor(beyond / s.period))
    return within + whole * _total(s) + _partial(s, instant(0.0), _remainder(beyond, whole, s.period))


def inverse(s: Schedule, time: Time, amount: Float[Array, ""]) -> Float[Array, ""]:
    """The shortest duration whose integral from `time` on reaches `amount` >= 0: for a server, the time to do the work.

    Exact segment by segment and relative to `time`, so nothing is lost to rounding when the clock is far along.
    """
    if s.start.shape[-1] == 1:
        return amount / s.value[0]
    phase = _phase(s, time)
    rest = _until(s.period, phase)
    within = jnp.where(jnp.isinf(s.period), jnp.inf, _partial(s, phase, rest))
    beyond = jnp.where(amount > within, amount - within, 0.0)
    total = _total(s)
    # A last period that is filled to the brim belongs to the search below, hence ceil - 1 and not floor.
    whole = jnp.where(jnp.isinf(s.period), 0.0, jnp.maximum(jnp.ceil(beyond / total) - 1, 0))
    wrapped = rest + jnp.where(whole > 0, whole * s.period, 0.0)
    wrapped = wrapped + _search(s, instant(0.0), _remainder(beyond, whole, total))
    return jnp.where(amount > within, wrapped, _search(s, phase, amount))


def mean(s: Schedule, until: float = np.inf) -> float:
    """The value on average: over one period or, where nothing repeats, from 0 to `until` (inf: after the last change).

    In the long run a schedule that never repeats is what it was last; over an episode it is not.
    """
    if np.isfinite(s.period):
        return float(_total(s) / s.period)
    if np.isinf(until) or s.start.shape[-1] == 1:
        return float(s.value[-1])
    border = np.minimum(np.append(s.start, np.inf).astype(float), until)
    return float(np.diff(border) @ np.asarray(s.value, float)) / until


def _phase(s: Schedule, time: Time) -> Time:
    """The time since the current period began, as exact as the period; the time itself where nothing repeats."""
    once = jnp.isinf(s.period)
    within = jnp.mod(jnp.mod(time.coarse, s.period) + jnp.mod(time.fine, s.period), s.period)
    return Time(jnp.where(once, time.coarse, within), jnp.where(once, time.fine, 0.0))


def _until(then: Array | np.ndarray, time: Time) -> Array:
    return (jnp.asarray(then) - time.coarse) - time.fine


def _remainder(x: Array, whole: Array, unit: Array) -> Array:
    return jnp.where(whole > 0, x - whole * unit, x)


def _overlaps(s: Schedule, phase: Time) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """When each segment begins and ends, counted from `phase`; 0 where that has passed."""
    end = jnp.concatenate([s.start[1:], s.period[None]])
    return jnp.maximum(_until(s.start, phase), 0), jnp.maximum(_until(end, phase), 0)


def _partial(s: Schedule, phase: Time, duration: Float[Array, ""]) -> Float[Array, ""]:
    begin, end = _overlaps(s, phase)
    return (s.value * (jnp.clip(duration, begin, end) - begin)).sum()


def _total(s: Schedule) -> Float[Array, ""]:
    return _partial(s, instant(0.0), jnp.where(jnp.isinf(s.period), 0.0, s.period))


def _search(s: Schedule, phase: Time, amount: Float[Array, ""]) -> Float[Array, ""]:
    """`inverse` within the period that holds `phase`; the last segment is taken to go on for ever."""
    begin, end = _overlaps(s, phase)
    done = jnp.cumsum(s.value[:-1] * (end - begin)[:-1])  # [P - 1] at the end of each segment but the last
    segment = (done < amount).sum()
    before = jnp.concatenate([jnp.zeros((1,)), done])[segment]
    missing = amount - before
    # Rounding can leave a crumb for a segment of value 0: it counts as done when that segment begins.
    return begin[segment] + jnp.where((missing > 0) & (s.value[segment] > 0), missing / s.value[segment], 0.0)
