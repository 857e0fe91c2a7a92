"""How the tasks of a run use the experts of a mixture, read off its metrics; and whether the choice has collapsed.

An expert has *collapsed* where, on `LINES` lines of metrics in a row, no task has it, though all of them together
choose twice as many as there are, or more; or all tasks share it, two at least. To have it is to pass it on more than
1 % of one's steps, to share it is to pass it on 99 % or more. What a line leaves out (no step of a task was replayed)
says nothing of that task.
"""

from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float

from reverie.models.core import USE

LINES = 10
NEVER, ALWAYS = 0.01, 0.99


def expert_use(line: Mapping[str, SupportsFloat]) -> Float[np.ndarray, "K E"] | None:
    """The share of each task's steps that pass each expert; a row of NaN for a task that was not replayed, None where
    the run has no experts to choose from."""
    shares = {tuple(map(int, name.removeprefix(USE).split("/"))): value for name, value in line.items() if USE in name}
    if not shares:
        return None
    tasks, experts = (1 + max(key[axis] for key in shares) for axis in (0, 1))
    return np.array([[shares[task, expert] for expert in range(experts)] for task in range(tasks)], float)


def collapsed(use: Float[np.ndarray, "K E"]) -> dict[str, str]:
    """What is wrong on one line of metrics, by expert."""
    known = use[~np.isnan(use).any(1)]
    tasks, experts = known.shape
    found = {}
    for expert, shares in enumerate(known.T, 1):
        if (shares <= NEVER).all() and round(known.sum()) >= 2 * experts:
            found[f"expert {expert} of {experts}"] = "no task has used it"
        if (shares >= ALWAYS).all() and tasks > 1:
            found[f"expert {expert} of {experts}"] = f"all {tasks} tasks have shared it"
    return found


class Watch:
    """Reads a run's lines one after the other, and says when an expert collapsed, and when that was over."""

    def __init__(self):
        self._lasted: dict[tuple[str, str], int] = {}
        """Lines in a row, up to the last one."""

    def __call__(self, line: Mapping[str, SupportsFloat]) -> list[str]:
        """What is new."""
        if (use := expert_use(line)) is None:
            return []
        before, now = self._lasted, collapsed(use).items()
        self._lasted = {wrong: before.get(wrong, 0) + 1 for wrong in now}
        over = [wrong for wrong, lines in before.items() if lines >= LINES and wrong not in now]
        begun = [wrong for wrong, lines in self._lasted.items() if lines == LINES]
        said = [f"{expert} has collapsed: {why} for {LINES} lines of metrics" for expert, why in begun]
        return said + [f"{expert} has recovered: it is no longer so that {why}" for expert, why in over]
