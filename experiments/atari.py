"""Atari-100k: a STORM for each game, beside the scores of published agents.

`published/atari100k.json` has per-game means that were computed from the public score files of each agent, and the
scores of random play and of people. A human-normalised score is (score - random) / (human - random). IQM is the mean of
the middle half of the games; papers take it over games and seeds, of which only means are public for most, so what is
shown of all of them, ours too, is that over the means of games. Protocols differ: see `envs/outside/atari.py` for ours.

    python experiments/atari.py --scale gpu               # three games (needs the extra atari and a GPU)
    python experiments/atari.py --scale gpu --all         # all 26
    python experiments/atari.py                           # one game, so small and short that nothing is learned
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import trim_mean
from study import Study, learning_curve, study

from reverie.evaluate.statistics import over_seeds
from reverie.files import write_text
from reverie.models.storm import StormConfig
from reverie.runs.folder import RunFolder
from reverie.settings.config import CurveConfig, OffPolicyRun, TrainConfig
from reverie.settings.games import game_plan
from reverie.settings.presets import with_steps
from reverie.tables import Row

PUBLISHED = json.loads((Path(__file__).parent / "published" / "atari100k.json").read_text())
"""`games`, `random` and `human` by game, and `scores` by agent and game."""
THREE = ("Boxing", "Pong", "MsPacman")
OURS = "Reverie STORM"


@dataclass(frozen=True)
class Atari(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds of each game."""
    game: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A game to learn, such as Pong; give it again for each. Pong alone on two cores, and three on a GPU."""
    all: bool = False
    """All 26 games."""

    @property
    def as_published(self) -> bool:
        """On two cores nothing is learned."""
        return self.scale == "gpu" and not self.game

    @property
    def games(self) -> tuple[str, ...]:
        if self.all:
            return tuple(PUBLISHED["games"])
        return self.game or (THREE if self.scale == "gpu" else ("Pong",))

    def plans(self, game: str) -> list[TrainConfig]:
        """One for each seed.

        Errors: ValueError where the game is none of the 26.
        """
        if game not in PUBLISHED["games"]:
            raise ValueError(f"there are no published scores of {game!r}; there are of {', '.join(PUBLISHED['games'])}")
        plan = replace(game_plan(f"atari:{game}"), label=f"atari-{game}")
        return [replace(self.larger(plan), seed=seed) for seed in range(self.seeds)]

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """On a GPU, STORM's; on two cores whatever runs through."""
        if self.scale == "gpu":
            return plan
        assert isinstance(plan.agent, OffPolicyRun)
        model = StormConfig(
            units=32,
            deter=32,
            heads=2,
            window=4,
            dropout=0.0,
            stoch=8,
            classes=4,
            encoder_layers=1,
            decoder_layers=1,
            reward_layers=1,
            continue_layers=1,
            depth=2,
        )
        algorithm = replace(plan.agent.algorithm, model=model, units=32, dream_length=3, starts=16)
        experience = replace(plan.agent.experience, streams=2, batch=2, length=8, ratio=4.0, prefill=64, capacity=2_000)
        agent = replace(plan.agent, algorithm=algorithm, experience=experience)
        world = replace(plan.world, limit=100)
        return with_steps(replace(plan, agent=agent, world=world, curve=CurveConfig(episodes=2)), 400)


def normalised(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of games, 0 for random play and 1 for people."""
    least, most = PUBLISHED["random"], PUBLISHED["human"]
    return {game: (score - least[game]) / (most[game] - least[game]) for game, score in scores.items()}


def aggregate(agent: str, scores: Mapping[str, float]) -> Row:
    """Mean, median and IQM of the human-normalised scores of an agent."""
    values = list(normalised(scores).values())
    row: Row = {"agent": agent, "games": len(values), "mean": float(np.mean(values))}
    return row | {"median": float(np.median(values)), "iqm": float(trim_mean(values, 0.25))}


def aggregates(ours: Mapping[str, float]) -> list[Row]:
    """Ours, and those of all published agents on the same games."""
    theirs = {agent: {game: scores[game] for game in ours} for agent, scores in PUBLISHED["scores"].items()}
    return [aggregate(agent, scores) for agent, scores in {OURS: ours, **theirs}.items()]


def summary(game: str, runs: Sequence[RunFolder]) -> Row:
    """The last point of the learning curve, beside random play, people and two published agents."""
    last = np.array([learning_curve(run)[-1] for run in runs])
    mean, low, high = over_seeds(last[:, 1])
    row: Row = {"game": game, "seeds": len(runs), "steps": int(last[0, 0]), "mean": mean, "low": low, "high": high}
    row |= {"normalised": normalised({game: mean})[game]}
    row |= {name: PUBLISHED[name][game] for name in ("random", "human")}
    return row | {f"{agent}, published": PUBLISHED["scores"][agent][game] for agent in ("STORM", "DIAMOND")}


def main() -> None:
    asked = study(Atari, __doc__)
    runs = asked.train_games({game: asked.plans(game) for game in asked.games}, "atari")
    rows = [summary(game, mine) for game, mine in runs.items()]
    scores = {str(row["game"]): float(str(row["mean"])) for row in rows}
    ours = {name: PUBLISHED[name] for name in ("games", "human", "random")} | {"scores": {OURS: scores}}
    write_text(asked.runs / asked.scale / "atari100k.json", json.dumps(ours, indent=2))
    asked.publish("atari", rows)
    asked.publish("atari-aggregates", aggregates(scores))


if __name__ == "__main__":
    main()
