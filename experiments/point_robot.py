"""PEARL's point robot: how near it comes to a goal that rewards alone tell of, beside an oracle that is told the goal.

80 goals to learn from and 20 to be judged on, in episodes of 20 steps (Rakelly et al. 2019, arXiv 1903.08254). PEARL is
learned as `reverie train --agent pearl --game point_robot` learns it, the oracle is SAC of the same size and learned as
`reverie train --agent sac --game point_robot/told`. PEARL is judged after 2, 5, 10, 20 and 40 episodes with the prior.

    python experiments/point_robot.py
    python experiments/point_robot.py --seeds 5
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float
from study import Study, study

from reverie.envs.core import Task, TimeStep, World
from reverie.evaluate.statistics import over_seeds
from reverie.policies.core import Policy
from reverie.policies.rollout import rollout
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.settings.games import game_plan
from reverie.tables import Row

EXPLORED = (2, 5, 10, 20, 40)
"""Episodes before the one that is judged."""
TRIALS = 400
"""Of each set of tasks."""
KEY = jax.random.key(1)


@dataclass(frozen=True)
class PointRobots(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds."""

    def plans(self) -> list[TrainConfig]:
        """PEARL and the oracle, for each seed."""
        both = game_plan("point_robot", "pearl"), game_plan("point_robot/told", "sac")
        return [self.larger(replace(plan, seed=seed)) for seed in range(self.seeds) for plan in both]


def final_distances(world: World, policy: Policy, tasks: Task, episodes: int) -> Float[np.ndarray, "N E"]:
    """How far from the goal each of `episodes` (N) in a row ends; the reward of a step is minus the distance left."""

    def keep(state: object, timestep: TimeStep, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        return timestep.reward, timestep.is_last

    steps = 21 * episodes - 1  # 20 each, and one between them
    reward, last = jax.jit(lambda key: rollout(world, policy, tasks, key, steps, keep))(KEY)[1]
    return -np.asarray(reward)[np.asarray(last)[:, 0]]


def policies(run: RunFolder, config: TrainConfig) -> Iterator[tuple[int, Policy]]:
    """The agent of a run, by how many episodes it has to find out."""
    trainer = build(config)
    _, state = loop.newest_state(trainer, run)
    if config.curve.trial == 1:  # it is told
        yield 0, trainer.policy(state)
        return
    for explored in EXPLORED:
        asked = replace(trainer.agent.config, test_episodes=explored)
        yield explored, replace(trainer.agent, config=asked).policy(state.averaged, greedy=True)


def rows(runs: list[RunFolder]) -> list[Row]:
    """Mean final distance of an agent over seeds, in each set of tasks, after so many episodes of finding out."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for run in runs:
        config = run.config(TrainConfig)
        assert isinstance(config.world, GameConfig)
        for explored, policy in policies(run, config):
            for name in (None, *config.world.tests):
                world, tasks = config.world.world(TRIALS), config.world.drawn(TRIALS, name)
                ends = final_distances(world, policy, tasks, explored + 1)
                found.setdefault((config.name, explored, name or "trained"), []).append(float(ends[-1].mean()))
    made = []
    for (agent, explored, tasks), ends in found.items():
        mine = [run.metrics()[-1] for run in runs if run.config(TrainConfig).name == agent]
        mean, low, high = over_seeds(np.array(ends))
        made.append(
            {"agent": agent, "tasks": tasks, "explored": explored, "seeds": len(ends)}
            | {"distance": mean, "low": None if np.isnan(low) else low, "high": None if np.isnan(high) else high}
            | {"steps": int(mine[0]["step"]), "cpu_seconds": float(np.mean([line["cpu_seconds"] for line in mine]))}
        )
    return made


def main() -> None:
    asked = study(PointRobots, __doc__)
    asked.publish("point_robot", rows(asked.train(asked.plans(), "point_robot")))


if __name__ == "__main__":
    main()
