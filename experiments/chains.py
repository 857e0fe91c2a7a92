"""DreamerV3 in bsuite's chains, beside what R2I's authors report of theirs (arXiv 2403.04253, read off a figure).

Plain DreamerV3, with an RSSM and nothing of ours, is to remember one bit for 2 to 14 steps, and to choose the best of
five rewards, which comes after 1, 3 or 10 steps. The chains are those of `envs/memory/`, bsuite's to the last bit. The
authors' agent has 10,000 episodes of the former, 1,000 of the latter and 1,024 replayed steps for each new one; here a
small network has 30,000 steps and 64 replayed for each. A seed is judged by 200 episodes with the likeliest action.

    python experiments/chains.py
    python experiments/chains.py --game memory_length/10 --seeds 1
    python experiments/chains.py --scale gpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import tyro
from games import played
from matplotlib.figure import Figure
from study import Study, learning_curve, study

from reverie.agents.dreamer import DreamerConfig
from reverie.envs.games import find_game
from reverie.evaluate.statistics import over_seeds
from reverie.models.rssm import RSSMConfig
from reverie.nn.optimiser import OptimiserConfig
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREY, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import CurveConfig, GameConfig, LoopConfig, OffPolicyRun, TrainConfig
from reverie.tables import Row
from reverie.train.off_policy import OffPolicyConfig

SMALL = TrainConfig(
    agent=OffPolicyRun(
        algorithm=DreamerConfig(
            model=RSSMConfig(deter=64, blocks=4, stoch=8, classes=8),
            optimiser=OptimiserConfig(learning_rate=1e-3, warmup=200),
            memory=0,
            layers=2,
            dream_length=8,
            starts=256,
        ),
        experience=OffPolicyConfig(streams=4, length=32, ratio=64.0),
        chunk=50,
    ),
    curve=CurveConfig(episodes=32),
)
"""DreamerV3 for chains, at the scale of a CPU."""
CHAINS = ("memory_length", "memory_size", "discounting_chain")
STEPS = 30_000
"""Environment steps of a training."""
PUBLISHED: Mapping[str, float] = MappingProxyType(
    {
        "memory_length/2": 0.98,
        "memory_length/5": 0.98,
        "memory_length/10": 0.98,
        "memory_length/14": 0.98,
        "discounting_chain/1": 0.99,
        "discounting_chain/3": 0.99,
        "discounting_chain/10": 0.99,
    }
)
"""Success of the DreamerV3 of R2I's authors; about ±0.02."""


@dataclass(frozen=True)
class Chains(Study):
    """The options of this experiment."""

    seeds: int = 2
    """Training seeds of each chain."""
    game: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A chain to learn; give it again for each. All of those below unless given."""

    @property
    def games(self) -> tuple[str, ...]:
        return self.game or tuple(PUBLISHED)

    def plans(self, game: str) -> list[TrainConfig]:
        """One for each seed.

        Errors: ValueError where the game is none of bsuite's chains.
        """
        if game.split("/")[0] not in CHAINS:
            raise ValueError(f"--game must be one of bsuite's chains, {', '.join(CHAINS)}, got {game!r}")
        loop = LoopConfig(steps=STEPS, evaluate_every=STEPS // 10)
        plan = self.larger(replace(SMALL, world=GameConfig(game), loop=loop, label=game.replace("/", "-")))
        return [replace(plan, seed=seed) for seed in range(self.seeds)]

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """On a GPU, larger networks, and an update for each step as the authors have it."""
        if self.scale == "cpu":
            return plan
        assert isinstance(plan.agent, OffPolicyRun)
        model = replace(SMALL.agent.algorithm.model, units=256, deter=512, stoch=32, classes=16)
        optimiser = replace(plan.agent.algorithm.optimiser, learning_rate=1e-4, warmup=1000)
        algorithm = replace(plan.agent.algorithm, model=model, optimiser=optimiser, units=256, starts=0)
        experience = replace(plan.agent.experience, streams=1, batch=16, length=64, ratio=1024.0)
        return replace(plan, agent=replace(plan.agent, algorithm=algorithm, experience=experience))


def success(game: str, scores: np.ndarray) -> np.ndarray:
    """Mean returns from 0, which takes no learning (guesses, or an arm that pays 1), to 1, the best possible."""
    least = 1.0 if game.startswith("discounting_chain") else 0.0
    return (scores - least) / (find_game(game).world.optimal_return - least)


def summary(game: str, runs: Sequence[RunFolder]) -> Row:
    """One row of the table: success, what it took, and what was published."""
    rates = success(game, np.array([played(run, game) for run in runs]))
    mean, low, high = over_seeds(rates)
    lines = [run.metrics()[-1] for run in runs]
    spent = {"steps": int(lines[0]["step"]), "updates": int(lines[0]["updates"])}
    cost = {"cpu_seconds": float(np.mean([line["cpu_seconds"] for line in lines]))}
    row: Row = {"game": game, "seeds": len(runs), "success": mean, "low": low, "high": high, "worst": float(min(rates))}
    return row | spent | cost | {"published": PUBLISHED.get(game)}


def picture(by_game: Mapping[str, Sequence[RunFolder]]) -> Figure:
    """Learning curves: success of each seed, and what was published."""
    with setting():
        figure = Figure(figsize=(WIDTH, 2.2 * -(-len(by_game) // 3)))
        axes = figure.subplots(-(-len(by_game) // 3), 3, squeeze=False, sharey=True)
        for axis in axes.ravel()[len(by_game) :]:
            axis.remove()
        for axis, (game, runs) in zip(axes.ravel(), by_game.items(), strict=False):
            for i, run in enumerate(runs):
                steps, scores = learning_curve(run).T
                label = None if i else "Reverie, two cores"
                axis.plot(steps / 1000, success(game, scores), color=BLUE, linewidth=1, label=label)
            if game in PUBLISHED:
                axis.axhline(PUBLISHED[game], color=GREY, linestyle="--", label="R2I's authors' DreamerV3, at the end")
            axis.set_title(game)
            axis.set_xlabel("thousand environment steps")
        for row in axes:
            row[0].set_ylabel("success")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    asked = study(Chains, __doc__)
    runs = asked.train_games({game: asked.plans(game) for game in asked.games}, "chains")
    asked.publish_games("chains", [summary(game, mine) for game, mine in runs.items()])
    if not asked.game:
        asked.draw("chains", picture(runs))


if __name__ == "__main__":
    main()
