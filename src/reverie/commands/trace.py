"""`reverie trace inspect`: what is in a recorded trace, in numbers and as a picture."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie.envs.fleet.sources import read_source
from reverie.envs.fleet.traces import TraceSummary, describe
from reverie.files import replacing
from reverie.report.output import Output, print_facts, print_json
from reverie.report.words import number

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Inspect:
    """Describe a trace: count, rate, burstiness, sizes and their tail.

    Example: reverie trace inspect conversation-like --plot trace.png
    """

    trace: tyro.conf.Positional[str]
    """A CSV file or JSON lines, plain or gzipped; or `conversation-like`, the built-in workload."""
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
    trace = read_source(asked.trace)
    summary = describe(trace)
    if asked.plot is not None:
        from reverie.report.traces import draw_trace

        with replacing(asked.plot) as partial:
            draw_trace(trace, summary).savefig(partial)
    if asked.output == "json":
        print_json({"trace": trace.name, **dataclasses.asdict(summary)})
    else:
        print_facts(trace.name, _lines(summary))


def _lines(s: TraceSummary) -> list[tuple[str, str]]:
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
