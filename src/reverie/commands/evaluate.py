"""`reverie evaluate`: examine the agent of a run, beside all rules, in standard and adaptive trials and on a trace."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from reverie.evaluate.examination import Exam
from reverie.evaluate.players import evaluate_player, game_of
from reverie.evaluate.results import Examination, examine_agent
from reverie.evaluate.statistics import verdict
from reverie.evaluate.suites import evaluate_suite, suite_of
from reverie.report.output import Output, print_json, print_lines, print_table, say
from reverie.report.run_page import brief, returns_table
from reverie.report.suite_page import scores_table
from reverie.report.tables import rich_table
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig


@dataclass(frozen=True)
class Evaluate:
    """Examine the agent of a run, as its newest checkpoint has it, beside all rules: standard trials at three loads,
    adaptive trials whose load changes at unknown moments, and windows of a trace. The servers and jobs are those of its
    training, where it had its own, unless others are given. The tables go into the run. An agent that learned a game
    plays episodes of it, as many as --episodes says; one that learned a suite of fleets plays each of its tasks.

    Example: reverie evaluate runs/first
    """

    run: tyro.conf.Positional[Path]
    """The folder of the run, or a policy that `reverie export` wrote; its tables go into a folder beside it."""
    examination: Annotated[Examination, tyro.conf.arg(name="")] = field(default_factory=Examination)
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import the module that the run's game is in, such as MODULE in gym:MODULE:X-v0, which executes what is in it."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Evaluate:
    return tyro.cli(Evaluate, prog="reverie evaluate", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    run = None if asked.run.is_file() else RunFolder.open(asked.run)
    if run is not None and (game := game_of(run)) is not None:
        exam = Exam(episodes=asked.examination.exam.episodes, seed=asked.examination.exam.seed)
        if asked.examination != Examination(exam=exam):
            raise ValueError(
                f"{game.game} is a game: --episodes and --seed are all that can be said of how it is played"
            )
        rows = evaluate_player(run, game, exam.episodes, exam.seed, asked.trust)
        if asked.output == "json":
            print_json({"run": str(asked.run), "rows": rows})
        else:
            print_table(rich_table(returns_table(rows)))
        return
    if run is not None and (suite := suite_of(run)) is not None:
        if asked.examination != Examination(exam=asked.examination.exam):
            raise ValueError(
                f"{asked.run} learned the suite {suite.suite}: --episodes, --jobs and --seed are all that can be said "
                "of how its tasks are played"
            )
        rows = evaluate_suite(run, suite, asked.examination.exam)
        if asked.output == "json":
            print_json({"run": str(asked.run), "rows": rows})
        else:
            print_table(rich_table(scores_table(rows)))
        return
    tables = asked.run.with_suffix(".tables") if run is None else run.tables
    examination = asked.examination
    if run is not None:
        examination = examination.at_home(run.config(TrainConfig).fleet.own)
    results = examine_agent(asked.run, tables, examination, say)
    judged = verdict(results.tables().results)
    if asked.output == "json":
        print_json({"run": str(asked.run), "about": results.about, "rows": judged})
    else:
        print_lines(results.about)
        print_table(rich_table(brief(judged)))
