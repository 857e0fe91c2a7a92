"""Agents that learned a game: judged by the returns of whole episodes."""

import jax
import numpy as np

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.files import is_sealed, locked, seal
from reverie.runs import loop
from reverie.runs.build import build, stored
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row, write_csv

RETURNS = "returns.csv"
"""In `tables/` of a run: the mean return of the agent, in each set of tasks and each episode of a trial."""
CODES, FORETOLD = "codes.csv", "foretold.csv"
"""Of a MetaDreamer besides (`imagined.py`)."""
CODED = 200
"""Tasks of each set whose codes are kept."""


def game_of(run: RunFolder) -> GameConfig | None:
    """The game that a run trains in; None where it trains in a fleet, or is no training run."""
    return None if (config := training_of(run)) is None else config.game


def training_of(run: RunFolder) -> TrainConfig | None:
    """The configuration of a training run; None where it is none, such as that of a verdict."""
    described = run.config_json()
    if not isinstance(described, dict) or described.get("class") != TrainConfig.__name__:
        return None
    return run.config(TrainConfig)


def evaluate_player(run: RunFolder, game: GameConfig, episodes: int, seed: int, trust: bool = False) -> list[Row]:
    """Play whole trials with the agent of a run, as its newest checkpoint has it, and keep the mean returns: of the
    tasks that it learned from and of those that it is tested on, in each episode of a trial. Of a MetaDreamer keep what
    it takes tasks for too, and what it foretells.

    Arguments: `episodes`, how many trials of each set of tasks.

    Errors: FileNotFoundError where there is no checkpoint yet, ValueError where the game is in a module that is to be
    imported and there is no `trust`, BlockingIOError where another process evaluates the run.
    """
    run.tables.mkdir(exist_ok=True)
    with locked(run.tables / "lock", str(run.tables)):
        return _evaluate(run, game, episodes, seed, trust)


def was_evaluated(run: RunFolder) -> bool:
    """Whether all tables are there, as they were written."""
    return all(is_sealed(run.tables, name) for name in tables_of(run.config(TrainConfig)))


def tables_of(config: TrainConfig) -> list[str]:
    """The tables that `evaluate_player` makes of a run."""
    match config.agent.algorithm:
        case MetaDreamerConfig():
            return [RETURNS, CODES, FORETOLD]
    return [RETURNS]


def _evaluate(run: RunFolder, game: GameConfig, episodes: int, seed: int, trust: bool) -> list[Row]:
    config = stored(run, trust)
    trainer = build(config)
    step, state = loop.newest_state(trainer, run)
    policy, rows = trainer.policy(state), []
    for test in (None, *game.tests):
        world, tasks = game.world(episodes, judged=True), game.drawn(episodes, test)
        played = np.asarray(returns(world, policy, tasks, jax.random.key(seed), config.curve.trial))
        by_name = {name: played[k :: len(game.names)] for k, name in enumerate(game.names)}
        for of, trials in ({test or "trained": played} | by_name).items():
            for number, each in enumerate(trials.T, 1):
                row: Row = {"agent": config.name, "training_seed": config.seed, "game": game.game, "steps": step}
                row |= {"tasks": of, "episode": number, "episodes": len(each)}
                estimate = over_seeds(each)  # over trials here: Student's interval too
                row |= dict(zip(("mean", "mean_low", "mean_high"), estimate, strict=True))
                rows.append(row | {"best": getattr(world, "optimal_return", None)})
    write_csv(run.tables / RETURNS, rows)
    match trainer.agent:
        case MetaDreamer() as agent:
            sets = {test: np.asarray(game.drawn(CODED, test)) for test in game.tests}
            learner = state.learning.learner  # the networks after the last update, and the codes of known tasks
            write_csv(run.tables / CODES, code_rows(agent, learner, game.world, sets, seed))
            write_csv(run.tables / FORETOLD, foretold_rows(agent, learner, game.world, seed))
    seal(run.tables, tables_of(config))
    return rows
