"""Schedules against a float64 reference that walks the segments one by one, and against what integrals must satisfy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.schedule import Schedule

SEGMENTS = 5
properties = settings(deadline=None, max_examples=60, derandomize=True)


def walk(s: Schedule, time: float, *, duration: float = np.inf, amount: float = np.inf) -> tuple[float, float]:
    """Go on from `time` for `duration` or until the integral is `amount`: (time gone, integral), in float64."""
    start, value, period = (np.asarray(leaf, np.float64) for leaf in s)
    end = np.append(start[1:], period)
    phase = time if np.isinf(period) else time % period
    segment = np.flatnonzero(start <= phase)[-1]
    gone = done = 0.0
    while True:
        length = min(end[segment] - phase, duration - gone)
        if done + value[segment] * length >= amount:
            return gone + ((amount - done) / value[segment] if amount > done else 0.0), amount
        gone, done = gone + length, done + value[segment] * length
        if gone >= duration:
            return gone, done
        segment = (segment + 1) % len(start)
        phase = start[segment]


@st.composite
def draw_schedules(draw, periods=(False, True)) -> Schedule:
    """Up to five segments, some of no length and some of value 0; the values are round in float32."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=SEGMENTS - 1, max_size=SEGMENTS - 1))
    values = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=SEGMENTS, max_size=SEGMENTS))
    last, period = draw(st.integers(1, 40)), np.inf
    start = np.append(0, np.cumsum(lengths))
    if draw(st.sampled_from(periods)):
        period = float(start[-1] + last)
        lasts = np.diff(start, append=period) > 0
        if not np.asarray(values)[lasts].any():
            values[-1] = 1.0
    elif values[-1] == 0:
        values[-1] = 1.0
    return schedules.schedule(start / 4, values, period=period / 4)


times = st.floats(0, 200, width=32)
amounts = st.floats(0, 500, width=32)
at, integral, inverse = (
    jax.jit(lambda s, time, *rest, f=f: f(s, schedules.instant(time), *rest))
    for f in (schedules.at, schedules.integral, schedules.inverse)
)


@properties
@given(draw_schedules(), times, amounts)
def test_inverse_finds_the_shortest_duration_that_reaches_the_amount(s, time, amount):
    duration = float(inverse(s, time, amount))
    total = float(integral(s, time, duration))
    assert total == pytest.approx(amount, rel=1e-5, abs=1e-3)
    # A little less of both sides of a jump: where the value is 0 before the amount is reached, time goes by at once.
    low, high = (walk(s, time, amount=max(amount + slack, 0))[0] for slack in (-1e-3, 1e-3))
    assert low * (1 - 1e-5) - 1e-3 <= duration <= high * (1 + 1e-5) + 1e-3


@properties
@given(draw_schedules(), times, st.floats(0, 500, width=32))
def test_integral_is_the_sum_over_the_segments(s, time, duration):
    expected = walk(s, time, duration=duration)[1]
    assert float(integral(s, time, duration)) == pytest.approx(expected, rel=1e-5, abs=1e-3)


@properties
@given(draw_schedules(), times)
def test_value_at_a_time_is_that_of_its_segment(s, time):
    start, value, period = (np.asarray(leaf, np.float64) for leaf in s)
    phase = time if np.isinf(period) else time % period
    assert float(at(s, time)) == value[np.flatnonzero(start <= phase)[-1]]


@properties
@given(draw_schedules(), times, st.floats(0, 100, width=32), st.floats(0, 100, width=32))
def test_integrals_of_adjoining_spans_add_up(s, time, first, second):
    joint = integral(s, time, np.float32(first) + np.float32(second))
    parts = integral(s, time, first) + integral(s, np.float32(time) + np.float32(first), second)
    assert float(joint) == pytest.approx(float(parts), rel=1e-5, abs=1e-3)


@properties
@given(draw_schedules(periods=(True,)), st.integers(1, 30), amounts)
def test_many_periods_later_everything_is_the_same(s, periods, amount):
    time = np.float32(0.375)
    later = time + np.float32(periods) * s.period
    assert float(at(s, later)) == float(at(s, time))
    assert float(integral(s, later, amount)) == float(integral(s, time, amount))
    assert float(inverse(s, later, amount)) == float(inverse(s, time, amount))


def test_a_clock_that_is_far_along_costs_no_precision():
    # Quarter-integer times are exact up to 2^22; a difference of two cumulative integrals there would lose 3 digits.
    s = schedules.schedule([0, 2.5, 7.25], [1.0, 0.0, 0.3], period=10.0)
    time = np.float32(10 * 400_000 + 9.25)
    for amount in (1e-4, 0.1, 0.2251, 0.5, 7.7, 1234.5):
        assert float(inverse(s, time, amount)) == pytest.approx(walk(s, 9.25, amount=amount)[0], rel=1e-6)
        assert float(integral(s, time, amount)) == pytest.approx(walk(s, 9.25, duration=amount)[1], rel=1e-6)


@properties
@given(st.floats(0, 2.0**24, width=32), st.lists(st.floats(0, 100, width=32), min_size=20, max_size=60))
def test_a_time_that_is_added_up_is_the_exact_sum(first, durations):
    time = schedules.instant(first)
    for duration in durations:
        time = step(time, np.float32(duration))
    exact = math.fsum([first, *durations])
    assert float(time.coarse) == pytest.approx(exact, rel=2.0**-24, abs=0)
    assert float(time.coarse) + float(time.fine) == pytest.approx(exact, rel=1e-12)


step = jax.jit(schedules.later)


def test_a_million_periods_are_crossed_exactly():
    s = schedules.schedule([0, 1], [2.0, 0.0], period=4.0)
    assert float(integral(s, 0.5, 4e6)) == 2e6
    assert float(inverse(s, 0.0, 2e6)) == 4e6 - 3  # in the first quarter of the last period, not at its end


def test_work_begun_before_a_failure_is_finished_after_the_recovery():
    s = schedules.schedule([0, 10, 20], [1.0, 0.0, 0.5])
    assert float(inverse(s, 8.0, 2.0)) == 2.0  # just done when the failure comes
    assert float(inverse(s, 8.0, 3.0)) == 14.0
    assert float(inverse(s, 12.0, 1.0)) == 10.0
    assert float(inverse(s, 12.0, 0.0)) == 0.0
    assert float(integral(s, 8.0, 6.0)) == 2.0


@pytest.mark.parametrize(
    ("start", "values", "period"),
    [
        ([0, 4, 4.5, 13.5, 22.8, 23.3, 29.2], [0.9, 0.7, 0.3, 0.9, 0.9, 0, 0], 30.3),
        ([0, 8.1, 17.5, 18.8, 27.6, 28.8, 38.1], [0, 0, 0.1, 0.9, 0.3, 0.9, 0], 47.4),
        ([0, 1.1, 3.7, 4.3, 9.1, 11.9, 13.3], [0.3, 0, 0.1, 0, 0.7, 0, 0], 17.7),
    ],
)
def test_rounding_at_the_edge_of_a_failure_never_divides_by_zero(start, values, period):
    s = schedules.schedule(start, values, period=period)
    edges = np.cumsum(np.asarray(values, np.float32) * np.diff([*start, period]).astype(np.float32), dtype=np.float32)
    nearby = jnp.concatenate([edges * np.float32(1 + k * 2.0**-23) for k in range(-8, 9)])
    amount = jnp.concatenate([nearby + np.float32(wraps) * edges[-1] for wraps in range(3)])
    durations = jax.vmap(schedules.inverse, (None, None, 0))(s, schedules.instant(0.0), amount)
    assert np.isfinite(durations).all()
    reached = jax.vmap(schedules.integral, (None, None, 0))(s, schedules.instant(0.0), durations)
    np.testing.assert_allclose(reached, amount, rtol=2e-6)


@properties
@given(st.floats(0.0625, 100, width=32), times, amounts)
def test_one_segment_is_the_general_case(value, time, amount):
    short, long = schedules.constant(value), schedules.constant(value, segments=3)
    for f in (at, integral, inverse):
        arguments = (time,) if f is at else (time, amount)
        assert float(f(short, *arguments)) == pytest.approx(float(f(long, *arguments)), rel=1e-6)


@properties
@given(st.lists(draw_schedules(), min_size=2, max_size=4), times, amounts)
def test_padding_changes_nothing(rows, time, amount):
    longer = schedules.schedule(np.arange(8), np.arange(8) + 1.0)
    stacked = schedules.stack([*rows, longer])
    assert stacked.start.shape == (len(rows) + 1, 8)
    for f in (integral, inverse):
        batch = jax.vmap(f, (0, None, None))(stacked, jnp.float32(time), jnp.float32(amount))
        single = [float(f(s, time, amount)) for s in [*rows, longer]]
        np.testing.assert_allclose(batch, single, rtol=1e-6, atol=1e-4)


def test_mean_is_that_of_a_period_or_of_what_comes_last():
    assert schedules.mean(schedules.schedule([0, 1], [3.0, 1.0], period=4.0)) == pytest.approx(1.5)
    assert schedules.mean(schedules.schedule([0, 1], [3.0, 1.0])) == 1.0


@pytest.mark.parametrize(
    ("start", "value", "period", "message"),
    [
        ([0, 1], [1], np.inf, "one length"),
        ([], [], np.inf, "one length"),
        ([1, 2], [1, 1], np.inf, "begin at 0"),
        ([0, 2, 1], [1, 1, 1], np.inf, "never fall"),
        ([0, np.inf], [1, 1], np.inf, "begin at 0"),
        ([0, 1], [1, -1], np.inf, "not negative"),
        ([0, 1], [1, np.nan], np.inf, "finite"),
        ([0, 5], [1, 1], 5.0, "beyond the last start"),
        ([0, 5], [1, 1], np.nan, "beyond the last start"),
        ([0, 2.0**25], [1, 1], 2.0**25 + 1, "beyond the last start"),  # the same in float32
        ([0, 5], [1, 0], np.inf, "stay at 0"),
        ([0, 5, 5], [0, 1, 0], 9.0, "stay at 0"),
        ([0], [1e-50], np.inf, "stay at 0"),
    ],
)
def test_impossible_schedules_are_refused(start, value, period, message):
    with pytest.raises(ValueError, match=message):
        schedules.schedule(start, value, period)


def test_functions_work_inside_a_compiled_batch():
    rows = schedules.stack([schedules.schedule([0, 1], [1.0, 2.0], 3.0), schedules.constant(0.5)])
    capacity = jax.jit(jax.vmap(schedules.integral, (0, None, None)))(rows, schedules.instant(0.5), jnp.float32(2.0))
    np.testing.assert_allclose(capacity, [0.5 + 3.0, 1.0])
