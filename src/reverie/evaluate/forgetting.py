"""How much of what was learned survives learning something else: measures of continual learning.

A learner meets T tasks in turn and is tested on all of them before it begins (stage 0) and after each. What is measured
is L[i, j], the logarithm of its response time on task j after stage i over that of a fixed rule: less is better, and
its negative stands where the sources have accuracies. Differences are shares of the response time: 0.1 is about 10 %.
Training and testing happen elsewhere.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Continual(NamedTuple):
    """Measures of T tasks learned in turn, one number for each leading index. The first four concern change."""

    retention: Float[np.ndarray, "*B"]
    """Of the gain that each task but the last had when it had just been learned, summed over these tasks, the share
    that is left at the end: 1 where nothing is lost, more where later tasks helped, 0 where all tasks together are as
    bad as untrained, NaN where nothing was gained. This measure is ours."""
    forgetting: Float[np.ndarray, "*B"]
    """How far each task but the last fell from its best stage to the end, on average (Chaudhry et al. 2018, arXiv
    1801.10112, section 3.3)."""
    backward: Float[np.ndarray, "*B"]
    """Backward transfer: how much better each task but the last is at the end than just after it was learned, on
    average (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 3)."""
    forward: Float[np.ndarray, "*B"]
    """Forward transfer: how much better each task but the first is right before it is learned than untrained, on
    average (there, equation 4)."""
    final: Float[np.ndarray, "*B"]
    """L at the end, averaged over tasks (there, equation 2, with our sign: less is better)."""


def continual(logs: Float[np.ndarray, "*B I T"]) -> Continual:
    """The measures of L [T + 1, T], behind any leading axes: row 0 untrained, row i after the i-th task was learned.

    Errors: ValueError where there are fewer than two tasks, or not one stage more than tasks.
    """
    stages, tasks = logs.shape[-2:]
    if tasks < 2 or stages != tasks + 1:
        raise ValueError(f"L needs T + 1 stages (the first untrained) and T >= 2 tasks, got {stages} and {tasks}")
    good = -logs
    untrained, end = good[..., 0, :], good[..., -1, :]
    learned = np.diagonal(good[..., 1:, :], axis1=-2, axis2=-1)  # [*B, T] each task after its own stage
    before = np.diagonal(good[..., :-1, :], axis1=-2, axis2=-1)  # and before it
    best = good[..., 1:-1, :].max(-2)
    early = slice(None, -1)
    gained = (learned - untrained)[..., early].sum(-1)
    kept = (end - untrained)[..., early].sum(-1)
    return Continual(
        retention=np.divide(kept, gained, out=np.full_like(gained, np.nan), where=gained > 0),
        forgetting=(best - end)[..., early].mean(-1),
        backward=(end - learned)[..., early].mean(-1),
        forward=(before - untrained)[..., 1:].mean(-1),
        final=logs[..., -1, :].mean(-1),
    )
