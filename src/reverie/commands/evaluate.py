"""`reverie evaluate`: examine the agent of a run, beside all rules, in standard and adaptive trials and on a trace."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from reverie.evaluate.results import Examination
from reverie.report.judged import examined, learned_by
from reverie.report.output import Output, print_json, print_lines, print_table, say
from reverie.report.tables import rich_table
from reverie.runs.folder import RunFolder


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
    if asked.run.is_file():
        judged = examined(asked.run, asked.run.with_suffix(".tables"), asked.examination, say)
    else:
        judged = learned_by(RunFolder.open(asked.run)).evaluate(asked.examination, asked.trust, say)
    if asked.output == "json":
        print_json({"run": str(asked.run), "about": judged.about, "rows": judged.rows})
    else:
        print_lines(judged.about)
        print_table(rich_table(judged.table))
