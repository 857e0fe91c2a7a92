"""DreamerV3 outside load balancing: DeepMind Control from vectors, beside the scores that its authors published.

Each task is learned as `reverie train --game dmc:TASK --world.repeat 2` learns it, at the CPU scale of
`settings/games.py`.
`published/dmc_proprio_dreamerv3.csv` has the authors' scores (github.com/danijar/dreamerv3, scores/, 5 seeds: mean,
lowest and highest), at a larger size and with eight times as many replayed steps for each. Frames are steps of the
simulated world's control, two to an action.

    python experiments/control.py                                    # needs the extra dmc
    python experiments/control.py --game dmc:walker_walk --seeds 1
    python experiments/control.py --scale gpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from study import Study, learning_curve, study

from reverie.evaluate.statistics import over_seeds
from reverie.models import rssm
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREY, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, OffPolicyRun, TrainConfig
from reverie.settings.games import game_plan
from reverie.tables import Row, read_csv

PUBLISHED = Path(__file__).parent / "published" / "dmc_proprio_dreamerv3.csv"
REPEAT = 2
CPU_TASKS = ("dmc:cartpole_swingup", "dmc:walker_walk", "dmc:reacher_easy")


@dataclass(frozen=True)
class Control(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds of each task."""
    game: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A task to learn; give it again for each. Three unless given, on a GPU all of those with published scores."""

    @property
    def games(self) -> tuple[str, ...]:
        if self.game or self.scale == "cpu":
            return self.game or CPU_TASKS
        return tuple(dict.fromkeys(str(row["task"]) for row in read_csv(PUBLISHED)))

    def plans(self, game: str) -> list[TrainConfig]:
        """One for each seed.

        Errors: ValueError where the task has no published scores.
        """
        if not len(published(game)):
            known = ", ".join(dict.fromkeys(str(row["task"]) for row in read_csv(PUBLISHED)))
            raise ValueError(f"there are no published scores of {game!r}; there are of {known}")
        plan = replace(game_plan(game), world=GameConfig(game, REPEAT), label=game.replace(":", "-"))
        return [replace(self.larger(plan), seed=seed) for seed in range(self.seeds)]

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """On a GPU, the authors' size and schedule: 500,000 frames, 512 replayed steps for each action."""
        if self.scale == "cpu":
            return plan
        assert isinstance(plan.agent, OffPolicyRun)
        optimiser = replace(plan.agent.algorithm.optimiser, learning_rate=4e-5, warmup=1000)
        model = rssm.PRESETS["size12m"]
        algorithm = replace(plan.agent.algorithm, model=model, optimiser=optimiser, units=256, layers=3, starts=0)
        experience = replace(plan.agent.experience, streams=2, batch=16, length=64, ratio=512.0, capacity=500_000)
        agent = replace(plan.agent, algorithm=algorithm, experience=experience)
        return replace(plan, agent=agent, loop=replace(plan.loop, steps=500_000 // REPEAT))


def curve(run: RunFolder) -> np.ndarray:
    """Frames and mean returns [P, 2]."""
    return learning_curve(run) * (REPEAT, 1)


def published(game: str) -> np.ndarray:
    """Frames, mean, lowest and highest return of the authors' seeds [P, 4]."""
    columns = ("frames", "mean", "low", "high")
    return np.array([[row[c] for c in columns] for row in read_csv(PUBLISHED) if row["task"] == game], float)


def summary(game: str, runs: Sequence[RunFolder]) -> Row:
    """The last point of the learning curve beside what was published after as many frames."""
    last = np.array([curve(run)[-1] for run in runs])
    mean, low, high = over_seeds(last[:, 1])
    authors = published(game)
    row: Row = {"task": game, "seeds": len(runs), "frames": int(last[0, 0]), "mean": mean, "low": low, "high": high}
    names = ("published", "published_low", "published_high")
    at = [float(np.interp(last[0, 0], authors[:, 0], authors[:, i])) for i in (1, 2, 3)]
    lines = [run.metrics()[-1] for run in runs]
    spent = {"updates": int(lines[0]["updates"]), "cpu_seconds": float(np.mean([m["cpu_seconds"] for m in lines]))}
    return row | dict(zip(names, at, strict=True)) | spent


def picture(by_game: Mapping[str, Sequence[RunFolder]]) -> Figure:
    """Learning curves, each seed, over the authors' mean and range."""
    with setting():
        figure = Figure(figsize=(WIDTH, 2.8))
        for axis, (game, runs) in zip(figure.subplots(1, len(by_game), squeeze=False)[0], by_game.items(), strict=True):
            frames, mean, low, high = published(game).T
            most = max(curve(run)[-1, 0] for run in runs) * 1.1
            seen = frames <= most
            axis.fill_between(frames[seen] / 1000, low[seen], high[seen], color=GREY, alpha=0.25, linewidth=0)
            axis.plot(frames[seen] / 1000, mean[seen], color=GREY, label="DreamerV3, published")
            for i, run in enumerate(runs):
                points = curve(run)
                axis.plot(points[:, 0] / 1000, points[:, 1], color=BLUE, label=None if i else "Reverie, two cores")
            axis.set_title(game)
            axis.set_xlabel("thousand frames")
        figure.axes[0].set_ylabel("mean return")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    asked = study(Control, __doc__)
    runs = asked.train_games({game: asked.plans(game) for game in asked.games}, "control")
    asked.publish_games("control", [summary(game, mine) for game, mine in runs.items()], "task")
    if not asked.game:
        asked.draw("control", picture(runs))


if __name__ == "__main__":
    main()
