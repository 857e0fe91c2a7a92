"""Which jobs on which fleet: the options that `simulate` and `compare` have in common."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from reverie.envs.fleet.sources import read_source
from reverie.evaluate.examination import TRACE_LOAD, Exam, Setting, of_family, of_trace
from reverie.ranges import above, checked


@dataclass(frozen=True)
@checked
class World:
    """Jobs and fleet."""

    family: str | None = None
    """A family of tasks: easy, medium, hard (unless given), overload, mixed, levels, calm, drift, shifting, burst,
    diurnal, continuous."""
    trace: str | None = None
    """Instead of a family, a trace: a file, or `conversation-like`, the built-in one."""
    held_out: bool = False
    """Only the second half of the trace: for agents that were trained on its first."""
    load: Annotated[float | None, *above(0)] = None
    """Offered load, reached by scaling the clock of arrivals; that of the family, or 0.8 for a trace, unless given."""
    exam: Annotated[Exam, tyro.conf.arg(name="")] = field(default_factory=Exam)
    """Episodes, jobs and seed."""

    def setting(self) -> Setting:
        """The episodes that are asked for.

        Raises:
            ValueError: both a family and a trace, an unknown family, a broken trace or an impossible load.
        """
        if self.trace is None:
            if self.held_out:
                raise ValueError("--held-out is about a trace; give one with --trace")
            return of_family(self.family or "hard", self.exam, self.load)
        if self.family is not None:
            raise ValueError(f"give --family or --trace, not both; got {self.family} and {self.trace}")
        return of_trace(
            read_source(self.trace, self.held_out), self.exam, TRACE_LOAD if self.load is None else self.load
        )

    @property
    def unit(self) -> str:
        """Of response times."""
        return "time units" if self.trace is None else "seconds"
