"""The training loop: compiled chunks of training, and around them everything that touches files, clocks and signals.

What is computed is the trainer's business (`train/`), what a run looks like on disk that of
`folder.py`. Here is decided when to log, evaluate, save and stop: a run that was killed goes on to the same numbers.
"""

import errno
import math
import shutil
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped
from rich.console import Console

from reverie import signals
from reverie.models.core import USE
from reverie.runs import checkpoint
from reverie.runs.experts import Watch
from reverie.runs.folder import RunFolder
from reverie.runs.folders import RunFolders
from reverie.runs.progress import Progress
from reverie.runtime import release_memory
from reverie.settings.config import LoopConfig

Metric = float | Float[np.ndarray, " S"]
"""One number, or one for each seed."""

MAY_BE_MISSING = "episode/", USE
"""Metrics whose name begins so are NaN where no episode ended, or nothing of a task was replayed; every other metric
has to be finite."""

type Evaluate[P] = Callable[[P], Mapping[str, Metric]]
"""Judges a policy on the same few episodes each time; what it returns joins the metrics."""


@runtime_checkable
class Trainer[P](Protocol):
    """An algorithm at work in a world, as pure functions of one state that holds all that training changes.

    The state is a pytree of arrays: networks, optimiser, environments, tasks, replay and random keys. `train` is
    compiled once and its argument is donated; `init` compiles what it needs itself.

    Seeds side by side (`seeds.py`) are a trainer as well: keys, state and metrics have an axis of seeds, steps and
    updates are those of each, and `P` is a policy for each.
    """

    @property
    def first_steps(self) -> int:
        """Environment steps, over all streams, that `init` takes."""
        ...

    @property
    def env_steps(self) -> int:
        """Environment steps, over all streams, of one call of `train`."""
        ...

    @property
    def updates(self) -> int:
        """Gradient updates of one call of `train`, in rounds (R) of one or several."""
        ...

    def init(self, key: Key[Array, ""]) -> PyTree: ...

    def place(self, state: PyTree) -> PyTree:
        """A state that was loaded, or its mere shapes, on the devices where `train` wants it."""
        ...

    def train(self, state: PyTree) -> tuple[PyTree, dict[str, Float[Array, " R"]]]:
        """One chunk, of a few seconds at most: signals are heard and checkpoints are made between chunks."""
        ...

    def check(self) -> None:
        """After `train`: raise what happened outside the compiled program, in a world on the host."""
        ...

    def policy(self, state: PyTree, greedy: bool = True) -> P: ...


StoppedBy = Literal["steps", "minutes", "cpu_minutes"]


class Outcome(NamedTuple):
    """Where training stopped, and what it took, all processes of the run together, without compilation."""

    state: PyTree
    env_steps: int
    updates: int
    wall_seconds: float
    cpu_seconds: float
    stopped_by: StoppedBy
    """The field of `LoopConfig` that ended it."""


class DivergedError(ArithmeticError):
    """A metric is no longer finite; the last checkpoint is from before."""


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP asked for the end; the message says what is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number
        """Of the signal."""


class _Saved(NamedTuple):
    """What a checkpoint holds."""

    state: PyTree
    updates: int
    wall_seconds: float
    cpu_seconds: float


def train[P](
    trainer: Trainer[P],
    config: LoopConfig,
    run: RunFolder | RunFolders,
    command: Sequence[str],
    seed: int | Sequence[int],
    evaluate: Evaluate[P] | None = None,
    beginning: Callable[[], tuple[PyTree, int]] | None = None,
    *,
    tell: Callable[[int, Mapping[str, int | Metric]], None] | None = None,
    title: str = "training",
    shown: Sequence[str] = (),
    quiet: bool = False,
) -> Outcome:
    """Train until `config` says stop, from the newest checkpoint of `run` on, or from the beginning without one.

    Arguments: `command`, put on record in the run; `seed`, of everything random (one for each run where several seeds
    train side by side); `evaluate`, for the learning curve; `beginning`, makes the first state, and how many steps it
    took, instead of the trainer's `init`; `tell`, is called with the step and all that is logged; `title` and `shown`,
    what the display is called and which metrics it shows; `quiet`, show no progress.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came; what is saved, the message says: all, unless the world outside, or
            compilation, was so slow that nobody should wait for it.
        WorldError: a world outside failed; nothing of that chunk is kept.
        DivergedError: a metric is not finite; nothing of that chunk is kept.
        OSError: the disk is full, or will be; what was saved before is whole.
        BlockingIOError: another process trains in this folder.
        ValueError: the checkpoint does not fit the trainer.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else jnp.stack([jax.random.key(s) for s in seed])
    shapes = jax.eval_shape(trainer.init, key)
    _check_room(run, shapes)

    def log(step: int, metrics: Mapping[str, int | Metric]) -> None:
        writer.log(step, metrics)
        if tell is not None:
            tell(step, metrics)

    with run.writer(command) as writer, _saying_what_is_kept(title, run), signals.noted() as caught:
        step, saved = writer.restore(_Saved(shapes, 0, 0.0, 0.0))
        state, updates, wall, cpu = saved
        reason = _limit_reached(config, step, wall, cpu)
        if reason is not None:  # it was finished before
            return Outcome(state, step, updates, wall, cpu, reason)
        if config.steps is not None:
            begun = step or trainer.first_steps
            end = begun + max(1, -(-(config.steps - begun) // trainer.env_steps)) * trainer.env_steps
            if end > 1.1 * config.steps:  # other than was asked for: no progress, and said to those who want none too
                _say(False, f"{title}: chunks of {trainer.env_steps:,} steps, so that it ends at {end:,} or before")
        _say(quiet, f"{title}: compiling, about 20 s the first time, cached afterwards")
        chunk = jax.jit(trainer.train, donate_argnums=0).lower(trainer.place(shapes)).compile()
        state = trainer.place(state)
        if step == 0:  # there is no checkpoint
            state, step = (trainer.init(key), trainer.first_steps) if beginning is None else beginning()
            jax.block_until_ready(state)
            trainer.check()
            if evaluate is not None:
                log(step, _line(updates, wall, cpu, evaluate(trainer.policy(state))))
        release_memory()
        seeds = 1 if isinstance(seed, int) else len(seed)
        clock, last_save, stopping = _Clock(wall, cpu, seeds), time.monotonic(), bool(caught)
        watches = [Watch() for _ in range(seeds)]
        caught.hold()
        done, share = min(step, config.steps or step), max(shares_used(config, step, wall, cpu).values())
        with Progress(config.steps, title=title, done=done, share=share, quiet=quiet) as progress:
            while not stopping:
                state, measured = chunk(state)
                measured = jax.device_get(measured)
                trainer.check()
                metrics = _means(measured, updates, trainer.updates, run)
                before, step, updates = step, step + trainer.env_steps, updates + trainer.updates
                reason = _limit_reached(config, step, *clock.read())
                if evaluate is not None and (reason or before // config.evaluate_every < step // config.evaluate_every):
                    metrics |= evaluate(trainer.policy(state))
                wall, cpu = clock.read()
                log(step, _line(updates, wall, cpu, metrics))
                for number, watch in enumerate(watches):
                    whose = f", run {number + 1} of {seeds}" if seeds > 1 else ""
                    for said in watch({name: np.atleast_1d(x)[number] for name, x in metrics.items() if USE in name}):
                        _say(quiet, f"{title}{whose}, at {step:,} environment steps: {said}")
                means = {name: float(np.mean(metrics.get(name, math.nan))) for name in shown}  # over seeds
                known = {name: value for name, value in means.items() if not math.isnan(value)}
                progress.update(step, known, updates, max(shares_used(config, step, wall, cpu).values()))
                stopping = reason is not None or bool(caught)  # a signal from here on is heard after the next chunk
                if stopping or time.monotonic() - last_save >= config.save_every:
                    writer.save(step, _Saved(state, updates, wall, cpu))
                    last_save = time.monotonic()
    if reason is None:
        number = caught.caught[0]
        name = signal.Signals(number).name
        raise Interrupted(f"{title}: stopped by {name} at {step:,} environment steps", number)
    _say(quiet, f"{title}: {_ENDINGS[reason]}, at {step:,} environment steps and {updates:,} updates")
    return Outcome(state, step, updates, wall, cpu, reason)


def newest_checkpoint(run: RunFolder) -> Path:
    """Errors: FileNotFoundError where there is none yet."""
    if (path := checkpoint.latest(run.checkpoints)) is None:
        raise FileNotFoundError(f"{run.path} has no checkpoint yet; let it train for a minute, or resume it")
    return path


def newest_state(trainer: Trainer, run: RunFolder) -> tuple[int, PyTree]:
    """The environment steps and the trainer's state of a run's newest checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: the checkpoint does not fit the trainer, is of another configuration, or is damaged.
    """
    path = newest_checkpoint(run)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    step, saved = run.load(path, _Saved(shapes, 0, 0.0, 0.0))
    return step, saved.state


def is_finished(config: LoopConfig, run: RunFolder) -> bool:
    """Whether a run has come to its end and is saved there, so that `train` would do nothing more."""
    if (newest := checkpoint.latest(run.checkpoints)) is None:
        return False
    step = checkpoint.step_of(newest)
    lines = [line for line in run.metrics() if line["step"] == step and {"wall_seconds", "cpu_seconds"} <= line.keys()]
    return bool(lines) and _limit_reached(config, step, lines[-1]["wall_seconds"], lines[-1]["cpu_seconds"]) is not None


_ENDINGS: Mapping[StoppedBy, str] = {
    "steps": "all steps are done",
    "minutes": "the time on the clock is used up",
    "cpu_minutes": "the CPU time is used up",
}


class _Clock:
    """Wall and CPU seconds from now on, added to those of the processes before this one.

    Seeds that train side by side share the CPU seconds evenly; on the wall clock all of them run at once.
    """

    def __init__(self, wall: float, cpu: float, seeds: int):
        self._wall, self._cpu, self._seeds = wall - time.monotonic(), cpu - time.process_time() / seeds, seeds

    def read(self) -> tuple[float, float]:
        return self._wall + time.monotonic(), self._cpu + time.process_time() / self._seeds


def shares_used(config: LoopConfig, step: int, wall: float, cpu: float) -> dict[StoppedBy, float]:
    """Which part of each limit is used up, after `step` environment steps and so many seconds on both clocks."""
    used: dict[StoppedBy, tuple[float, float | None]] = {
        "steps": (step, config.steps),
        "minutes": (wall / 60, config.minutes),
        "cpu_minutes": (cpu / 60, config.cpu_minutes),
    }
    return {name: amount / limit for name, (amount, limit) in used.items() if limit is not None}


def _limit_reached(config: LoopConfig, step: int, wall: float, cpu: float) -> StoppedBy | None:
    return next((name for name, share in shares_used(config, step, wall, cpu).items() if share >= 1), None)


def _line(updates: int, wall: float, cpu: float, metrics: Mapping[str, Metric]) -> dict[str, int | Metric]:
    return {"updates": updates, "wall_seconds": wall, "cpu_seconds": cpu, **metrics}


def _means(
    measured: Mapping[str, Shaped[np.ndarray, "R *S"]], before: int, updates: int, run: RunFolder | RunFolders
) -> dict[str, Metric]:
    """The mean of each metric over a chunk of `updates` updates that began after those `before`; NaN where none of its
    values exists."""
    finite = {name: np.isfinite(x).reshape(len(x), -1) for name, x in measured.items()}  # [R, seeds]
    broken = {
        name: divmod(int(at.argmin()), at.shape[1])
        for name, at in finite.items()
        if not (at.all() or name.startswith(MAY_BE_MISSING))
    }
    if broken:
        first, seed = min(broken.values())
        names = " and ".join(name for name, at in broken.items() if at == (first, seed))
        each = updates // len(next(iter(finite.values())))
        at = before + first * each + 1
        when = f"at update {at}" if each == 1 else f"in updates {at} to {at + each - 1}"
        folder = run.runs[seed]
        raise DivergedError(
            f"{names} of {folder.path} became infinite or NaN {when}. {_kept(folder)}; start "
            "a new run with a smaller learning rate or another seed"
        )
    return {name: _mean(x) if x.ndim == 1 else np.array([_mean(seed) for seed in x.T]) for name, x in measured.items()}


def _kept(run: RunFolder | RunFolders) -> str:
    """What of a run is on disk."""
    newest = checkpoint.latest(run.runs[0].checkpoints)
    return f"The checkpoint {newest} is kept" if newest else "Nothing was saved yet"


@contextmanager
def _saying_what_is_kept(title: str, run: RunFolder | RunFolders) -> Generator[None]:
    """Of work that a signal ended in the middle, nothing is kept: say what was saved before."""
    try:
        yield
    except signals.Stopped as stopped:
        raise Interrupted(f"{title}: {stopped}. {_kept(run)}", stopped.number) from None


def _mean(values: Shaped[np.ndarray, " U"]) -> float:
    """The mean of those that are finite; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _check_room(run: RunFolder | RunFolders, shapes: PyTree) -> None:
    """Refuse to begin where the checkpoints will not fit: the last two are kept while the next is written."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    needed, free = 3 * size - run.checkpoint_bytes, shutil.disk_usage(run.path).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"not enough room on the disk of {run.path}: checkpoints need {needed / 1e6:,.0f} MB more and "
            f"{free / 1e6:,.0f} MB are free. Make room, choose another folder, or a smaller replay capacity",
        )


def _say(quiet: bool, message: str) -> None:
    if not quiet:
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
