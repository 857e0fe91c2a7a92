"""How far a long computation is, on the terminal: rate, time left, and the course of a few numbers.

On a terminal a display that stays in place; elsewhere (a log file, a pipe) a plain line now and then. It goes to
standard error, so that standard output holds nothing but the answer of the command. Nothing is stored here.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, SupportsFloat

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_PLAIN_SECONDS = 10.0  # between plain lines
_RATE_SECONDS = 30.0  # over which rates are taken, so that compilation soon stops to count
_CURVE_WIDTH = 40
_BARS = "▁▂▃▄▅▆▇█"


class Terminal(Console):
    """A console whose reader may go away (a closed pipe): the work then goes on unseen, where rich would exit."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """A context manager around the computation, which calls `update`.

    Arguments:
        total: the amount of work, in `unit`; None where something else ends it, and `update` is told the share.
        unit: what is counted, in the plural.
        title: what is going on.
        done: how much of it was done before, by a run that is now resumed; it does not count for the rate.
        share: the same as a part of the whole, from 0 to 1, where that is not `done` over the total.
        quiet: show nothing.
        console: where to show it; standard error unless given.
        clock: the time in seconds.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "env steps",
        title: str = "training",
        *,
        done: int = 0,
        share: float | None = None,
        quiet: bool = False,
        console: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if total is not None and not (0 <= done <= total and total > 0):
            raise ValueError(f"progress needs 0 <= done <= total and 0 < total; done is {done}, total is {total}")
        self._total, self._unit, self._title, self._quiet = total, unit, title, quiet
        self._console = console or Terminal(stderr=True)
        self._clock = clock
        self._recent = deque([_Mark(0.0, done, self._share(done, share), None)])
        self._curves: dict[str, Curve] = {}
        self._live: Live | None = None
        self._lock = threading.Lock()  # the display is drawn by a thread of its own

    def __enter__(self) -> "Progress":
        self._began = self._printed = self._clock()
        self._recent[0] = self._recent[0]._replace(time=self._began)
        if self._quiet:
            return self
        if self._console.is_interactive and not self._console.options.ascii_only:
            self._live = Live(get_renderable=self._display, console=self._console, redirect_stdout=sys.stdout.isatty())
            with suppress(OSError):  # the terminal may be gone; the work is not lost for that
                self._live.start()
        else:
            self._print_line()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
        elif not self._quiet:
            self._print_line()

    def update(
        self,
        done: int,
        metrics: Mapping[str, SupportsFloat] | None = None,
        updates: int | None = None,
        share: float | None = None,
    ) -> None:
        """Report how far the work is.

        Arguments:
            done: how much of the total is done, in all.
            metrics: the numbers to show; each is shown with its course since the beginning.
            updates: how many updates of the parameters were made in all, for their rate.
            share: which part of the work is done, from 0 to 1, where that is not `done` over the total: where a budget
                of time ends it, say.
        """
        now = self._clock()
        with self._lock:
            if len(self._recent) > 1 and self._recent[-1].time - self._recent[-2].time < _RATE_SECONDS / 60:
                self._recent.pop()  # a finer grain would only cost memory
            self._recent.append(_Mark(now, done, self._share(done, share), updates))
            while len(self._recent) > 2 and now - self._recent[1].time >= _RATE_SECONDS:
                self._recent.popleft()
            for name, value in (metrics or {}).items():
                self._curves.setdefault(name, Curve()).add(float(value))
        if not self._quiet and self._live is None and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            self._print_line()

    def _print_line(self) -> None:
        values = [f"{name} {curve.last:.4g}" for name, curve in self._curves.items()]
        amount = f"{self._amount(' of ')} ({self._percent()} %)"
        with suppress(OSError):
            line = f"{self._title}: " + ", ".join([amount, *self._speed(), *values])
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _display(self) -> Group:
        with self._lock:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                Text(self._title, style="bold"),
                ProgressBar(total=1.0, completed=self._recent[-1].share, width=_CURVE_WIDTH),
                f"{self._percent()} %  {self._amount(' / ')}",
            )
            curves = Table.grid(padding=(0, 2))
            for name, curve in self._curves.items():
                style = "" if math.isfinite(curve.last) else "bold red"
                curves.add_row(
                    Text(name), Text(f"{curve.last:.4g}", style, justify="right"), Text(sparkline(curve.points), "cyan")
                )
            return Group(bar, Text(" · ".join(self._speed()), "dim"), curves)

    def _share(self, done: int, told: float | None) -> float:
        if told is None:
            told = done / self._total if self._total else 0.0
        return min(told, 1.0)

    def _amount(self, of: str) -> str:
        total = f"{of}{self._total:,}" if self._total else ""
        return f"{self._recent[-1].done:,}{total} {self._unit}"

    def _percent(self) -> int:
        return int(100 * self._recent[-1].share)

    def _speed(self) -> list[str]:
        """Rates, time since the beginning and time left, as far as they are known."""
        first, last = self._recent[0], self._recent[-1]
        parts = []
        elapsed = last.time - first.time
        rate = (last.done - first.done) / elapsed if elapsed > 0 else 0.0
        if rate:
            parts.append(f"{_rate(rate)} {self._unit}/s")
        updates = [(mark.time, mark.updates) for mark in self._recent if mark.updates is not None]
        if updates and (elapsed := updates[-1][0] - updates[0][0]) > 0:
            parts.append(f"{_rate((updates[-1][1] - updates[0][1]) / elapsed)} updates/s")
        parts.append(f"{duration(self._clock() - self._began)} elapsed")
        if first.share < last.share < 1:
            parts.append(f"{duration((1 - last.share) * (last.time - first.time) / (last.share - first.share))} left")
        return parts


class Curve:
    """The course of one number in bounded memory: means over stretches whose length doubles as it grows."""

    def __init__(self) -> None:
        self.last = math.nan
        self.points: list[float] = []
        self._stretch = 1
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Append a value; what is not finite shows as `last`, but has no place in the curve."""
        self.last = value
        if not math.isfinite(value):
            return
        self._sum += value
        self._count += 1
        if self._count == self._stretch:
            self.points.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self.points) == 2 * _CURVE_WIDTH:
            self.points = _pair_means(self.points)
            self._stretch *= 2


class _Mark(NamedTuple):
    time: float
    done: int
    share: float
    updates: int | None


def sparkline(points: Sequence[float]) -> str:
    """The points as a row of at most 40 small bars, the lowest point lowest and the highest highest."""
    if len(points) > _CURVE_WIDTH:
        points = _pair_means(points)
    if not points:
        return ""
    low, high = min(points), max(points)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((point - low) * scale)] for point in points)


def _pair_means(points: Sequence[float]) -> list[float]:
    return [sum(pair) / len(pair) for pair in (points[i : i + 2] for i in range(0, len(points), 2))]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and whole seconds."""
    return str(timedelta(seconds=round(seconds)))
