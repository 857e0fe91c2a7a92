"""The policy held against the configured weights on the same balancer, in slices of time.

Weights act on all requests at once, so the arms take turns. A block is some slices, one of them, drawn at random, with
the configured weights; p99 of the block's two arms is compared. In mode `canary` a block has one slice of each. If the
policy made no difference, either arm would then be the worse one with probability 1/2, whatever the hours of the day
do, as order is drawn: a test by signs. It may be looked at after each block, for as long as one likes (`evidence`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb

import numpy as np

from reverie.serve.decide import Arm
from reverie.serve.settings import Mode, Trial


@dataclass(frozen=True)
class Score:
    """What blocks have shown so far."""

    worse: int = 0
    """Blocks in which the policy's p99 was above control's, and below the others."""
    better: int = 0
    lost_in_a_row: int = 0
    ratio: float = 1.0
    """The policy's p99 over control's, in the last block."""


@dataclass(frozen=True)
class Slice:
    """A stretch of time under one arm."""

    block: int
    arm: Arm
    judged: bool
    """Whether requests that end now count for it."""


def slice_at(elapsed: float, trial: Trial, mode: Mode, seed: int) -> Slice:
    """Which slice it is, `elapsed` seconds after the trial began."""
    slices = 2 if mode == "canary" else trial.active
    number, within = divmod(max(elapsed, 0.0), trial.slice)
    block, position = divmod(int(number), slices)
    arm = "control" if position == _control(slices, seed, block) else "policy"
    return Slice(block, arm, within >= trial.settle)


@lru_cache(maxsize=1)  # asked at each decision of a block
def _control(slices: int, seed: int, block: int) -> int:
    """The position of the slice of the configured weights in a block."""
    return int(np.random.default_rng((seed, block)).integers(slices))


def judge(score: Score, control: Sequence[float], policy: Sequence[float], trial: Trial) -> Score:
    """The score after a block with these response times."""
    if min(len(control), len(policy)) < trial.requests:
        return score
    ratio = float(np.quantile(policy, 0.99) / np.quantile(control, 0.99))
    return replace(
        score,
        worse=score.worse + (ratio > 1),
        better=score.better + (ratio < 1),
        lost_in_a_row=score.lost_in_a_row + 1 if ratio > trial.worse else 0,
        ratio=ratio,
    )


def lost(score: Score, trial: Trial, mode: Mode) -> str:
    """Why the trial is lost; nothing where it is not."""
    if score.lost_in_a_row >= trial.blocks:
        return f"p99 above {trial.worse} times control's in {score.lost_in_a_row} blocks in a row"
    if mode == "canary" and evidence(score.worse, score.better) >= 1 / trial.level:
        return f"p99 above control's in {score.worse} of {score.worse + score.better} blocks"
    return ""


def evidence(for_it: int, against: int) -> float:
    """How much likelier so many signs are if they favour one side than if they are fair coins: the likelihood ratio,
    averaged over all probabilities from 1/2 to 1.

    A martingale under fair coins, so it ever reaches 1 / level with probability `level` at most (Ville's inequality).
    """
    signs = for_it + against
    return sum(comb(signs + 1, k) for k in range(for_it + 1)) / ((signs + 1) * comb(signs, for_it))
