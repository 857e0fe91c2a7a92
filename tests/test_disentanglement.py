"""Scores of codes whose score is known: the factors themselves, mixtures of them, noise, and nothing."""

import numpy as np
import pytest

from reverie.evaluate.disentanglement import dci, mig, sap, scatter

FACTORS = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
NOISE = np.random.default_rng(1).normal(size=(2000, 3))
ROTATION = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]


def test_a_perfect_code_has_every_score_near_one_in_any_order_and_direction():
    code = -FACTORS[:, [2, 0, 1]]
    found = dci(code, FACTORS)
    assert min(found[:3]) > 0.97
    assert found.importance.argmax(0).tolist() == [1, 2, 0]
    assert sap(code, FACTORS) > 0.98
    assert mig(code, FACTORS) > 0.95


def test_noise_has_no_score():
    found = dci(NOISE, FACTORS)
    assert found.informativeness == 0
    assert found.disentanglement < 0.1
    assert sap(NOISE, FACTORS) < 0.01
    assert mig(NOISE, FACTORS) < 0.05


def test_a_rotated_code_tells_as_much_and_takes_nothing_apart():
    found = dci(FACTORS @ ROTATION, FACTORS)
    assert found.informativeness > 0.85
    assert found.disentanglement < 0.7
    assert mig(FACTORS @ ROTATION, FACTORS) < 0.3


def test_unused_numbers_of_a_code_change_nothing_wherever_they_stand():
    dead = np.zeros((len(FACTORS), 1))
    for code in (np.hstack([dead, FACTORS]), np.hstack([FACTORS, dead])):
        assert dci(code, FACTORS).disentanglement == pytest.approx(dci(FACTORS, FACTORS).disentanglement, abs=0.01)
        assert sap(code, FACTORS) == pytest.approx(sap(FACTORS, FACTORS))


def test_the_gap_of_information_is_in_units_of_the_factor():
    """A code that keeps one bit of a factor of log 20 nats tells log 2 / log 20 of it."""
    assert mig(np.sign(FACTORS[:, :1]), FACTORS[:, :1]) == pytest.approx(np.log(2) / np.log(20), abs=0.01)


def test_scatter_is_the_ratio_of_variances():
    tasks = np.random.default_rng(3).normal(size=(4000, 1, 2))
    contexts = tasks + 0.5 * np.random.default_rng(4).normal(size=(4000, 50, 2))
    assert scatter(contexts) == pytest.approx(0.25, rel=0.08)


def test_factors_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="constant"):
        sap(FACTORS, np.ones((2000, 1)))
