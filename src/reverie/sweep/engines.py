"""Where the workers of many training runs live: in this process, in others of this machine, or on a Ray cluster.

An engine starts workers and says how each ended. Which run is next, and what becomes of one whose worker was killed,
is decided in `side_by_side.py`, for all engines alike; what a worker does stands in `worker.py`.
"""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.runs.loop import DivergedError
from reverie.settings.config import TrainConfig
from reverie.sweep.training import train_run
from reverie.sweep.worker import LOG, work

_PATIENCE = 60.0  # seconds that workers have to save their run when all is stopped


class Ending(NamedTuple):
    """How a worker ended."""

    how: Literal["done", "failed", "killed"]
    """Failed: it would fail again. Killed: it was stopped from outside, and another may go on."""
    words: str = ""
    """Why, where it is not done."""


type Poll = Callable[[], Ending | None]
"""How a worker ended, or None while it is at work."""


@runtime_checkable
class Engine(Protocol):
    """Starts workers within its `with` block, at whose end it stops those that are left: they save their runs."""

    @property
    def workers(self) -> int:
        """How many there may be at a time; known within the block."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *error: object) -> None: ...

    def launch(self, folder: Path, command: Sequence[str]) -> Poll:
        """Begin to work on the run in a folder; `command` is put on record there."""
        ...


class Here:
    """This process itself, which shows the progress of one run after the other."""

    workers = 1

    def __init__(self, quiet: bool = False):
        """Arguments: `quiet`, show no progress."""
        self._quiet = quiet

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def launch(self, folder: Path, command: Sequence[str]) -> Poll:
        run = RunFolder.open(folder)
        config = run.config(TrainConfig)
        try:
            train_run(config, build(config), run, command, self._quiet)
        except DivergedError as error:  # the others may do better
            ending = Ending("failed", str(error))
        else:
            ending = Ending("done")
        return lambda: ending


class Local:
    """Worker processes on this machine, each on cores of its own."""

    def __init__(self, workers: int | None = None):
        """Arguments: `workers`, how many at a time; one for each core unless given.

        Raises:
            ValueError: fewer than one.
        """
        _check_workers(workers)
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.workers = workers or len(self._cores) or os.cpu_count() or 1
        self._processes: dict[int, subprocess.Popen[str]] = {}  # by place, which decides the cores

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()  # which tells it to save and to end
        latest = time.monotonic() + _PATIENCE
        for process in self._processes.values():
            try:
                process.wait(max(0.0, latest - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)
        self._processes.clear()

    def launch(self, folder: Path, command: Sequence[str]) -> Poll:
        place = min(set(range(len(self._processes) + 1)) - self._processes.keys())
        with (folder / LOG).open("ab") as log, _on(self._cores_of(place)):
            process = subprocess.Popen(
                [sys.executable, "-m", "reverie.sweep.worker", str(folder.absolute()), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,  # an interrupt from the keyboard is for us, and we tell them
            )
        self._processes[place] = process

        def poll() -> Ending | None:
            if (code := process.poll()) is None:
                return None
            del self._processes[place]
            words = _close(process)
            if code == 0:
                return Ending("done")
            if code < 0 or code > 128:
                return Ending("killed", f"its worker was ended by {_signal_name(-code if code < 0 else code - 128)}")
            return Ending("failed", words or _last_line(folder / LOG) or f"its worker ended with code {code}")

        return poll

    def _cores_of(self, place: int) -> set[int]:
        """An equal share of the cores, one at least; empty where the system does not bind processes to cores."""
        share = max(1, len(self._cores) // self.workers)
        return {self._cores[(place * share + i) % len(self._cores)] for i in range(share)} if self._cores else set()


class Ray:
    """Tasks of a Ray cluster, each with one core and a process of its own; run folders must be on a shared disk."""

    def __init__(self, address: str | None = None, workers: int | None = None):
        """Arguments: `address` of the cluster, such as `auto` or `HOST:6379`; unless given, the one that RAY_ADDRESS
        names, or one that runs on this machine, or a new one of this machine alone. `workers`, how many at a time; one
        for each core of the cluster unless given.

        Raises:
            ValueError: fewer than one worker, or Ray is not installed.
        """
        _check_workers(workers)
        # Started by `uv run`, Ray would copy the project and make an environment of its own for each worker. Ours run
        # this one, which like the run folders is on a shared disk. Ray reads this when it is imported.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray.exceptions
        except ImportError as error:
            raise ValueError(
                f"the engine ray needs Ray ({error}): pip install 'reverie[ray]', or use --engine local"
            ) from error
        self._ray = ray
        self._address = address
        self.workers = workers or 1
        self._all_cores = workers is None
        self._tasks = set()

    def __enter__(self) -> "Ray":
        """Connect.

        Raises:
            ConnectionError: there is no cluster at that address.
        """
        with warnings.catch_warnings():
            # Ray forks to start its servers, of which JAX warns; they become other programs at once.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            self._ray.init(self._address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if self._all_cores:
            self.workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return self

    def __exit__(self, *error: object) -> None:
        for task in self._tasks:
            self._ray.cancel(task)  # as an interrupt from the keyboard would: it saves and ends
        if self._tasks:
            self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=_PATIENCE)
        self._tasks.clear()
        self._ray.shutdown()

    def launch(self, folder: Path, command: Sequence[str]) -> Poll:
        # A process for each run (max_calls), as JAX keeps its memory; whether a killed one is replaced, we decide.
        remote = self._ray.remote(num_cpus=1, max_retries=0, max_calls=1)(work)
        task = remote.remote(folder.absolute(), [*command])
        self._tasks.add(task)

        def poll() -> Ending | None:
            if not self._ray.wait([task], timeout=0)[0]:
                return None
            self._tasks.discard(task)
            try:
                words = self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:  # not within the work itself
                return Ending("failed", str(error))
            except self._ray.exceptions.RayError as error:
                return Ending("killed", f"its worker was lost: {str(error).strip().splitlines()[0]}")
            return Ending("done") if words is None else Ending("failed", words)

        return poll


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


@contextmanager
def _on(cores: set[int]) -> Generator[None]:
    """Processes that are started here are bound to these cores from their first moment, before they make threads."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _close(process: subprocess.Popen[str]) -> str:
    """Let go of the pipes of a process that has ended; returns its words."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # it may have been already, which is how a worker is told to end
    with process.stdout:
        return process.stdout.read().strip()


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
