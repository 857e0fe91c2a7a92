"""What a run learned, a game, a suite of fleets or fleets of a kind: how each is judged, as a table and as a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reverie.evaluate.agents import training_runs
from reverie.evaluate.examination import Exam
from reverie.evaluate.players import compare_players, evaluate_player, game_of, was_evaluated
from reverie.evaluate.results import Examination, Results, examine_agent
from reverie.evaluate.statistics import verdict
from reverie.evaluate.suites import compare_in_suite, evaluate_suite, suite_of, was_scored
from reverie.files import SEALS
from reverie.report.film import best_of, write_film
from reverie.report.run_page import brief, returns_table, write_player_report, write_report
from reverie.report.suite_page import scores_table, write_suite_report
from reverie.report.tables import TextTable, players_table, suites_table
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, SuiteConfig, TrainConfig
from reverie.tables import Row

type Tell = Callable[[str], None]


class Judged(NamedTuple):
    """What came out."""

    about: Sequence[str]
    """What stands above the table."""
    rows: Sequence[Row]
    table: TextTable


@dataclass(frozen=True)
class OfGame:
    """A run that learned a game."""

    run: RunFolder
    game: GameConfig

    @property
    def refusal(self) -> str:
        """The answer to who asks for more than its `exam`."""
        return f"{self.game.game} is a game: --episodes and --seed are all that can be said of how it is played"

    def exam(self, asked: Exam) -> Exam:
        """What can be asked for: a game's episodes have lengths of their own."""
        return Exam(episodes=asked.episodes, seed=asked.seed)

    def evaluate(self, asked: Examination, trust: bool, tell: Tell) -> Judged:
        exam = self.exam(asked.exam)
        if asked != Examination(exam=exam):
            raise ValueError(self.refusal)
        rows = evaluate_player(self.run, self.game, exam.episodes, exam.seed, trust)
        return Judged([], rows, returns_table(rows))

    def compare(self, paths: Sequence[Path], exam: Exam, trust: bool) -> Judged:
        """The agents of runs that learned it too, beside the first of them."""
        rows = compare_players(paths, exam.episodes, exam.seed, trust)
        return Judged([], rows, players_table(rows))

    def write_page(self, trust: bool, tell: Tell, film: Sequence[str] | None) -> None:
        if film is not None:
            raise ValueError(f"{self.run.path} learned the game {self.game.game}: a GIF shows a fleet, and it has none")
        if not was_evaluated(self.run):
            self.evaluate(Examination(), trust, tell)
        write_player_report(self.run)
        tell(f"written: {self.run.report}")


@dataclass(frozen=True)
class OfSuite:
    """A run that learned a suite of fleets."""

    run: RunFolder
    suite: SuiteConfig

    @property
    def refusal(self) -> str:
        """The answer to who asks for more than its `exam`."""
        return (
            f"{self.run.path} learned the suite {self.suite.suite}: --episodes, --jobs and --seed are all that can be "
            "said of how its tasks are played"
        )

    def exam(self, asked: Exam) -> Exam:
        """What can be asked for."""
        return asked

    def evaluate(self, asked: Examination, trust: bool, tell: Tell) -> Judged:
        if asked != Examination(exam=asked.exam):
            raise ValueError(self.refusal)
        rows = evaluate_suite(self.run, self.suite, asked.exam)
        return Judged([], rows, scores_table(rows))

    def compare(self, paths: Sequence[Path], exam: Exam, trust: bool) -> Judged:
        """The agents of runs that learned it too, beside the first of them."""
        rows = compare_in_suite(paths, exam, trust)
        return Judged([], rows, suites_table(rows))

    def write_page(self, trust: bool, tell: Tell, film: Sequence[str] | None) -> None:
        if film is not None:
            raise ValueError(f"{self.run.path} learned the suite {self.suite.suite}: a GIF shows a fleet of one kind")
        if not was_scored(self.run):
            self.evaluate(Examination(), trust, tell)
        write_suite_report(self.run, self.suite)
        tell(f"written: {self.run.report}")


@dataclass(frozen=True)
class OfFleets:
    """A run that learned fleets of a kind, or several such runs together."""

    run: RunFolder

    def evaluate(self, asked: Examination, trust: bool, tell: Tell) -> Judged:
        asked = asked.at_home(self.run.config(TrainConfig).fleet.own)
        return examined(self.run.path, self.run.tables, asked, tell)

    def write_page(self, trust: bool, tell: Tell, film: Sequence[str] | None) -> None:
        run, trained = self.run, training_runs(self.run)
        if Results.are_in(run.tables):
            results = Results.of(run.tables)
        elif trained[0].path != run.path:
            made = " ".join(run.versions()[-1]["command"]) if run.versions() else "the command that made this folder"
            raise ValueError(f"tables in {run.tables} are damaged or missing; {made} makes them anew")
        else:
            if (run.tables / SEALS).exists():
                tell(
                    f"tables in {run.tables} are damaged or missing and made anew, with the episodes of `reverie "
                    "evaluate`"
                )
            asked = Examination().at_home(run.config(TrainConfig).fleet.own)
            results = examine_agent(run.path, run.tables, asked, tell)
        judged = write_report(run, trained, results, f"Report on {run.path.name}")
        tell(f"written: {run.report}")
        if film is not None:
            path = run.path / "fleet.gif"
            write_film(path, results.episodes(film or best_of(results.watched(), judged)), "time units")
            tell(f"written: {path}")


def examined(path: Path, tables: Path, asked: Examination, tell: Tell) -> Judged:
    """The agent of a run or of an exported policy beside all rules; the tables are kept."""
    results = examine_agent(path, tables, asked, tell)
    rows = verdict(results.tables().results)
    return Judged(results.about, rows, brief(rows))


def learned_by(run: RunFolder) -> OfGame | OfSuite | OfFleets:
    """What a run learned. `evaluate` judges it and keeps the tables; `write_page` writes its page and, where it is said
    whose fleet a `film` shows (nobody: the best), that; a run that was not judged yet is judged first."""
    if (game := game_of(run)) is not None:
        return OfGame(run, game)
    if (suite := suite_of(run)) is not None:
        return OfSuite(run, suite)
    return OfFleets(run)


def game_or_suite(paths: Sequence[Path]) -> OfGame | OfSuite | None:
    """What the first of some runs learned, or the first run in it where it is a folder of several; None where that is
    fleets of a kind, or where there are no runs, or exported policies first."""
    if not paths or paths[0].is_file():
        return None
    learned = learned_by(training_runs(RunFolder.open(paths[0]))[0])
    return None if isinstance(learned, OfFleets) else learned
