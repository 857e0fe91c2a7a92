"""Measures of forgetting and transfer, against cases worked out by hand."""

import numpy as np
import pytest
from forgetting import continual

from reverie.evaluate.statistics import over_seeds

# Rows: untrained, after task 1, 2, 3; columns: tasks 1, 2, 3.
LOGS = np.array([[1.0, 1.0, 1.0], [0.2, 0.8, 0.9], [0.1, 0.3, 0.7], [0.5, 0.4, 0.2]])


def test_measures_are_those_worked_out_by_hand():
    measured = continual(LOGS)
    # Gains: 0.8 (task 1) and 0.7 (task 2) when just learned, 0.5 and 0.6 at the end.
    assert measured.retention == pytest.approx(1.1 / 1.5)
    # Task 1 was best after stage 2, at 0.1, and task 2 at 0.3.
    assert measured.forgetting == pytest.approx((0.4 + 0.1) / 2)
    assert measured.backward == pytest.approx(-(0.3 + 0.1) / 2)
    # Before its own stage task 2 stood at 0.8 and task 3 at 0.7, both from 1.
    assert measured.forward == pytest.approx((0.2 + 0.3) / 2)
    assert measured.final == pytest.approx((0.5 + 0.4 + 0.2) / 3)


def test_a_learner_that_loses_nothing_forgets_nothing():
    kept = np.array([[1.0, 1.0], [0.1, 1.0], [0.1, 0.2]])
    measured = continual(kept)
    assert measured.retention == pytest.approx(1)
    assert (measured.forgetting, measured.backward, measured.forward) == (0, 0, 0)


def test_retention_of_nothing_is_not_a_number_and_other_measures_are():
    worse = np.array([[0.1, 0.1], [0.5, 0.5], [0.6, 0.1]])
    measured = continual(worse)
    assert np.isnan(measured.retention)
    assert measured.forgetting == pytest.approx(0.1)


def test_seeds_are_measured_side_by_side():
    both = continual(np.stack([LOGS, 2 * LOGS]))
    for name in ("forgetting", "backward", "forward", "final"):
        one = getattr(continual(LOGS), name)
        np.testing.assert_allclose(getattr(both, name), [one, 2 * one])
    np.testing.assert_allclose(both.retention, continual(LOGS).retention)  # a share has no unit


@pytest.mark.parametrize("shape", [(3, 3), (2, 1), (5, 3)])
def test_matrices_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"got {shape[0]} and {shape[1]}"):
        continual(np.zeros(shape))


def test_the_interval_over_seeds_is_students():
    estimate = over_seeds(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / np.sqrt(3)  # t of two degrees of freedom at 97.5 %, standard deviation 1
    assert estimate == pytest.approx((2, 2 - half, 2 + half))
    assert over_seeds(np.array([1.0]))[0] == 1
    assert np.isnan(over_seeds(np.array([1.0]))[1:]).all()
