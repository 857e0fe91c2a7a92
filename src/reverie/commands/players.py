"""Agents that learned a game: judged by the returns of whole episodes, on a page of their own."""

import jax
import numpy as np

from reverie.commands.pages import run_section, training_table
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.report import figures
from reverie.report.page import Picture, Section, write_page
from reverie.report.tables import TextTable
from reverie.report.words import number, with_interval
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row, read_csv, write_csv

RETURNS = "returns.csv"
"""In `tables/` of a run: the mean return of the agent."""


def game_of(run: RunFolder) -> GameConfig | None:
    """The game that a run trains in; None where it trains in a fleet, or is no training run."""
    described = run.config_json()
    if not isinstance(described, dict) or described["class"] != TrainConfig.__name__:
        return None
    world = run.config(TrainConfig).world
    return world if isinstance(world, GameConfig) else None


def evaluate_player(run: RunFolder, game: GameConfig, episodes: int, seed: int) -> Row:
    """Play whole episodes with the agent of a run, as its newest checkpoint has it, and keep the mean return.

    Errors: FileNotFoundError where there is no checkpoint yet.
    """
    config = run.config(TrainConfig)
    trainer = build(config)
    step, state = loop.newest_state(trainer, run)
    world, tasks = game.open(episodes)
    played = np.asarray(returns(world, trainer.policy(state), tasks, jax.random.key(seed)))
    estimate = over_seeds(played)  # over episodes here: Student's interval too
    row: Row = {"agent": config.name, "training_seed": config.seed, "game": game.game, "steps": step}
    row |= {"episodes": episodes} | dict(zip(("mean", "mean_low", "mean_high"), estimate, strict=True))
    row |= {"best": getattr(world, "optimal_return", None)}
    write_csv(run.tables / RETURNS, [row])
    return row


def returns_table(row: Row) -> TextTable:
    best = "unknown" if row["best"] is None else number(float(str(row["best"])))
    line = [str(row["agent"]), str(row["game"]), f"{row['steps']:,}", with_interval(row, "mean"), best]
    return TextTable(
        title=f"Returns of {row['episodes']} episodes",
        columns=["agent", "game", "environment steps", "mean return", "best possible"],
        rows=[line],
        caption="The likeliest action is taken; in brackets 95 % intervals over episodes.",
        emphasis=["agent"],
    )


def write_player_report(run: RunFolder) -> None:
    """Write the page of a run that learned a game: returns, learning curve, configuration."""
    row = read_csv(run.tables / RETURNS)[0]
    curve = [line for line in run.metrics() if "evaluation/return" in line]
    caption = "Mean return of the same few episodes while training went on."
    pictures = [Picture(figures.return_curve(curve, None if row["best"] is None else float(str(row["best"]))), caption)]
    sections = [
        Section("Returns", tables=[returns_table(row)]),
        Section("Learning", pictures=pictures, tables=[training_table([run])]),
        run_section(run, []),
    ]
    lead = f"{row['agent']} in {row['game']}: mean return {with_interval(row, 'mean')} over {row['episodes']} episodes."
    write_page(run.report, f"Report on {run.path.name}", lead, sections)
