"""`reverie simulate`: play the classical rules, and see how long jobs take under each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import tyro

from reverie.commands.output import Output, print_json, print_table
from reverie.commands.worlds import World
from reverie.envs.fleet.env import View
from reverie.evaluate.examination import hold, rules_of
from reverie.evaluate.statistics import Estimate, groups, mean
from reverie.report.tables import TextTable, rich_table
from reverie.report.words import number, with_interval
from reverie.tables import Row

_METRICS = ("mean", "median", "p95", "p99", "mean_slowdown")


@dataclass(frozen=True)
class Simulate:
    """Play the classical dispatch rules on a task family or on a trace, all of them on the same jobs.

    Example: reverie simulate --family hard --policy sed --policy jsq

    Example: reverie simulate --trace conversation-like --load 0.9 --output json
    """

    world: Annotated[World, tyro.conf.arg(name="")] = field(default_factory=World)
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A rule to play; all of them unless given."""
    view: View = "full"
    """What is taken to be visible: under `counts`, rules that see more are oracles (in italics)."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Simulate:
    return tyro.cli(Simulate, prog="reverie simulate", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    setting = asked.world.setting()
    rules = rules_of(setting, asked.view, asked.policy or None)
    found = summarise(hold(setting, rules, asked.world.exam).results)
    if asked.output == "json":
        print_json({"task": setting.name, "unit": asked.world.unit, "rows": [_row(rule) for rule in found]})
        return
    print_table(rich_table(_table(found, asked.world, setting.name)))


class Summary(NamedTuple):
    """How jobs fared under one rule."""

    name: str
    role: str
    estimates: dict[str, Estimate]
    """By metric, means over the episodes."""


def summarise(results: Sequence[Row]) -> list[Summary]:
    """What each rule of one task reached, the shortest mean response time first."""
    found: dict[str, Summary] = {}
    for metric in _METRICS:
        (group,) = groups(results, metric)
        for name, (role, values) in group.agents.items():
            found.setdefault(name, Summary(name, role, {})).estimates[metric] = mean(values)
    return sorted(found.values(), key=lambda rule: rule.estimates["mean"].value)


def _row(rule: Summary) -> dict[str, str | float]:
    row: dict[str, str | float] = {"rule": rule.name, "role": rule.role}
    for metric, (value, low, high) in rule.estimates.items():
        row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
    return row


def _table(found: Sequence[Summary], world: World, task: str) -> TextTable:
    exam = world.exam
    return TextTable(
        title=f"Response times on {task}, in {world.unit}",
        columns=["rule", "mean", *(name.replace("_", " ") for name in _METRICS[1:])],
        rows=[_line(rule) for rule in found],
        caption=f"{exam.episodes} episodes of {exam.jobs:,} jobs, the same for all rules; in brackets 95 % intervals.",
        emphasis=[rule.role for rule in found],
    )


def _line(rule: Summary) -> list[str]:
    others = (number(rule.estimates[metric].value) for metric in _METRICS[1:])
    return [rule.name, with_interval(_row(rule), "mean"), *others]
