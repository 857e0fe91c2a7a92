"""Games of memory: what R2I's world model learns in them on two cores, with five seeds.

Each game is played as `reverie train --game NAME` plays it. A seed counts with the mean return of 200 episodes, the
likeliest action taken. One agent for each seed plays all 23 lengths of bsuite's memory chain (`memory_length/all`, each
episode of a length drawn anew) and is judged at each of them; bsuite, and R2I's authors, train one for each length.
Autoencode is practised with parts of a deck, and judged with the whole one (`PRACTICE`).

    python experiments/games.py
    python experiments/games.py --game autoencode/easy --seeds 1
    python experiments/games.py --scale gpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from study import Study, learning_curve, study

from reverie.envs.games import GAMES, find_game
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.models import s3m
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREY, VERMILLION, setting
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, TrainConfig
from reverie.settings.games import game_plan
from reverie.tables import Row

EPISODES = 200
"""That a seed is judged by, for each game."""
SOLVED = 0.95
"""Mean return from which a memory chain counts as solved."""
CPU_GAMES = (
    "repeat_previous/easy",
    "repeat_previous/medium",
    "repeat_previous/hard",
    "memory_length/100",
    "memory_length/all",
    "discounting_chain/30",
    "discounting_chain/100",
)
PRACTICE: Mapping[str, str] = MappingProxyType({"autoencode/easy": "autoencode/parts"})
"""Games that are trained for in another."""
AUTHORS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "repeat_previous/easy": (0.805, 0.08),
        "repeat_previous/medium": (0.766, 0.13),
        "repeat_previous/hard": (0.752, -0.5),
        "autoencode/easy": (0.524, -0.494),
        "autoencode/medium": (0.453, -0.40),
        "autoencode/hard": (-0.49, -0.5),
        "concentration/easy": (0.789, 0.816),
        "concentration/medium": (0.320, 0.246),
        "concentration/hard": (-0.85, -0.85),
        "memory_length/100": (0.02, 0.0),
        "discounting_chain/30": (0.66, 0.0),
        "discounting_chain/100": (0.0, 0.0),
    }
)
"""R2I's and its authors' DreamerV3's scores, read off the figures of arXiv 2403.04253 (about ±0.01); those of the
discounting chain are rates of success."""


@dataclass(frozen=True)
class Games(Study):
    """The options of this experiment."""

    game: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A game to learn; give it again for each. At CPU scale RepeatPrevious and the chains unless given, on a GPU all
    games that the authors report."""

    @property
    def games(self) -> tuple[str, ...]:
        if self.game or self.scale == "cpu":
            return self.game or CPU_GAMES
        chains = ("memory_length/all", "discounting_chain/30", "discounting_chain/100")
        return (*(name for name in GAMES if name in AUTHORS and name not in chains), *chains)

    def plans(self, game: str) -> list[TrainConfig]:
        """One for each seed."""
        plan = replace(self.larger(game_plan(PRACTICE.get(game, game))), label=game.replace("/", "-"))
        return [replace(plan, seed=seed) for seed in range(self.seeds)]

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """On a GPU, R2I's sizes for POPGym, its updates of 4 x 1024 steps and ten times the experience."""
        if self.scale == "cpu":
            return plan
        assert isinstance(plan.agent, OffPolicyRun)
        assert isinstance(plan.agent.algorithm.model, s3m.S3MConfig)
        assert plan.loop.steps is not None
        small, large, steps = plan.agent.algorithm, s3m.PRESETS["popgym"], 10 * plan.loop.steps
        sizes = "units", "layers", "deter", "stoch", "classes", "reward_layers", "continue_layers"
        model = replace(
            small.model,
            state=max(large.state, small.model.state),
            **{name: getattr(large, name) for name in sizes},
        )
        experience = replace(plan.agent.experience, streams=64, batch=4, length=1024, capacity=1_000_000)
        optimiser = replace(small.optimiser, learning_rate=5e-4, decay=round(steps / experience.env_steps))
        algorithm = replace(small, model=model, optimiser=optimiser, units=512, starts=1024)
        agent = replace(plan.agent, algorithm=algorithm, experience=experience)
        return replace(plan, agent=agent, loop=replace(plan.loop, steps=steps))


def played(run: RunFolder, game: str) -> float:
    """Mean return of the agent of a run in one variant of its game."""
    trainer = build(run.config(TrainConfig))
    _, state = loop.newest_state(trainer, run)
    world, tasks, _ = find_game(game)
    return float(returns(world, trainer.policy(state), jax.numpy.resize(tasks, (EPISODES,)), KEY).mean())


KEY = jax.random.key(1)


def summary(game: str, runs: Sequence[RunFolder], scores: Sequence[float]) -> Row:
    """One row of the table: the mean over seeds with its interval, what it took, and what others reached."""
    mean, low, high = over_seeds(np.array(scores))
    lines = [run.metrics()[-1] for run in runs]
    authors, dreamer = AUTHORS.get(game, (None, None))
    return {
        "game": game,
        "seeds": len(runs),
        "mean": mean,
        "low": low,
        "high": high,
        "worst": min(scores),
        "steps": int(lines[0]["step"]),
        "cpu_seconds": float(np.mean([line["cpu_seconds"] for line in lines])),
        "best": getattr(find_game(game).world, "optimal_return", None),
        "r2i": authors,
        "r2i_dreamer": dreamer,
    }


def chains(runs: Sequence[RunFolder]) -> list[Row]:
    """Mean return at each length of the memory chain, of agents that play all of them."""
    world, tasks, _ = find_game("memory_length/all")
    rows: list[Row] = []
    trainer = build(runs[0].config(TrainConfig))
    policies = [trainer.policy(loop.newest_state(trainer, run)[1]) for run in runs]
    for task in tasks:
        each = jax.numpy.full(EPISODES, task)
        scores = [float(returns(world, policy, each, KEY).mean()) for policy in policies]
        solved = sum(score >= SOLVED for score in scores)
        rows.append({"length": world.lengths[task], "mean": np.mean(scores), "worst": min(scores), "solved": solved})
    return rows


def picture(by_game: Mapping[str, Sequence[RunFolder]]) -> Figure:
    """Learning curves in what is trained in: each seed, the authors' final score, and the best that is possible."""
    with setting():
        figure = Figure(figsize=(WIDTH, 2.6 * -(-len(by_game) // 2)))
        axes = figure.subplots(-(-len(by_game) // 2), 2, squeeze=False).ravel()
        for axis in axes[len(by_game) :]:
            axis.remove()
        for axis, (judged, runs) in zip(axes, by_game.items(), strict=False):
            game = PRACTICE.get(judged, judged)
            for run in runs:
                steps, scores = learning_curve(run).T
                axis.plot(steps / 1000, scores, color=BLUE, linewidth=1, alpha=0.8)
            if game in AUTHORS and not game.startswith("discounting_chain"):  # whose scores are no returns
                axis.axhline(AUTHORS[game][0], color=VERMILLION, linewidth=1, linestyle="--", label="R2I's authors")
            best = getattr(find_game(game).world, "optimal_return", None)
            if best is not None:
                axis.axhline(best, color=GREY, linewidth=1, linestyle=":", label="best possible")
            axis.set_title(game)
            axis.set_xlabel("thousand environment steps")
            axis.legend(loc="lower right")
        axes[0].set_ylabel("mean return")
    return figure


def main() -> None:
    asked = study(Games, __doc__)
    runs = asked.train_games({game: asked.plans(game) for game in asked.games}, "games")
    scores = {game: [played(run, game) for run in mine] for game, mine in runs.items()}
    asked.publish_games("games", [summary(game, mine, scores[game]) for game, mine in runs.items()])
    if "memory_length/all" in runs:
        asked.publish("memory_length", chains(runs["memory_length/all"]))
    if not asked.game:
        asked.draw("games", picture(runs))


if __name__ == "__main__":
    main()
