"""Adaptive trials: the world changes while weights are frozen, and what the agent sees may hide speeds and sizes.

The agents of `standard.py` meet loads that switch inside episodes and between them, loads beside those of training,
bursts, days, and speeds that change before their eyes. Agents that see only how many jobs each server holds (view
`counts`, preset `hidden`) meet hidden and drifting speeds, among them those measured on real machines with --speeds.

    python experiments/adaptive.py --speeds Redis__..__long__eastus__B8ms.csv.gz
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
import tyro
from standard import MEMORY, dreamers, rivals
from study import ExamOptions, Study, brief, study, with_memory, with_steps_of

from reverie.envs.core import TaskFamily
from reverie.envs.fleet.env import Task
from reverie.envs.fleet.families import INTERVALS, PARK_MEAN_SIZE, PARK_SPEEDS, draw_tasks, level, levels, measured
from reverie.evaluate.examination import Exam, Setting, of_family, of_levels
from reverie.evaluate.statistics import verdict
from reverie.settings.config import TrainConfig
from reverie.settings.presets import preset

UNSEEN = (0.35, 0.55, 0.8, 1.0)
"""Offered loads between, below and above those of training, which are .455, .667, .909 and 1.111."""


@dataclass(frozen=True)
class Adaptive(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    speeds: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A `long` file of Azure's VM noise dataset: measured drift; give it again for each."""
    drift_load: float = 0.85
    """The offered load under measured drift."""

    def seen(self) -> list[Setting]:
        """What agents that see the fleet in full are examined on."""
        intervals = tuple(PARK_MEAN_SIZE / load / PARK_SPEEDS.sum() for load in UNSEEN)
        standard = [of_family(name, self.exam) for name in ("burst", "diurnal", "drift")]
        return [
            of_levels(self.exam),
            self._trials("levels between episodes", switching, episodes=4, jobs=self.exam.jobs // 2),
            self._trials("unseen levels", levels(intervals, self.exam.jobs), episodes=2, jobs=self.exam.jobs),
            *standard,
        ]

    def hidden(self) -> list[Setting]:
        """What agents that see counts are examined on."""
        of_file = [
            Setting(
                path.name.split("__")[0] + " " + path.name.removesuffix(".csv.gz").split("__")[-1],
                draw_tasks(
                    measured(path, load=self.drift_load, segments=12, jobs=self.exam.jobs),
                    self.exam.episodes,
                    self.exam.stream,
                ),
            )
            for path in self.speeds
        ]
        return [of_family("drift", self.exam), of_family("shifting", self.exam), of_family("hard", self.exam), *of_file]

    def _trials(self, name: str, draw: TaskFamily, episodes: int, jobs: int) -> Setting:
        tasks = draw_tasks(draw, episodes * self.exam.episodes, self.exam.stream)
        shaped = jax.tree.map(lambda x: x.reshape(episodes, self.exam.episodes, *x.shape[1:]), tasks)
        return Setting(name, shaped, experiment="adaptive")


def switching(rng: np.random.Generator) -> Task:
    """One load for a whole episode, drawn anew for the next of the same trial."""
    return level(rng.choice(list(INTERVALS.values())))(rng)


def hidden_dreamers(asked: Study) -> list[TrainConfig]:
    """Dreamer + RL2 that sees counts, trained where speeds are hidden and change, once for each seed."""
    plan = preset("dreamer", "hidden")
    return [asked.larger(replace(plan, seed=seed)) for seed in range(asked.seeds)]


def hidden_rivals(asked: Study) -> list[TrainConfig]:
    """A2C and PPO with a memory for each server, in the same world, for as many steps.

    Their rewards are `admission`, which tells them the response time of each job at once, and so more than the view
    shows: with `elapsed`, whose last reward of an episode holds the whole drain, neither learns in so few steps.
    """
    dreamer = hidden_dreamers(asked)[0]
    world = replace(dreamer.world, reward="admission")
    plans = [replace(with_memory(preset(name, "cpu"), MEMORY, "set"), world=world) for name in ("a2c", "ppo")]
    named = [with_steps_of(dreamer, replace(plan, label=f"{plan.agent.name}-hidden")) for plan in plans]
    return [replace(plan, seed=seed) for plan in named for seed in range(asked.seeds)]


def main() -> None:
    asked = study(Adaptive, __doc__)
    dreamer = asked.train(dreamers(asked))
    able = [plan for plan in rivals(asked, dreamer) if plan.agent.algorithm.network.memory]  # those that could adapt
    runs = [*dreamer, *asked.train(able)]
    rows = [row for setting in asked.seen() for row in asked.examined(asked.exam, setting, runs, "full")]
    results = verdict(rows)
    asked.publish("adaptive", brief(results))
    asked.draw_verdict("adaptive", results)

    dreamer = asked.train(hidden_dreamers(asked))
    runs = [*dreamer, *asked.train(hidden_rivals(asked))]
    rows = [row for setting in asked.hidden() for row in asked.examined(asked.exam, setting, runs, "counts")]
    results = verdict(rows)
    asked.publish("hidden", brief(results))
    asked.draw_verdict("hidden", results)


if __name__ == "__main__":
    main()
