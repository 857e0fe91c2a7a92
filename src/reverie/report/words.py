"""The verdict in words: sentences that carry their interval and counts, and say so where there is no difference. And
what is said of a trace.

Numbers are formatted here for tables, pages and sentences alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reverie.envs.fleet.traces import Tenths, TraceSummary

Verdict = Mapping[str, Any]
"""A row of `evaluate.statistics.verdict`."""

NAMES = {
    "mean": "mean response",
    "median": "p50",
    "p95": "p95",
    "p99": "p99",
    "mean_slowdown": "slowdown",
    "late": "share of late jobs",
}
"""The metrics of a verdict by the names that people know."""
FACTOR = 1.5
"""From this ratio on a sentence says how many times as long, not how many per cent slower."""


def number(value: float | None) -> str:
    """A number to four digits, thousands apart; a dash where it is missing."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def ratio(value: float | None) -> str:
    """A ratio to three decimals; to three digits where it is 10 or more."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """Whole milliseconds with their unit."""
    return f"{1000 * seconds:,.0f} ms"


def with_interval(row: Verdict, name: str, show: Callable[[float | None], str] = number) -> str:
    """A number of a verdict and its interval in brackets; a dash where it is missing."""
    low, high = ("low", "high") if name == "ratio" else (f"{name}_low", f"{name}_high")
    return "-" if row[name] is None else f"{show(row[name])} [{show(row[low])}, {show(row[high])}]"


def place(row: Verdict) -> str:
    """The task, the experiment unless it is the standard one, and the level where it is a part of the task."""
    experiment = "" if row["experiment"] == "standard" else f" ({row['experiment']} trials)"
    level = "" if row["level"] is None else f" at load {row['level']:g}"
    return f"{row['task']}{level}{experiment}"


def counts(row: Verdict) -> str:
    """How many training seeds (of what was trained) and episodes stand behind a row."""
    kind = "independent window" if row["windows"] else "episode"
    episodes = f"{row['episodes']} {kind}{'' if row['episodes'] == 1 else 's'}"
    if row["role"] != "agent":
        return episodes
    return f"{row['seeds']} training seed{'' if row['seeds'] == 1 else 's'}, {episodes}"


def sentence(row: Verdict) -> str:
    """One row of a verdict: who is faster than whom, by how much, how sure that is, and on how much it stands."""
    whom = f"{'the best rule, ' if row['against_best_rule'] else ''}{row['against']}"
    who = f"On {place(row)} {row['agent']}"
    match row["verdict"]:
        case "baseline":
            return f"{who} is the opponent itself."
        case "better" | "worse" if row["ratio"] is not None and row["low"] is not None:
            value = row["ratio"]
            said = f"{who} {'takes' if value >= FACTOR else 'is'} {change(value)} {'as' if value >= FACTOR else 'than'}"
            said = f"{said} {whom}"
            interval = between(row)
        case "no claim":
            said, interval = f"{who} cannot be told from {whom}: too few windows of the trace", None
        case "no difference":
            said, interval = f"{who} does not differ measurably from {whom}", between(row, ratio=True)
        case word:
            said, interval = f"{who} is {word} than {whom}", None
    means = "mean response times" if row["metric"] == "mean" else NAMES[row["metric"]]
    stands_on = [f"in {means}"] if row["metric"] != "mean" else []
    stands_on += [f"{100 * row['confidence']:g} % interval {interval}"] if interval else []
    stands_on += [counts(row)]
    enough = row["claim"] or row["verdict"] == "no claim"
    return f"{said} ({', '.join(stands_on)}{'' if enough else '; too few for a claim'}).{_contradiction(row)}"


def _contradiction(row: Verdict) -> str:
    """What is to be added where mean and tail say opposite things."""
    if not row["disagree"]:
        return ""
    other, name = ("p99", "Its slowest 1 %") if row["metric"] != "p99" else ("mean", "Its mean")
    said = change_within(row, *(f"{other}_ratio{end}" for end in ("", "_low", "_high")))
    return f" {name} says the opposite: {said}."


def change(value: float) -> str:
    """A ratio of times in words: `13 % faster`, `4.0 % slower`, `2.5 times as long`."""
    if value >= FACTOR:
        return f"{value:#.3g} times as long"
    return f"{per_cent(abs(1 - value))} % {'faster' if value < 1 else 'slower'}"


def interval_of(value: float, low: float, high: float) -> str:
    """The interval of a ratio in the words of `change(value)`: of per cent, or of factors."""
    if value >= FACTOR:
        return f"{low:.3g} to {high:.3g}"
    if low < 1 < high:
        return f"{change(low)} to {change(high)}"
    ends = (1 - high, 1 - low) if value < 1 else (low - 1, high - 1)
    return f"{' to '.join(per_cent(end) for end in ends)} %"


def between(row: Verdict, ratio: bool = False) -> str | None:
    """The interval of a row's ratio; None where there is none, as of one window."""
    value, low, high = (row[name] for name in ("ratio", "low", "high"))
    if low is None:
        return None
    return f"{low:.3f} to {high:.3f}, ratio {value:.3f}" if ratio else interval_of(value, low, high)


class Answer(NamedTuple):
    """What is to be said of one kind of traffic, in a row."""

    traffic: str
    winner: str
    by: str
    sure: str
    tail: str


def answer(rows: Sequence[Verdict]) -> Answer:
    """The answer of one group of a verdict: the best agent beside the opponent; rules alone where there is no agent."""
    others = [row for row in rows if row["role"] in ("agent", "rule") and row["verdict"] != "baseline"]
    agents = [row for row in others if row["role"] == "agent"]
    best = next(iter(agents or others), None)
    if best is None:
        return Answer(place(rows[0]), rows[0]["against"], "-", "nothing to compare with", "-")
    winner = {"better": best["agent"], "worse": best["against"]}.get(best["verdict"], best["verdict"])
    winner += "" if best["claim"] or best["verdict"] == "no claim" else " (?)"
    by = f"{change_within(best, 'ratio', 'low', 'high')} {'as' if (best['ratio'] or 0) >= FACTOR else 'than'}"
    by = f"{by} {best['against']}" if best["verdict"] == "better" else f"{best['agent']}: {by} {best['against']}"
    sure = f"{counts(best)}{'' if best['claim'] else ': too few for a claim'}"
    return Answer(place(best), winner, by, sure, change_within(best, "p99_ratio", "p99_ratio_low", "p99_ratio_high"))


def change_within(row: Verdict, *columns: str) -> str:
    """A ratio of times and its interval in words: `13 % faster (10 to 16 %)`; a dash where it is missing."""
    value, low, high = (row[name] for name in columns)
    if value is None:
        return "-"
    return change(value) if low is None else f"{change(value)} ({interval_of(value, low, high)})"


def lead(verdict: Sequence[Verdict]) -> str:
    """One sentence above all: in how many kinds of traffic an agent wins, and where the tail says the opposite."""
    agents = [row for row in verdict if row["role"] == "agent" and row["level"] is None]
    if not agents:
        return "Training has not ended yet; these are the classical rules among themselves."
    best: dict[tuple[str, str], Verdict] = {}
    for row in agents:  # the best agent of each kind comes first
        best.setdefault((row["experiment"], row["task"]), row)
    found, of = [row["verdict"] for row in best.values()], len(best)
    parts = [f"In {found.count('better')} of {of} kinds of traffic the best agent is faster than the best rule"]
    parts += [f"in {n} slower"] if (n := found.count("worse")) else []
    parts += [f"in {n} no difference can be measured"] if (n := found.count("no difference")) else []
    parts += [f"of {n} too little is known"] if (n := found.count("no claim")) else []
    opposite = sum(bool(row["disagree"]) for row in best.values())
    tail = f" In {opposite} the slowest 1 % of the jobs say the opposite." if opposite else ""
    claim = "" if all(row["claim"] for row in best.values()) else " Too few seeds or episodes for a claim."
    return f"{', '.join(parts)}.{tail}{claim}"


def per_cent(share: float) -> str:
    """A share as per cent: one decimal, none from 10 on."""
    return f"{100 * share:.1f}" if abs(share) < 0.0995 else f"{100 * share:.0f}"


# --- traces ----------------------------------------------------------------------------------------------------------


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


def course_facts(course: Tenths | None) -> list[tuple[str, str]]:
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
