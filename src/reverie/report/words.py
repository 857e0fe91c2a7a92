"""The verdict in words: sentences that carry their interval and counts, and say so where there is no difference.

Numbers are formatted here for tables, pages and sentences alike.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Verdict = Mapping[str, Any]
"""A row of `evaluate.statistics.verdict`."""

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
    episodes = f"{row['episodes']} episodes"
    if row["role"] != "agent":
        return episodes
    return f"{row['seeds']} training seed{'' if row['seeds'] == 1 else 's'}, {episodes}"


def sentence(row: Verdict) -> str:
    """One row of a verdict: who is faster than whom, by how much, how sure that is, and on how much it stands."""
    value, low, high = (row[name] for name in ("ratio", "low", "high"))
    whom = f"{'the best rule, ' if row['against_best_rule'] else ''}{row['against']}"
    who = f"On {place(row)} {row['agent']}"
    match row["verdict"]:
        case "baseline":
            return f"{who} is the opponent itself."
        case "better":
            said = f"{who} is {per_cent(1 - value)} % faster than {whom}"
            interval = f"{per_cent(1 - high)} to {per_cent(1 - low)} %"
        case "worse" if value < FACTOR:
            said = f"{who} is {per_cent(value - 1)} % slower than {whom}"
            interval = f"{per_cent(low - 1)} to {per_cent(high - 1)} %"
        case "worse":
            said = f"{who} takes {value:.3g} times as long as {whom}"
            interval = f"{low:.3g} to {high:.3g}"
        case _:
            said = f"{who} does not differ measurably from {whom}"
            interval = f"{low:.3f} to {high:.3f}, ratio of response times {value:.3f}"
    stands_on = f"{100 * row['confidence']:g} % interval {interval}, {counts(row)}"
    return f"{said} ({stands_on}{'' if row['claim'] else '; too few for a claim'})."


def per_cent(share: float) -> str:
    """A share as per cent: one decimal, none from 10 on."""
    return f"{100 * share:.1f}" if abs(share) < 0.0995 else f"{100 * share:.0f}"
