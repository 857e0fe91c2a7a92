"""The audit log: one JSON line for each change, with all that the decision was made of, so that it can be made again.

The line before the first of a configuration holds that configuration and the rule.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reverie.runs.config_json import config_from_json, config_to_json
from reverie.serve.balancer import Counts
from reverie.serve.decide import Arm, Decision, Known, decide
from reverie.serve.guards import WHY
from reverie.serve.rates import Rule
from reverie.serve.settings import Mode, ServeConfig, sha
from reverie.serve.trained import Trained


@dataclass(frozen=True)
class Begin:
    """What the lines after it were decided with."""

    ts: float
    """Seconds since 1970, by the wall clock."""
    config: ServeConfig
    rule: Rule | Trained


@dataclass(frozen=True)
class Change:
    """One decision that changed something."""

    ts: float
    config: str
    """Its sha."""
    mode: Mode
    arm: Arm
    halted: bool
    now: float
    before: Known
    """What was known before the decision."""
    counts: Counts
    decision: Decision
    sent: dict[str, int] | None
    """Weights that were really set; None: the configured ones; nothing at all in mode shadow."""
    answer: str
    """Why that failed, where it did."""


class Audit:
    """The file, appended to."""

    def __init__(self, path: Path, most: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._most = path, most
        self._file = path.open("a", encoding="utf-8")

    def begin(self, begun: Begin) -> None:
        self._begun = begun
        self._write(begun)

    def change(self, change: Change) -> None:
        if self._file.tell() > self._most:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._path.open("a", encoding="utf-8")
            self._write(self._begun)
        self._write(change)

    def _write(self, line: Any) -> None:
        self._file.write(f"{json.dumps(config_to_json(line))}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Explained:
    """A change, and what deciding again gives."""

    change: Change
    again: Decision

    @property
    def same(self) -> bool:
        return self.again == self.change.decision


def replay(path: Path) -> Iterator[Explained]:
    """Make each decision of a log again.

    Raises:
        ValueError: a line is none of an audit log, or its configuration is not before it.
    """
    begun: Begin | None = None
    decided_by = ""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                data = json.loads(line)
                if data.get("class") == Begin.__name__:
                    begun, decided_by = config_from_json(Begin, data), sha(data["config"])  # as it was written
                    continue
                change = config_from_json(Change, data)
                if begun is None or decided_by != change.config:
                    raise ValueError(f"its configuration {change.config} does not stand before it")
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            again, _ = decide(
                begun.config, begun.rule, change.before, change.counts, change.now, change.arm, change.halted
            )
            yield Explained(change, again)


def facts(shown: Explained) -> list[tuple[str, str]]:
    """A change in words: what was seen, what the policy said, which guards changed it, what was sent."""
    change = shown.change
    decision, counts = change.decision, change.counts
    said = [
        ("when", date(change.ts)),
        ("mode, arm", f"{change.mode}, {change.arm}"),
        ("process of the balancer", counts.process),
        ("seconds since it was asked", f"{change.now - counts.at:.4f}"),
        ("guards that changed it", ", ".join(decision.fired) or "none"),
    ]
    if decision.weights is None:
        said.append(("why the configured weights", WHY.get(decision.fired[-1], "it is their turn")))
    for i, name in enumerate(counts.names):
        wanted = "configured" if decision.weights is None else decision.weights.get(name, "not ours to set")
        seen = f"{counts.in_progress[i]} in progress, {counts.started[i]} started, {counts.failed[i]} failed"
        said.append((name, f"{seen}; policy {decision.raw[i]:.4g}; weight {counts.weights[i]}, wanted {wanted}"))
    sent = "the configured weights" if change.sent is None else ", ".join(f"{n} {w}" for n, w in change.sent.items())
    return [*said, ("sent", change.answer or sent or "nothing")]


def date(seconds: float) -> str:
    """A moment as it is written, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
