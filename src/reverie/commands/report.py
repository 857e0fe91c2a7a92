"""`reverie report`: write the page of a run, from the tables in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie.report.judged import learned_by
from reverie.report.output import say
from reverie.runs.folder import RunFolder


@dataclass(frozen=True)
class Report:
    """Write report.html in the folder of a run: verdict, response times, learning curves, the fleet over time. A run
    that was not evaluated yet is evaluated first.

    Example: reverie report runs/first

    Example: reverie report runs/first --gif --policy jsq --policy dreamer-queue-rl2
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run, or of a verdict."""
    gif: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write fleet.gif beside the page: a fleet at work over one episode, job by job."""
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Whose fleet the GIF shows, those of several below one another: an agent of the run, or a rule. The best rule and
    the best agent unless given."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import the module that the run's game is in, such as MODULE in gym:MODULE:X-v0, which executes what is in it."""


def parse(arguments: Sequence[str]) -> Report:
    return tyro.cli(Report, prog="reverie report", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    if asked.policy and not asked.gif:
        raise ValueError("--policy says whose fleet a GIF shows: give --gif too")
    learned_by(RunFolder.open(asked.run)).write_page(asked.trust, say, asked.policy if asked.gif else None)
