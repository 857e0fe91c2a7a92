"""Runs that are written together: one folder for each of the seeds that train side by side.

Each is on disk what it would be if its seed had trained alone, so whatever reads or continues a run knows nothing of
this. What a folder holds is said in `folder.py`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from reverie.runs import checkpoint
from reverie.runs.folder import RunFolder, RunWriter


@dataclass(frozen=True)
class RunFolders:
    """Runs of S seeds, in the order of the seeds' axis."""

    runs: tuple[RunFolder, ...]

    @property
    def path(self) -> Path:
        """The folder that the first run lies in."""
        return self.runs[0].path.parent

    @property
    def checkpoint_bytes(self) -> int:
        return sum(run.checkpoint_bytes for run in self.runs)

    def writer(self, command: Sequence[str]) -> "RunsWriter":
        return RunsWriter(self.runs, command)


class RunsWriter:
    """What `RunWriter` is to one run, for several; arrays lead with the axis of seeds, everything else is shared."""

    def __init__(self, runs: Sequence[RunFolder], command: Sequence[str]):
        self._runs, self._command = runs, command
        self._writers: list[RunWriter] = []
        self._open = ExitStack()

    def __enter__(self) -> "RunsWriter":
        """Errors: BlockingIOError where another process writes in one of the runs."""
        with ExitStack() as opened:
            self._writers = [opened.enter_context(run.writer(self._command)) for run in self._runs]
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._open.__exit__(kind, error, trace)

    def restore(self, state: PyTree) -> tuple[int, PyTree]:
        """The newest step that every run has a checkpoint of, and the states; step 0 and `state` where there is none.

        A kill may come when only some of the runs were saved: those go back to the step of the others.

        Raises:
            ValueError: a checkpoint is damaged or does not fit `state`, or the runs have no step in common.
        """
        newest = [checkpoint.latest(run.checkpoints) for run in self._runs]
        upto = min(-1 if path is None else checkpoint.step_of(path) for path in newest)
        restored = [writer.restore(_of(state, i), upto) for i, writer in enumerate(self._writers)]
        steps = {step for step, _ in restored}
        if len(steps) > 1:
            found = ", ".join(f"{run.path}: {step}" for run, (step, _) in zip(self._runs, restored, strict=True))
            raise ValueError(
                "runs go on side by side from a step that all of them have a checkpoint of, and these have none in"
                f" common (the last up to step {upto}: {found}). Resume each of them alone"
            )
        step = steps.pop()
        return step, state if step == 0 else jax.tree.map(_stack, *(state for _, state in restored))

    def log(self, step: int, metrics: Mapping[str, SupportsFloat | Shaped[np.ndarray, " S"]]) -> None:
        """Write metrics of a step; a vector has one number for each run."""
        for i, writer in enumerate(self._writers):
            values = {name: x[i] if isinstance(x, np.ndarray) and x.ndim else x for name, x in metrics.items()}
            writer.log(step, values)

    def save(self, step: int, state: PyTree) -> None:
        """Save a checkpoint in each run, one after the other."""
        for i, writer in enumerate(self._writers):
            writer.save(step, _of(state, i))


def _of(state: PyTree, seed: int) -> PyTree:
    """What belongs to one seed: a part of each array (or its shape), and all that is shared."""

    def part(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda x: x[seed], leaf)
        return leaf[seed] if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(part, state)


def _stack(*leaves: Array | float | int) -> Array | float | int:
    return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else leaves[0]
