"""Agents that learned a game: judged by the returns of whole episodes."""

import jax
import numpy as np
from jaxtyping import PyTree

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.evaluate.kept import kept, training_of
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.files import is_sealed
from reverie.policies.core import Policy
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row
from reverie.train.trainers import WorldTrainer

RETURNS = "returns.csv"
"""In `tables/` of a run: the mean return of the agent, in each set of tasks and each episode of a trial."""
CODES, FORETOLD = "codes.csv", "foretold.csv"
"""Of a MetaDreamer besides (`imagined.py`)."""
CODED = 200
"""Tasks of each set whose codes are kept."""


def game_of(run: RunFolder) -> GameConfig | None:
    """The game that a run trains in; None where it trains in a fleet, or is no training run."""
    return None if (config := training_of(run)) is None else config.game


def evaluate_player(run: RunFolder, game: GameConfig, episodes: int, seed: int, trust: bool = False) -> list[Row]:
    """Play whole trials with the agent of a run, as its newest checkpoint has it, and keep the mean returns: of the
    tasks that it learned from and of those that it is tested on, in each episode of a trial. Of a MetaDreamer keep what
    it takes tasks for too, and what it foretells.

    Arguments: `episodes`, how many trials of each set of tasks.

    Errors: those of `kept`.
    """

    def tables(config: TrainConfig, trainer: WorldTrainer, step: int, state: PyTree) -> dict[str, list[Row]]:
        found = {RETURNS: _returns(config, step, trainer.policy(state), game, episodes, seed)}
        match trainer.agent:
            case MetaDreamer() as agent:
                sets = {test: np.asarray(game.drawn(CODED, test)) for test in game.tests}
                learner = state.learning.learner  # the networks after the last update, and the codes of known tasks
                found[CODES] = code_rows(agent, learner, game.world, sets, seed)
                found[FORETOLD] = foretold_rows(agent, learner, game.world, seed)
        return found

    return kept(run, trust, tables)[RETURNS]


def was_evaluated(run: RunFolder) -> bool:
    """Whether all tables are there, as they were written."""
    return all(is_sealed(run.tables, name) for name in tables_of(run.config(TrainConfig)))


def tables_of(config: TrainConfig) -> list[str]:
    """The tables that `evaluate_player` makes of a run."""
    match config.agent.algorithm:
        case MetaDreamerConfig():
            return [RETURNS, CODES, FORETOLD]
    return [RETURNS]


def _returns(config: TrainConfig, step: int, policy: Policy, game: GameConfig, episodes: int, seed: int) -> list[Row]:
    rows = []
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
    return rows
