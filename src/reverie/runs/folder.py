"""A run is a folder that explains itself: configuration, versions, metrics, checkpoints, tables, report.

    config.json      the resolved configuration
    versions.json    one entry for each process that wrote here: when, by which command, with which versions
    metrics.jsonl    one line per `log`, oldest first; `tensorboard/` holds the same for TensorBoard
    checkpoints/     the last two, as `runs/checkpoint.py` writes them
    tables/          results, as `tables.py` writes them
    report.html      the page that `reverie report` makes of the tables

Anyone may read a run at any time; one process at a time writes, through `RunFolder.writer`. What is logged and when a
checkpoint is due, the training loop decides.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, SupportsFloat

from jaxtyping import PyTree

from reverie.files import explained, locked, read_json, remove_partial, write_text
from reverie.runs import checkpoint
from reverie.runs.config_json import Json, config_differences, config_from_json, config_to_json
from reverie.runs.versions import versions


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. Make one with `create`, find one with `open`."""

    path: Path

    @property
    def runs(self) -> "tuple[RunFolder, ...]":
        """Itself, as `RunFolders` has several."""
        return (self,)

    @classmethod
    def create(cls, path: Path, config: Any) -> "RunFolder":
        """Make the folder of a new run; `path` must not exist, or be empty, or hold what a killed `create` left there.

        Raises:
            FileExistsError: something is there already.
            TypeError, ValueError: the configuration could not be stored and read back.
        """
        data = config_to_json(config)
        if config_to_json(config_from_json(type(config), data)) != data:
            raise ValueError(f"the configuration {type(config).__name__} does not survive being written and read back")
        run = cls(path)
        path.mkdir(parents=True, exist_ok=True)
        # What a kill leaves behind here is no run yet.
        unfinished = {run.checkpoints, run.tables, *path.glob(".config.json.*.partial")}
        if not unfinished.issuperset(path.iterdir()):
            raise FileExistsError(f"{path} is not empty; resume the run that is there, or choose another folder")
        for folder in (run.checkpoints, run.tables):
            folder.mkdir(exist_ok=True)
        write_text(path / "config.json", _dump(data))  # last, as it makes the folder a run
        return run

    @classmethod
    def open(cls, path: Path, config: Any = None, free: tuple[str, ...] = ()) -> "RunFolder":
        """Find a run; with `config`, make sure that it is the one the run was created with.

        Arguments: `free`, how fields begin that may differ, such as `loop.`.

        Raises:
            FileNotFoundError: `path` is not a run.
            ValueError: the run has another configuration; the message names the fields in which they differ.
        """
        run = cls(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a run (it has no config.json)")
        found = [] if config is None else config_differences(run.config_json(), config_to_json(config))
        if differences := [line for line in found if not line.startswith(free)]:
            raise ValueError(
                f"{path} was started with another configuration; go on with that one, or choose another folder.\n  "
                + "\n  ".join(differences)
            )
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint_bytes(self) -> int:
        """What the checkpoints take on the disk."""
        return sum(path.stat().st_size for path in self.checkpoints.glob("*"))

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def config[T](self, cls: type[T]) -> T:
        """The configuration that the run was created with.

        Raises:
            ValueError: it is not a configuration of type `cls`; the message names the field.
        """
        try:
            return config_from_json(cls, self.config_json())
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.json'}: {error}") from error

    def versions(self) -> list[dict[str, Any]]:
        """One entry for each process that wrote here, oldest first.

        Raises:
            ValueError: the record is damaged.
        """
        path = self.path / "versions.json"
        entries = read_json(path) if path.exists() else []
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise ValueError(
                f"{path} is damaged: it should list time, command and versions. Remove it to go on without"
            )
        return entries

    def metrics(self) -> list[dict[str, int | float]]:
        """What was logged, oldest first: `step` and the metrics; a value that was not finite is NaN.

        Raises:
            ValueError: a line other than the last is broken, named by its number.
        """
        return [line for line, _ in _read_lines(self.path / "metrics.jsonl")]

    def load[T](self, path: Path, like: T) -> tuple[int, T]:
        """The step and the state of a checkpoint of this run, in the structure of `like`.

        Raises:
            ValueError: it is damaged, of another step than its name says, of another configuration (how long a run
                trains may have changed), or does not fit `like`.
        """
        told, step = checkpoint.read_metadata(path), checkpoint.step_of(path)
        if told.get("step") != step:
            raise ValueError(f"{path} holds step {told.get('step')}: give it back the name that it had")
        differences = config_differences(told.get("config"), self.config_json())
        if differences := [line for line in differences if not line.startswith("loop.")]:
            raise ValueError(
                f"{path} was written under another configuration than {self.path / 'config.json'} holds: put back the"
                " file that was there.\n  " + "\n  ".join(differences)
            )
        return step, checkpoint.load(path, like)

    def writer(self, command: Sequence[str]) -> "RunWriter":
        """The right to write in this run, as a context manager; `command` (as in `sys.argv`) is put on record."""
        return RunWriter(self, command)

    def config_json(self) -> Json:
        """The configuration that the run was created with, as `config_to_json` gave it."""
        return read_json(self.path / "config.json")


class RunWriter:
    """Writes in a run, alone, inside its `with` block.

    A training loop begins with `restore`, then calls `log` and `save` in the order of steps, `log` before `save` where
    both are due: then a run that was killed ends with the same metrics as one that was not.
    """

    def __init__(self, run: RunFolder, command: Sequence[str]):
        self._run = run
        self._command = list(command)
        self._open = ExitStack()
        self._metrics: BinaryIO | None = None
        self._step = 0

    def __enter__(self) -> "RunWriter":
        """Take the lock of the run and put this process on record.

        Raises:
            BlockingIOError: another process writes in this run.
        """
        with ExitStack() as opened:
            opened.enter_context(locked(self._run.path / "lock", str(self._run.path)))
            for folder in (self._run.checkpoints, self._run.tables):
                folder.mkdir(exist_ok=True)  # somebody may have tidied up
            for folder in (self._run.path, self._run.tables):
                remove_partial(folder)
            record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": self._command}
            entries = [*self._run.versions(), {**record, "versions": versions()}]
            write_text(self._run.path / "versions.json", _dump(entries))
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._metrics = None
        try:
            with explained(self._run.path):
                self._open.close()
        except OSError:
            if error is None:  # otherwise the first error tells more
                raise

    def restore(self, state: PyTree, upto: int | None = None) -> tuple[int, PyTree]:
        """The step and the state of the newest checkpoint; step 0 and `state` itself where there is none.

        Arguments: `upto`, the last step whose checkpoint counts; None is any.

        What was logged after that step is dropped, as it will be logged again. A warning says if the versions are not
        those of the process before, since the numbers may then not be those of an unbroken run.

        Raises:
            ValueError: the checkpoint is damaged or does not fit `state`; a line of the metrics is broken.
        """
        newest = checkpoint.latest(self._run.checkpoints, upto)
        path = self._run.path / "metrics.jsonl"
        end = 0
        if newest is not None:
            self._step, state = self._run.load(newest, state)
            self._compare_versions()
            kept = [(line["step"], end) for line, end in _read_lines(path) if line["step"] <= self._step]
            last, end = max(kept, default=(-1, 0))
            if last < self._step:
                warnings.warn(
                    f"{path} lacks what was logged before the checkpoint at step {self._step:,}: the run goes on from "
                    "there, its learning curve has a gap",
                    stacklevel=2,
                )
        self._metrics = self._open.enter_context(path.open("ab"))
        self._metrics.truncate(end)
        from reverie.runs.tensorboard import TensorBoard  # here, as only training needs what it imports

        self._board = TensorBoard(self._run.path / "tensorboard", after=-1 if newest is None else self._step)
        self._open.callback(self._board.close)
        return self._step, state

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Write metrics of a step, to be read by others at once.

        JSON has neither NaN nor infinity: both are written as null, and read back as NaN; TensorBoard gets the value.

        Raises:
            ValueError: a step before the last one, or a metric with the name `step`.
            OSError: the disk is full.
        """
        if self._metrics is None:
            raise RuntimeError("`restore` comes before `log`")
        self._advance(step)
        if "step" in metrics:
            raise ValueError("a metric cannot have the name 'step', which is taken by the step itself")
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        with explained(self._run.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._metrics.flush()
        with explained(self._run.path / "tensorboard"):
            self._board.log(step, values)

    def save(self, step: int, state: PyTree) -> None:
        """Save a checkpoint, after everything that was logged has reached the disk.

        Raises:
            ValueError: a step before the last one.
            TypeError: something in `state` cannot be stored.
            OSError: the disk is full; the checkpoints before are whole.
        """
        if self._metrics is None:
            raise RuntimeError("`restore` comes before `save`")
        self._advance(step)
        os.fsync(self._metrics.fileno())
        self._board.flush()
        checkpoint.save_step(self._run.checkpoints, step, state, {"config": self._run.config_json()})

    def _advance(self, step: int) -> None:
        if step < self._step:
            raise ValueError(f"step {step} comes after step {self._step}; a run is written in the order of its steps")
        self._step = step

    def _compare_versions(self) -> None:
        *before, now = (entry["versions"] for entry in self._run.versions())
        before = before[-1] if before else {}
        if changes := [f"{name}: {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]:
            warnings.warn(
                f"{self._run.path} goes on under other conditions; its numbers may not be those of an unbroken run. "
                + "; ".join(changes),
                stacklevel=3,
            )


def _read_lines(path: Path) -> Iterator[tuple[dict[str, int | float], int]]:
    """The lines of the metrics, each with the offset of its end; a last line that a kill left broken is no line."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            line = _parse_line(text)
            if line is None:
                if file.read(1):
                    raise ValueError(f"{path}: line {number} is broken: {text[:80]!r}; mend or remove it")
                return
            end += len(text)
            yield line, end


def _parse_line(text: bytes) -> dict[str, int | float] | None:
    """One line of the metrics, null as NaN; None where it is broken."""
    try:
        line = json.loads(text)
        values = {name: math.nan if value is None else float(value) for name, value in line.items()}
        step = line["step"]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return values | {"step": step} if text.endswith(b"\n") and type(step) is int else None


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"command": [*words], "versions": {}}:
            return all(isinstance(word, str) for word in words)
    return False


def _dump(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
