"""Which jobs on which fleet: the options that `simulate` and `compare` have in common."""

from dataclasses import dataclass, field, fields
from typing import Annotated

import tyro

from reverie.envs.fleet.families import Load
from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.sources import read_source
from reverie.evaluate.examination import TRACE_LOAD, Exam, Setting, of_family, of_trace
from reverie.ranges import above, checked
from reverie.settings.config import WorldConfig


@dataclass(frozen=True)
@checked
class World:
    """Jobs and fleet."""

    family: str | None = None
    """A family of tasks: easy, medium, hard (unless given), overload, mixed, levels, calm, drift, shifting, neighbours,
    burst, diurnal, continuous, workers, shared, llm."""
    trace: str | None = None
    """Instead of a family, a trace: a file, or `conversation-like`, the built-in one."""
    held_out: bool = False
    """Only the second half of the trace: for agents that were trained on its first."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """How the trace is read."""
    load_per_window: bool = False
    """Bring every window of the trace to the load by a pace of its own, instead of the whole trace by one."""
    own: Annotated[Own, tyro.conf.arg(name="")] = field(default_factory=Own)
    """Your own servers and jobs."""
    load: Annotated[Load | None, *above(0)] = None
    """Offered load, reached by scaling the clock of arrivals; that of the family, or 0.8 for a trace, unless given.
    `recorded` keeps the clock of a trace."""
    exam: Annotated[Exam, tyro.conf.arg(name="")] = field(default_factory=Exam)
    """Episodes, jobs and seed."""

    def setting(self) -> Setting:
        """The episodes that are asked for.

        Raises:
            ValueError: both a family and a trace, an unknown family, a broken trace or an impossible load.
        """
        if self.trace is None:
            if self.held_out or self.load_per_window or self.load == "recorded" or self.reading != Reading():
                raise ValueError(
                    "--held-out, --load recorded, --load-per-window and the options of reading (--unit, --columns, "
                    "--drop, --sort, --from, --to) are about a trace; give one with --trace"
                )
            if self.family is not None and self.own.arrivals is not None:
                raise ValueError(f"give --family or --arrivals, not both; got {self.family} and {self.own.arrivals}")
            return of_family(self.family or "hard", self.exam, self.load, self.own)
        if self.family is not None:
            raise ValueError(f"give --family or --trace, not both; got {self.family} and {self.trace}")
        trace = read_source(self.trace, self.held_out, self.reading)
        load = TRACE_LOAD if self.load is None else self.load
        return of_trace(trace, self.exam, load, self.load_per_window, self.own)

    @property
    def unit(self) -> str:
        """Of response times."""
        return "time units" if self.trace is None else "seconds"


def played(world: WorldConfig) -> list[str]:
    """The words that let `compare` play what a `WorldConfig` was tuned on, of a trace its other half."""
    words = ["--family", world.family] if world.own.arrivals is None else []
    if world.trace is not None:
        words = ["--trace", str(world.trace), "--held-out", "--load", str(world.load)]
    for chosen in (world.reading, world.own, world.proxy):
        for option in fields(chosen):
            if (value := getattr(chosen, option.name)) != option.default:
                name = {"start": "from", "end": "to"}.get(option.name, option.name).replace("_", "-")
                values = value if type(value) is tuple else (value,)
                words += [f"--{name}", *(str(each) for each in values if each is not True)]
    return words
