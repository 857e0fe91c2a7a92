"""Standard trials: one load, weights frozen, Dreamer + RL2 beside A2C, PPO, all classical rules and a bound.

Redovian 2025 (arXiv 2503.08872) compares with A2C alone. Here A2C and PPO, with and without memory, have as many
environment steps as Dreamer; beside them stand A2C and PPO with as much CPU time. With --trace FILE, windows of
recorded traces are examined too.

    python experiments/standard.py --trace AzureLLMInferenceTrace_conv.csv --trace AzureLLMInferenceTrace_code.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from study import ExamOptions, Study, brief, study, with_memory, with_steps_of, with_time_of

from reverie.envs.fleet.formats.reading import read_trace
from reverie.evaluate.examination import STANDARD, Exam, Setting, bounds, of_family, of_trace
from reverie.evaluate.statistics import verdict
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.settings.presets import preset

TIMED_SEEDS = 3
"""Training seeds of those that train for as much time as Dreamer, at most: they take most of this experiment's."""
MEMORY = 64
"""Units of the recurrent A2C and PPO, for each server."""


@dataclass(frozen=True)
class Standard(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    trace: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A recorded trace to examine the agents on; give it again for each."""
    load: float = 0.8
    """The offered load that traces are brought to."""

    def settings(self) -> list[Setting]:
        traces = [of_trace(read_trace(path), self.exam, self.load) for path in self.trace]
        return [*(of_family(name, self.exam) for name in STANDARD), *traces]


def dreamers(asked: Study) -> list[TrainConfig]:
    """Dreamer + RL2 by its preset, trained on changing loads, once for each seed."""
    return [asked.larger(replace(preset("dreamer", "cpu"), seed=seed)) for seed in range(asked.seeds)]


def rivals(asked: Study, dreamer: Sequence[RunFolder]) -> list[TrainConfig]:
    """A2C and PPO, with and without memory, for as many steps as Dreamer; then without, for as much time."""
    plain = [preset("a2c", "cpu"), preset("ppo", "cpu")]
    of_steps = [with_steps_of(dreamers(asked)[0], plan) for plan in (*plain, *(with_memory(p, MEMORY) for p in plain))]
    of_time = [with_time_of(dreamer, plan) for plan in plain]
    seeds = dict.fromkeys(of_steps, asked.seeds) | dict.fromkeys(of_time, min(asked.seeds, TIMED_SEEDS))
    return [replace(plan, seed=seed) for plan, count in seeds.items() for seed in range(count)]


def informed(asked: Study) -> list[TrainConfig]:
    """A2C that is told as much as Dreamer's model knows, for as many steps: servers as a set, with what a queue makes
    of work, speed and the job's size. The step size falls to 0, and the discount looks 200 steps ahead: of ten settings
    the best on the learning curve, in the family that it trains on, one seed each."""
    plan = replace(with_memory(preset("a2c", "cpu"), 0, "queue"), label="a2c-informed")
    plan = with_steps_of(dreamers(asked)[0], plan)
    updates = (plan.loop.steps or 0) // plan.agent.experience.env_steps
    algorithm = replace(plan.agent.algorithm, discount=0.995, decay=updates)
    plan = replace(plan, agent=replace(plan.agent, algorithm=algorithm))
    return [replace(plan, seed=seed) for seed in range(asked.seeds)]


def trained(asked: Study) -> list[RunFolder]:
    """All agents of this experiment, trained."""
    dreamer = asked.train(dreamers(asked))
    return [*dreamer, *asked.train(rivals(asked, dreamer)), *asked.train(informed(asked))]


def main() -> None:
    asked = study(Standard, __doc__)
    runs = trained(asked)
    rows = []
    for setting in asked.settings():
        rows += asked.examined(asked.exam, setting, runs, "full")
        rows += asked.kept(
            f"{setting.name.replace(' ', '-')}-bound", lambda setting=setting: bounds(setting, asked.exam), asked.exam
        )
    results = verdict(rows)
    asked.publish("standard", brief(results))
    asked.draw_verdict("standard", results)
    spent = [
        {"agent": run.path.name.rsplit("-", 1)[0], "seed": int(run.path.name.rsplit("-", 1)[1])}
        | {name: last[name] for name in ("step", "updates", "cpu_seconds", "wall_seconds")}
        for run in runs
        for last in [run.metrics()[-1]]
    ]
    asked.publish("standard_cost", spent)


if __name__ == "__main__":
    main()
