"""How far many training runs are, in one table on the terminal; plain lines where there is no terminal.

What is shown is read from the runs' folders, wherever the processes are that train them. It goes to standard error.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reverie.runs.folder import RunFolder
from reverie.runs.loop import shares_used
from reverie.runs.progress import Terminal, duration
from reverie.settings.config import TrainConfig

State = Literal["waiting", "running", "done", "failed"]

_LIVE_SECONDS, _PLAIN_SECONDS = 1.0, 30.0  # between two looks at the runs
_RATE_SECONDS = 60.0  # of training, over which a rate is taken
_ORDER: tuple[State, ...] = ("failed", "running", "waiting", "done")
_STYLES: Mapping[State, str] = {"failed": "red", "running": "bold", "waiting": "dim", "done": "green"}


class Standing(NamedTuple):
    """How far a run is."""

    step: int = 0
    """Environment steps."""
    share: float = 0.0
    """Of the limit that is nearest, from 0 to 1."""
    rate: float = math.nan
    """Environment steps per second, lately; NaN until it is known, as for all that follows."""
    ratio: float = math.nan
    """Mean response time over that of the best rule on the episodes of the learning curve, the last time."""
    left: float = math.nan
    """Seconds of training."""


def standing(config: TrainConfig, metrics: Sequence[Mapping[str, int | float]]) -> Standing:
    """How far a run is by its metrics, oldest first; the clock of its rates stands still between two processes."""
    if not metrics:
        return Standing()
    last = metrics[-1]
    share = _share(config, last)
    ratios = (line["evaluation/ratio"] for line in reversed(metrics) if "evaluation/ratio" in line)
    now = Standing(int(last["step"]), share, ratio=next(ratios, math.nan))
    first = next((line for line in metrics if last["wall_seconds"] - line["wall_seconds"] <= _RATE_SECONDS), last)
    if (seconds := last["wall_seconds"] - first["wall_seconds"]) <= 0:
        return now
    gained = share - _share(config, first)
    left = (1 - share) * seconds / gained if gained > 0 else math.nan
    return now._replace(rate=(last["step"] - first["step"]) / seconds, left=left)


class Board:
    """A context manager around the runs: `tell` it what becomes of each, and call `refresh` in between."""

    def __init__(
        self,
        plans: Mapping[Path, TrainConfig],
        undone: Collection[Path],
        *,
        quiet: bool = False,
        console: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Arguments: `plans`, what is trained in which folder; `undone`, the folders of runs that are not finished;
        `quiet`, show nothing; `console`, where to show it, standard error unless given; `clock`, the time in seconds.
        """
        self._plans, self._quiet, self._clock = plans, quiet, clock
        self._console = console or Terminal(stderr=True)
        root = os.path.commonpath([folder.parent for folder in plans])
        self._names = {folder: os.path.relpath(folder, root) for folder in plans}
        self._states: dict[Path, State] = {folder: "waiting" if folder in undone else "done" for folder in plans}
        self._notes = dict.fromkeys(plans, "")
        self._standings = {} if quiet else {folder: self._read(folder) for folder in plans}
        self._began = self._shown = clock()
        self._live: Live | None = None

    def __enter__(self) -> "Board":
        if self._quiet:
            return self
        if self._console.is_interactive and not self._console.options.ascii_only:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            with suppress(OSError):  # the terminal may be gone; the work is not lost for that
                self._live.start(refresh=True)
        else:
            self._print(self._summary())
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.update(self._table(), refresh=True)
                self._live.stop()
        elif not self._quiet:
            self._print(self._summary())

    def tell(self, folder: Path, state: State, note: str = "") -> None:
        """What became of a run; `note`, why it is so."""
        self._states[folder], self._notes[folder] = state, note
        if self._quiet:
            return
        self._standings[folder] = self._read(folder)
        if self._live is None:
            self._print(f"{self._names[folder]}: {state}{note and f', {note}'}")
        else:
            self._draw()

    def refresh(self) -> None:
        """Show how far the runs are, if it is time to."""
        pause = _PLAIN_SECONDS if self._live is None else _LIVE_SECONDS
        if self._quiet or self._clock() - self._shown < pause:
            return
        for folder, state in self._states.items():
            if state == "running":
                self._standings[folder] = self._read(folder)
        if self._live is None:
            self._print(self._summary())
        else:
            self._draw()
        self._shown = self._clock()

    def _read(self, folder: Path) -> Standing:
        return standing(self._plans[folder], RunFolder(folder).metrics())

    def _draw(self) -> None:
        assert self._live is not None
        with suppress(OSError):
            self._live.update(self._table(), refresh=True)

    def _print(self, line: str) -> None:
        with suppress(OSError):
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _counts(self) -> str:
        states = list(self._states.values())
        counts = [f"{states.count('done')} of {len(states)} runs done"]
        counts += [f"{states.count(state)} {state}" for state in ("running", "waiting", "failed") if state in states]
        return f"{', '.join(counts)}, {duration(self._clock() - self._began)} elapsed"

    def _summary(self) -> str:
        running = [
            f"{self._names[folder]} {100 * self._standings[folder].share:.0f} %"
            for folder, state in self._states.items()
            if state == "running"
        ]
        return self._counts() + (f" ({', '.join(running)})" if running else "")

    def _table(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("run")
        table.add_column("state")
        for column in ("env steps", "of", "%", "steps/s", "/ best rule", "left"):
            table.add_column(column, justify="right", no_wrap=True)
        for folder in sorted(self._plans, key=lambda folder: _ORDER.index(self._states[folder])):  # cut at the bottom
            now, state, total = self._standings[folder], self._states[folder], self._plans[folder].loop.steps
            at_work = state == "running"
            table.add_row(
                Text(self._names[folder], _STYLES[state]),
                Text(state + (f": {note}" if (note := self._notes[folder]) else ""), _STYLES[state]),
                f"{now.step:,}",
                f"{total:,}" if total else "",
                f"{100 * now.share:.0f}",
                _known(now.rate, ",.0f") if at_work else "",
                _known(now.ratio, ".3f"),
                "" if math.isnan(now.left) or not at_work else duration(now.left),
            )
        return Group(table, Text(self._counts(), "dim"))


def _share(config: TrainConfig, line: Mapping[str, int | float]) -> float:
    used = shares_used(config.loop, int(line["step"]), line["wall_seconds"], line["cpu_seconds"])
    return min(1.0, max(used.values()))


def _known(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
