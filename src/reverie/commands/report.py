"""`reverie report`: write the page of a run, from the tables in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie.evaluate.agents import training_runs
from reverie.evaluate.players import evaluate_player, game_of, was_evaluated
from reverie.evaluate.results import Examination, Results, examine_agent
from reverie.evaluate.suites import evaluate_suite, suite_of, was_scored
from reverie.files import SEALS
from reverie.report.film import best_of, write_film
from reverie.report.output import say
from reverie.report.run_page import write_player_report, write_report
from reverie.report.suite_page import write_suite_report
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig


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
    run = RunFolder.open(asked.run)
    if (game := game_of(run)) is not None:
        if asked.gif:
            raise ValueError(f"{run.path} learned the game {game.game}: a GIF shows a fleet, and it has none")
        if not was_evaluated(run):
            exam = Examination().exam
            evaluate_player(run, game, exam.episodes, exam.seed, asked.trust)
        write_player_report(run)
        say(f"written: {run.report}")
        return
    if (suite := suite_of(run)) is not None:
        if asked.gif:
            raise ValueError(f"{run.path} learned the suite {suite.suite}: a GIF shows a fleet of one kind")
        if not was_scored(run):
            evaluate_suite(run, suite, Examination().exam)
        write_suite_report(run, suite)
        say(f"written: {run.report}")
        return
    trained = training_runs(run)
    if Results.are_in(run.tables):
        results = Results.of(run.tables)
    elif trained[0].path != run.path:
        made = " ".join(run.versions()[-1]["command"]) if run.versions() else "the command that made this folder"
        raise ValueError(f"tables in {run.tables} are damaged or missing; {made} makes them anew")
    else:
        examination = Examination().at_home(run.config(TrainConfig).fleet.own)
        if (run.tables / SEALS).exists():
            say(f"tables in {run.tables} are damaged or missing and made anew, with the episodes of `reverie evaluate`")
        results = examine_agent(run.path, run.tables, examination, say)
    judged = write_report(run, trained, results, f"Report on {run.path.name}")
    say(f"written: {run.report}")
    if asked.gif:
        film = run.path / "fleet.gif"
        write_film(film, results.episodes(asked.policy or best_of(results.watched(), judged)), "time units")
        say(f"written: {film}")
