"""How well a code tells the factors of a task apart: DCI, SAP, MIG, and how far contexts of one task scatter.

Codes [M, D] are posterior means of M tasks, factors [M, K] the numbers that the tasks were made of. 1 is a code in
which each factor has a number of its own, 0 one from which nothing can be read. Needs the extra `experiments`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import RandomForestRegressor

BINS = 20
"""Intervals of equally many tasks that a number is divided into where its information is counted."""

Codes = Float[np.ndarray, "M D"]
Factors = Float[np.ndarray, "M K"]


class DCI(NamedTuple):
    """Eastwood and Williams, "A framework for the quantitative evaluation of disentangled representations", 2018."""

    disentanglement: float
    """Whether each number of the code is about one factor; numbers that matter little count little."""
    completeness: float
    """Whether each factor is in one number of the code."""
    informativeness: float
    """R² of the factors foretold from the code, for tasks that were not learned from, in the mean over factors."""
    importance: Float[np.ndarray, "D K"]
    """How much each number of the code serves to foretell each factor; columns sum to 1."""


def dci(codes: Codes, factors: Factors, seed: int = 0) -> DCI:
    """By the importance of inputs in random forests that foretell each factor from the code, learned on half of the
    tasks. A number of the code that nothing uses has weight 0, wherever it stands."""
    _check(codes, factors)
    half = len(codes) // 2
    columns, scores = [], []
    for factor in factors.T:
        forest = RandomForestRegressor(50, min_samples_leaf=3, random_state=seed).fit(codes[:half], factor[:half])
        columns.append(forest.feature_importances_)
        scores.append(max(0.0, forest.score(codes[half:], factor[half:])))
    importance = np.stack(columns, 1)  # [D, K]
    used = importance.sum(1)  # [D]
    by_code = importance / np.where(used > 0, used, 1)[:, None]
    by_factor = importance / importance.sum(0)
    disentanglement = float((_certainty(by_code.T) * used).sum() / used.sum())
    return DCI(disentanglement, float(_certainty(by_factor).mean()), float(np.mean(scores)), importance)


def sap(codes: Codes, factors: Factors) -> float:
    """How much better the best number of the code explains a factor than the second best: the difference of their R²
    by a straight line, in the mean over factors (Kumar, Sattigeri and Balakrishnan 2018, arXiv 1711.00848)."""
    _check(codes, factors)
    return float(np.mean(_lead(_correlations(codes, factors) ** 2)))


def mig(codes: Codes, factors: Factors) -> float:
    """The mutual information gap (Chen et al. 2018, arXiv 1802.04942): how much more the most telling number of the
    code tells of a factor than the second, in units of the factor's entropy, in the mean over factors. Even little
    noise lowers it far below the other two."""
    _check(codes, factors)
    binned = [[_binned(column) for column in table.T] for table in (codes, factors)]
    information = np.array([[_information(code, factor) for factor in binned[1]] for code in binned[0]])  # [D, K]
    entropy = np.array([_entropy(factor) for factor in binned[1]])  # of the factor, not of the code
    return float(np.mean(_lead(information / entropy)))


def scatter(codes: Float[np.ndarray, "M C D"]) -> float:
    """Intra-cluster variance: how far the codes of C contexts of one task lie apart, beside how far tasks do (traces
    of the covariances). 0 is one code for each task."""
    within = codes.var(1).sum(-1).mean()
    between = codes.mean(1).var(0).sum()
    return float(within / between)


def _check(codes: Codes, factors: Factors) -> None:
    if len(codes) != len(factors) or len(codes) < 2 * BINS:
        raise ValueError(
            f"codes and factors must be of the same tasks, at least {2 * BINS}, got {len(codes)} and {len(factors)}"
        )
    for name, column in (("codes", codes), ("factors", factors)):
        if not np.isfinite(column).all():
            raise ValueError(f"{name} must be finite numbers")
    if (np.ptp(factors, 0) == 0).any():
        raise ValueError("each factor must differ between tasks; one of them is a constant")


def _certainty(shares: Float[np.ndarray, "A B"]) -> Float[np.ndarray, " B"]:
    """1 where all of a column is in one place, 0 where it is spread evenly; of one place it is 1."""
    if len(shares) == 1:
        return np.ones(shares.shape[1])
    safe = np.where(shares > 0, shares, 1.0)
    return 1 + (safe * np.log(safe)).sum(0) / np.log(len(shares))


def _lead(table: Float[np.ndarray, "D K"]) -> Float[np.ndarray, " K"]:
    """The largest of each column less the second largest, 0 where there is none."""
    ordered = np.sort(np.concatenate([table, np.zeros((1, table.shape[1]))]), 0)
    return ordered[-1] - ordered[-2]


def _correlations(codes: Codes, factors: Factors) -> Float[np.ndarray, "D K"]:
    """0 for a number of the code that is a constant."""
    centred = [table - table.mean(0) for table in (codes, factors)]
    sizes = [np.sqrt((table**2).sum(0)) for table in centred]
    scaled = [table / np.where(size > 0, size, 1) for table, size in zip(centred, sizes, strict=True)]
    return scaled[0].T @ scaled[1]


def _binned(column: Float[np.ndarray, " M"]) -> np.ndarray:
    """The number of its interval for each task; equal numbers share one."""
    return np.searchsorted(np.unique(np.quantile(column, np.arange(1, BINS) / BINS)), column, side="right")


def _entropy(binned: np.ndarray) -> float:
    shares = np.bincount(binned) / len(binned)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _information(a: np.ndarray, b: np.ndarray) -> float:
    return _entropy(a) + _entropy(b) - _entropy(a * (b.max() + 1) + b)
