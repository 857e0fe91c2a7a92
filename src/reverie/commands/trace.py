"""`reverie trace inspect`: what is in a recorded trace, in numbers and as a picture."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.sources import read_source
from reverie.envs.fleet.traces import Tenths, TraceSummary, describe, tenths
from reverie.files import replacing
from reverie.report.output import Output, print_facts, print_json, say
from reverie.report.words import number

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
        print_facts(trace.name, [*trace.provenance, *summary_facts(summary), *_course(course)])
    if course is not None and course.unsteady:
        say(f"reverie trace: {course.warning()}")


def summary_facts(s: TraceSummary) -> list[tuple[str, str]]:
    """Statistics of a trace, and what each is called."""

    def several(*values: float) -> str:
        return ", ".join(map(number, values))

    return [
        ("jobs", f"{s.count:,}"),
        ("span in seconds", number(s.span)),
        ("arrivals per second", number(s.rate)),
        ("gaps: CV (Poisson: 1)", number(s.gap_cv)),
        ("gaps: correlation with the next one (Poisson: 0)", number(s.gap_autocorrelation)),
        (
            "index of dispersion in windows of 1, 10, 60 s (Poisson: 1)",
            several(s.dispersion_1s, s.dispersion_10s, s.dispersion_60s),
        ),
        ("busiest minute over the mean one", number(s.peak_to_mean)),
        ("sizes in work units: mean", number(s.size_mean)),
        ("sizes: p50, p90, p99, largest", several(s.size_p50, s.size_p90, s.size_p99, s.size_max)),
        ("sizes: squared CV (exponential: 1)", number(s.size_c2)),
        ("sizes: tail index (2 or less: heavy tail)", number(s.size_tail_index)),
        ("sizes: share of all work in the largest 1 %", number(s.size_top_share)),
        ("work per second: servers of speed 1 kept busy", number(s.work_rate)),
    ]


def _course(course: Tenths | None) -> list[tuple[str, str]]:
    """The load in each tenth of the jobs, with a bar."""
    if course is None:
        return []
    longest = course.load[np.isfinite(course.load)].max()
    lines = []
    for k, load in enumerate(course.load):
        when = f"from {course.edges[k]:,.4g} s to {course.edges[k + 1]:,.4g} s"
        bar = "#" * round(30 * min(load / longest, 1))
        lines.append((f"load over that of the whole, {when}", f"{load:6.2f} {bar}"))
    return lines
