"""How jobs fared under each rule of one task, without opponents: means over the episodes."""

from collections.abc import Sequence
from typing import NamedTuple

from reverie.evaluate.statistics import METRICS, Estimate, groups, mean
from reverie.tables import Row


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
    (group,) = groups(results, METRICS)
    found = [
        Summary(name, role, {metric: mean(sample) for metric, sample in values.items()})
        for name, (role, values) in group.agents.items()
    ]
    return sorted(found, key=lambda rule: rule.estimates["mean"].value)
