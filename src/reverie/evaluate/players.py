"""Agents that learned a game: judged by the returns of whole episodes."""

import jax
import numpy as np

from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.files import is_sealed, locked, seal
from reverie.runs import loop
from reverie.runs.build import build, stored
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row, write_csv

RETURNS = "returns.csv"
"""In `tables/` of a run: the mean return of the agent."""


def game_of(run: RunFolder) -> GameConfig | None:
    """The game that a run trains in; None where it trains in a fleet, or is no training run."""
    described = run.config_json()
    if not isinstance(described, dict) or described.get("class") != TrainConfig.__name__:
        return None
    world = run.config(TrainConfig).world
    return world if isinstance(world, GameConfig) else None


def evaluate_player(run: RunFolder, game: GameConfig, episodes: int, seed: int, trust: bool = False) -> Row:
    """Play whole episodes with the agent of a run, as its newest checkpoint has it, and keep the mean return.

    Errors: FileNotFoundError where there is no checkpoint yet, ValueError where the game is in a module that is to be
    imported and there is no `trust`, BlockingIOError where another process evaluates the run.
    """
    run.tables.mkdir(exist_ok=True)
    with locked(run.tables / "lock", str(run.tables)):
        return _evaluate(run, game, episodes, seed, trust)


def was_evaluated(run: RunFolder) -> bool:
    """Whether the mean return is there, as it was written."""
    return is_sealed(run.tables, RETURNS)


def _evaluate(run: RunFolder, game: GameConfig, episodes: int, seed: int, trust: bool) -> Row:
    config = stored(run, trust)
    trainer = build(config)
    step, state = loop.newest_state(trainer, run)
    world, tasks = game.open(episodes)
    played = np.asarray(returns(world, trainer.policy(state), tasks, jax.random.key(seed)))
    estimate = over_seeds(played)  # over episodes here: Student's interval too
    row: Row = {"agent": config.name, "training_seed": config.seed, "game": game.game, "steps": step}
    row |= {"episodes": episodes} | dict(zip(("mean", "mean_low", "mean_high"), estimate, strict=True))
    row |= {"best": getattr(world, "optimal_return", None)}
    write_csv(run.tables / RETURNS, [row])
    seal(run.tables, [RETURNS])
    return row
