"""Meta-World's MT10: ten tasks of a robot's arm, one agent, success after 100,000 of its steps in each.

Arms: `mixture`, which has parts for each task; `shared`, one STORM for all that is told the task; `storm`, one that is
not told; `sac`, SAC that is told it. Each action is done twice in a row, so 50,000 decisions a task. Success is that of
10 episodes a task, the agent taking its likeliest action; a task is done when Meta-World says so at any step. Published
figures are in `published/meta_world.csv`: of MT50, other lengths of episodes and larger networks, so no comparison.

    python experiments/meta_world.py                  # in an environment with reverie and its extra metaworld
    python experiments/meta_world.py --arms mixture shared --steps 20000
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from study import Study, study

from reverie.evaluate.players import evaluate_player, game_of
from reverie.evaluate.statistics import over_seeds
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.settings.games import game_plan
from reverie.settings.presets import with_model, with_steps
from reverie.tables import Row

GAME, REPEAT = "metaworld:MT10", 2
EPISODES = 10
"""Of each task."""
Arm = Literal["mixture", "shared", "storm", "sac"]


@dataclass(frozen=True)
class MetaWorldStudy(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds of each arm."""
    steps: int = 50_000
    """Decisions in each task."""
    arms: tuple[Arm, ...] = ("mixture", "shared", "storm", "sac")
    """Which models."""

    def plans(self, arm: Arm) -> list[TrainConfig]:
        """One for each seed."""
        plan = game_plan(f"{GAME}/told", "sac") if arm == "sac" else with_model(game_plan(GAME), arm)
        plan = with_steps(replace(plan, world=replace(plan.world, repeat=REPEAT)), 10 * self.steps)
        plan = self.larger(replace(plan, label=f"mt10-{arm}"))
        return [replace(plan, seed=seed) for seed in range(self.seeds)]


def success(run: RunFolder) -> dict[str, float]:
    """The success rate of each task, and of all."""
    game = game_of(run)
    assert game is not None
    rows = evaluate_player(run, game, EPISODES * len(game.names), seed=1)
    return {str(row["tasks"]): float(str(row["mean"])) for row in rows}


def summary(arm: str, runs: Sequence[RunFolder]) -> Row:
    """Means over seeds."""
    found = [success(run) for run in runs]
    mean, low, high = over_seeds(np.array([each["trained"] for each in found]))
    lines = [run.metrics()[-1] for run in runs]
    row: Row = {"arm": arm, "seeds": len(runs), "steps": int(lines[0]["step"]) * REPEAT // 10}
    row |= {"updates": int(lines[0]["updates"]), "cpu_seconds": float(np.mean([m["cpu_seconds"] for m in lines]))}
    several = len(runs) > 1
    row |= {"success": mean, "low": low if several else None, "high": high if several else None}
    return row | {name: float(np.mean([each[name] for each in found])) for name in found[0] if name != "trained"}


def main() -> None:
    asked = study(MetaWorldStudy, __doc__)
    trained = asked.train_games({arm: asked.plans(arm) for arm in asked.arms}, "meta-world")
    asked.publish("meta_world", [summary(arm, runs) for arm, runs in trained.items()])


if __name__ == "__main__":
    main()
