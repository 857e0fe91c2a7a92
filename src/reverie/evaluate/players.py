"""Agents that learned games: judged by the returns of whole episodes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PyTree

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.envs.core import Task, World
from reverie.evaluate.agents import Agent, load_trained
from reverie.evaluate.contestants import Contestant, check_sides
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.evaluate.kept import kept, training_of
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import WINDOWS_FOR_A_CLAIM, decided, difference, is_claim, over_episodes
from reverie.files import is_sealed
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row
from reverie.train.trainers import WorldTrainer

RETURNS = "returns.csv"
"""In `tables/` of a run: the mean return of the agent, in each set of tasks and each episode of a trial."""
CODES, FORETOLD = "codes.csv", "foretold.csv"
"""Of a MetaDreamer besides (`imagined.py`)."""
LEARNED = "trained"
"""The set of the tasks that were learned from."""
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
        world = game.world(episodes, judged=True)
        player = Contestant(config.name, trainer.policy(state), world, training_seed=config.seed)
        of: Row = {"agent": config.name, "training_seed": config.seed, "game": game.game, "steps": step}
        best = getattr(world, "optimal_return", None)
        found = {
            RETURNS: [
                of | {name: row[name] for name in ("tasks", "episode", "episodes", *_MEAN)} | {"best": best}
                for row in standings([player], _sets(game, episodes), game.names, config.curve.trial, seed)
            ]
        }
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


_MEAN = "mean", "mean_low", "mean_high"


def compare_players(paths: Sequence[Path], episodes: int, seed: int, trust: bool = False) -> list[Row]:
    """Agents of runs that learned one game, told the task or not, from these tasks or those, on the same trials of all
    sets of tasks that they share: `standings`.

    Arguments: `episodes`, how many trials of each set of tasks; each has as many episodes as the longest trial
    (`curve.trial`) that one of these agents was judged by in training.

    Raises:
        ValueError: their games are not one, or have no tasks in common; as for `load_trained` besides.
    """
    agents = load_trained(paths, trust)
    games = [_game(agent, agents[0]) for agent in agents]
    sets = _shared([_sets(game, episodes) for game in games])
    if not sets:
        raise ValueError("no tasks are common to what these agents learned from, nor to what they are tested on")
    worlds = {game: game.world(episodes, judged=True) for game in dict.fromkeys(games)}  # copies outside are many
    players = [
        Contestant(agent.name, agent.policy, worlds[game], training_seed=agent.config.seed)
        for agent, game in zip(agents, games, strict=True)
    ]
    return standings(players, sets, games[0].names, max(agent.config.curve.trial for agent in agents), seed)


def standings(
    players: Sequence[Contestant[World]], sets: Mapping[str, Task], names: Sequence[str], trial: int, seed: int
) -> list[Row]:
    """How agents stand in a game: a row for each set of tasks, each task of it that has a name (where that was played),
    each episode of a trial, and each agent, the best first.

    Arguments: `sets`, the tasks of E trials by the name of the set; `names`, of tasks that have some, which take turns;
    `trial`, the episodes of a trial.
    Returns `mean` with `_low` and `_high`, the mean return with its interval of 95 %, which is of any tasks like those
    that are tested on, so that trials of one of them count as one, and of no others than those that were learned from;
    `difference` with `_low` and `_high`, to the first player (`against`), with `p`, `verdict` and `claim` as in
    `statistics.verdict`; `seeds`, `episodes`.

    Errors: ValueError where one player stands there twice; those of `returns`.
    """
    check_sides(players, sets)
    rows: list[Row] = []
    for name, tasks in sets.items():
        played: dict[str, list[Float[np.ndarray, "E N"]]] = defaultdict(list)
        for c in players:
            played[c.name].append(np.asarray(returns(c.world, c.policy, tasks, jax.random.key(seed), trial), float))
        values = {agent: np.stack(each) for agent, each in played.items()}  # [S, E, N]
        trials = next(iter(values.values())).shape[1]
        drawn = None if name == LEARNED else _of_tasks(tasks)
        turns = {name: slice(None)} | {named: slice(k, None, len(names)) for k, named in enumerate(names[:trials])}
        for of, turn in turns.items():
            for number in range(trial):
                at: Row = {"tasks": of, "episode": number + 1}
                now = {agent: each[:, turn, number] for agent, each in values.items()}
                rows += [at | row for row in _stand(now, drawn if of == name else None)]
    return rows


def _of_tasks(tasks: Task) -> Float[np.ndarray, "E K"] | None:
    """What makes of values of E trials the means of K tasks; None where these are one, or as many as trials."""
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tasks)]
    index = np.unique(np.concatenate(leaves, 1), axis=0, return_inverse=True)[1].ravel()
    member = index[:, None] == np.arange(index.max() + 1)
    return member / member.sum(0) if 1 < member.shape[1] < len(member) else None


def _game(agent: Agent, first: Agent) -> GameConfig:
    """What an agent learned. Errors: ValueError where it is not the game of the first."""
    game, wanted = agent.config.game, first.config.game
    if game is None or wanted is None or game.untold != wanted.untold:
        raise ValueError(f"{agent.name} and {first.name} did not learn one game: agents are compared in one")
    return game


def _sets(game: GameConfig, trials: int) -> dict[str, Task]:
    """The tasks of so many trials, by the name of their set."""
    return {test or LEARNED: game.drawn(trials, test) for test in (None, *game.tests)}


def _shared(of_games: Sequence[Mapping[str, Task]]) -> dict[str, Task]:
    """The sets that are the same in all."""
    return {
        name: tasks
        for name, tasks in of_games[0].items()
        if all(np.array_equal(tasks, sets.get(name, ())) for sets in of_games)
    }


def _stand(
    values: Mapping[str, Float[np.ndarray, "S E"]], of_tasks: Float[np.ndarray, "E K"] | None = None
) -> list[Row]:
    """The rows of agents by their returns; trials of one task are no more than one where `of_tasks` says which."""
    against = next(iter(values))
    units = values if of_tasks is None else {agent: each @ of_tasks for agent, each in values.items()}
    words = decided(units, against, more=True)
    rows: list[Row] = []
    for agent in sorted(units, key=lambda name: -units[name].mean()):
        seeds, trials = values[agent].shape
        row: Row = {"agent": agent, "against": against, "seeds": seeds, "episodes": trials}
        row |= dict(zip(_MEAN, over_episodes(units[agent]), strict=True))
        between = difference(units[agent], units[against]) if agent != against else (None,) * 3
        row |= dict(zip(("difference", "difference_low", "difference_high"), between, strict=True))
        row["p"], row["verdict"] = words[agent]
        enough = of_tasks is None or of_tasks.shape[1] >= WINDOWS_FOR_A_CLAIM
        row["claim"] = enough and is_claim(values[agent], values[against])
        rows.append(row)
    return rows
