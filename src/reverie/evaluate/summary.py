"""How jobs fared under each rule of one task, without opponents: means over the episodes."""

from collections.abc import Sequence
from typing import NamedTuple

from reverie.evaluate.statistics import Estimate, groups, mean
from reverie.tables import Row

METRICS = ("mean", "median", "p95", "p99", "mean_slowdown")


class Summary(NamedTuple):
    """How jobs fared under one rule."""

    name: str
    role: str
    estimates: dict[str, Estimate]
    """By metric, means over the episodes."""

    def row(self) -> Row:
        """One column for each metric, and two for its interval."""
        row: Row = {"rule": self.name, "role": self.role}
        for metric, (value, low, high) in self.estimates.items():
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        return row


def summarise(results: Sequence[Row]) -> list[Summary]:
    """What each rule of one task reached, the shortest mean response time first."""
    found: dict[str, Summary] = {}
    for metric in METRICS:
        (group,) = groups(results, metric)
        for name, (role, values) in group.agents.items():
            found.setdefault(name, Summary(name, role, {})).estimates[metric] = mean(values)
    return sorted(found.values(), key=lambda rule: rule.estimates["mean"].value)
