"""`reverie compare`: rank the classical rules and trained agents on the same jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from reverie.commands.worlds import World
from reverie.envs.fleet.weights import Proxy, View
from reverie.evaluate.about import about_view
from reverie.evaluate.agents import load_agents
from reverie.evaluate.examination import hold_in_turn, rules_of
from reverie.evaluate.statistics import verdict
from reverie.policies.objectives import objective
from reverie.report.judged import game_or_suite
from reverie.report.output import Output, print_json, print_lines, print_table, say
from reverie.report.tables import rich_table, verdict_tables


@dataclass(frozen=True)
class Compare:
    """Rank rules and trained agents on a task family or on a trace, with paired statistics on the same jobs. Agents
    that learned one game or one suite of fleets are compared in that, each beside the first.

    Example: reverie compare --objective late:2000 --policy sed --policy jsq

    Example: reverie compare --family hard --run runs/first

    Example: reverie compare --trace conversation-like --run runs/first --policy sed --policy jsq

    Example: reverie compare --run runs/mixture --run runs/shared
    """

    world: Annotated[World, tyro.conf.arg(name="")] = field(default_factory=World)
    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """The folder of a trained agent's run; runs that differ in their seed alone count as seeds of one agent."""
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A rule to compare with; all of them unless given. The file of a tuned rule (`reverie tune`) will do too."""
    view: View | None = None
    """What is taken to be visible: rules that see more are oracles. That of the agents unless given, or `full`."""
    proxy: Annotated[Proxy, tyro.conf.arg(name="")] = field(default_factory=Proxy)
    """The proxy of rules that set weights, unless they were tuned or an agent sets some: then it is that of these."""
    objective: str = "mean"
    """What policies are ranked by: the mean, median, p95 or p99 response time of an episode, or late:DEADLINE, the
    share of jobs that take longer than that."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import the module that a run's game is in, such as MODULE in gym:MODULE:X-v0, which executes what is in it."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Compare:
    return tyro.cli(Compare, prog="reverie compare", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    exam = asked.world.exam
    if (learned := game_or_suite(asked.run)) is not None:
        exam = learned.exam(exam)
        if asked != Compare(World(exam=exam), asked.run, trust=asked.trust, output=asked.output):
            raise ValueError(learned.refusal)
        beside = learned.compare(asked.run, exam, asked.trust)
        print_json({"rows": beside.rows}) if asked.output == "json" else print_table(rich_table(beside.table))
        return
    agents = load_agents(asked.run)
    seen = {agent.world.view for agent in agents} or {"full"}
    if asked.view is None and len(seen) > 1:
        raise ValueError(f"the agents see different views ({', '.join(sorted(seen))}); say with --view what is visible")
    wanted = objective(asked.objective)
    setting = asked.world.setting()
    view = asked.view or seen.pop()
    about = [*setting.about, about_view(view)]
    proxy = next((agent.world.proxy for agent in agents if agent.world.proxy), asked.proxy)
    rules = rules_of(setting, view, asked.policy or None, proxy)
    played = hold_in_turn(setting, [*agents, *rules], exam, say, wanted.deadline)
    judged = verdict(played.results, metric=wanted.metric)
    if asked.output == "json":
        print_json({"task": setting.name, "unit": asked.world.unit, "about": about, "rows": judged})
    else:
        print_lines(about)
        for table in verdict_tables(judged):
            print_table(rich_table(table._replace(caption=f"Response times in {asked.world.unit}. {table.caption}")))
