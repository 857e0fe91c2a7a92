"""`reverie simulate`: play the classical rules, and see how long jobs take under each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from reverie.commands.worlds import World
from reverie.envs.fleet.env import View
from reverie.evaluate.about import about_view
from reverie.evaluate.examination import hold_in_turn, rules_of
from reverie.evaluate.summary import summarise
from reverie.report.output import Output, print_json, print_lines, print_table, say
from reverie.report.tables import rich_table, summary_table


@dataclass(frozen=True)
class Simulate:
    """Play the classical dispatch rules on a task family or on a trace, all of them on the same jobs.

    Example: reverie simulate --family hard --policy sed --policy jsq

    Example: reverie simulate --trace conversation-like --load 0.9 --output json
    """

    world: Annotated[World, tyro.conf.arg(name="")] = field(default_factory=World)
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A rule to play; all of them unless given. The file of a tuned rule (`reverie tune`) will do too."""
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
    about = [*setting.about, about_view(asked.view)]
    found = summarise(hold_in_turn(setting, rules, asked.world.exam, say).results)
    if asked.output == "json":
        print_json(
            {"task": setting.name, "unit": asked.world.unit, "about": about, "rows": [rule.row() for rule in found]}
        )
        return
    print_lines(about)
    episodes = f"{setting.windows} independent windows" if setting.windows else f"{asked.world.exam.episodes} episodes"
    caption = f"{episodes} of {asked.world.exam.jobs:,} jobs, the same for all rules; in brackets 95 % intervals."
    print_table(rich_table(summary_table(found, f"Response times on {setting.name}, in {asked.world.unit}", caption)))
