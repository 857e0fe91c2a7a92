"""`reverie trace inspect`: what is in a recorded trace, in numbers and as a picture."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.sources import read_source
from reverie.envs.fleet.traces import describe, tenths
from reverie.files import replacing
from reverie.report.output import Output, print_facts, print_json, say
from reverie.report.words import course_facts, summary_facts

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Inspect:
    """Describe a trace: count, rate, burstiness, sizes and their tail.

    Example: reverie trace inspect conversation-like --plot trace.png
    """

    trace: tyro.conf.Positional[str]
    """A file of a format in docs/traces.md, plain or packed; or `conversation-like`, the built-in workload."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """How the file is read."""
    plot: Path | None = None
    """Also draw it, into this file (PNG, SVG or PDF)."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Inspect:
    match arguments:
        case ["inspect", *rest]:
            return tyro.cli(Inspect, prog="reverie trace inspect", args=rest)
        case ["-h" | "--help", *_]:
            return tyro.cli(Inspect, prog="reverie trace inspect", args=["--help"])
        case [word, *_]:
            raise ValueError(f"`reverie trace` can only `inspect`, not {word!r}: reverie trace inspect FILE")
    raise ValueError("say what to do with which trace: reverie trace inspect FILE")


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    if asked.plot is not None and asked.plot.suffix not in _PICTURES:
        raise ValueError(f"--plot {asked.plot}: the name must end in {', '.join(_PICTURES)}")
    trace = read_source(asked.trace, reading=asked.reading)
    summary, course = describe(trace), tenths(trace)
    if asked.plot is not None:
        from reverie.report.traces import draw_trace

        with replacing(asked.plot) as partial:
            draw_trace(trace, summary).savefig(partial, facecolor="white")
    if asked.output == "json":
        load = None if course is None else {"edges": course.edges.tolist(), "load": course.load.tolist()}
        described = dataclasses.asdict(summary)
        print_json({"trace": trace.name, **described, "provenance": dict(trace.provenance), "tenths": load})
    else:
        print_facts(trace.name, [*trace.provenance, *summary_facts(summary), *course_facts(course)])
    if course is not None and course.unsteady:
        say(f"reverie trace: {course.warning()}")
