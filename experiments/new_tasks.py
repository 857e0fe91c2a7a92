"""What a task costs that is new to a mixture of world models, and what the old ones lose by it (docs/mixture.md).

Each of the four fleets of `corners` is left out in turn. A model is trained on the other three; then it goes on in the
one that it never saw, with its replay, in which each task is drawn alike. `place` learns the embeddings of tasks and
the router alone, `all` everything; `history` guesses which known task the new one is like, and so has an answer before
it has learned anything; `shared` is one STORM of as many parameters; `scratch`, a STORM of its own, knows the new task
alone. Updates for each new step are as many in all arms.

    python experiments/new_tasks.py
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from mixture import model_of
from study import Study, study

from reverie.evaluate.statistics import over_seeds
from reverie.models.storm import StormConfig
from reverie.runs.folder import RunFolder
from reverie.settings.config import CurveConfig, LoopConfig, OffPolicyRun, SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE, with_steps
from reverie.settings.suites import of_storms
from reverie.tables import Row

SUITE = "corners"
TASKS = SuiteConfig(SUITE).names
Arm = Literal["place", "all", "history", "shared", "scratch"]
ARMS: tuple[Arm, ...] = ("place", "all", "history", "shared", "scratch")
BEGINS = {"place": "mixture", "all": "mixture", "history": "history", "shared": "shared-parameters"}
"""The model that each arm goes on with; `scratch` has none."""
STREAMS = 16


@dataclass(frozen=True)
class NewTasks(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds; each is four trainings of each model, with another task left out."""
    steps: int = 8_000
    """Environment steps of each known task."""
    new_steps: int = 5_000
    """Environment steps of the new one; looked at each 1,000."""
    arms: tuple[Arm, ...] = ARMS
    """What is measured."""


def plan(model: StormConfig, learned: tuple[str, ...], label: str, seed: int, steps: int, every: int) -> TrainConfig:
    """A training in which no number of streams depends on how many tasks there are, so that another can begin there."""
    begun = replace(of_storms(SuiteConfig(SUITE, tasks=learned), model, label), seed=seed)
    agent = begun.agent
    assert isinstance(agent, OffPolicyRun)
    agent = replace(agent, experience=replace(agent.experience, streams=STREAMS))
    loop, curve = LoopConfig(steps=steps, evaluate_every=every), CurveConfig(episodes=100, jobs=250)
    return replace(with_steps(replace(begun, agent=agent), steps), loop=loop, curve=curve)


def known(asked: NewTasks, model: str, new: str, seed: int) -> TrainConfig:
    """The training of a model on all tasks but one."""
    learned = tuple(name for name in TASKS if name != new)
    label = f"{model}-without-{new.replace('/', '-')}"
    steps = asked.steps * len(learned)
    return plan(model_of(SUITE, model), learned, label, seed, steps, steps)


def folder(asked: NewTasks, before: TrainConfig) -> RunFolder:
    return RunFolder(asked.runs / asked.scale / "new-tasks" / f"{before.name}-{before.seed}")


def on_new(asked: NewTasks, arm: Arm, new: str, seed: int) -> TrainConfig:
    """The training on the new task: one step of each stream before each update."""
    label = f"{arm}-on-{new.replace('/', '-')}"
    if arm == "scratch":
        return paced(asked, plan(ALONE, (new,), label, seed, asked.new_steps, 1_000))
    before = known(asked, BEGINS[arm], new, seed)
    agent = before.agent
    assert isinstance(agent, OffPolicyRun)
    experience = agent.experience
    experience = replace(experience, ratio=experience.batch * experience.length / STREAMS)
    algorithm = replace(agent.algorithm, learns="place") if arm == "place" else agent.algorithm
    world = replace(before.world, tasks=(new,))
    after = replace(before, agent=replace(agent, algorithm=algorithm, experience=experience), world=world)
    return paced(asked, replace(after, label=label, start=folder(asked, before).path))


def paced(asked: NewTasks, plan: TrainConfig) -> TrainConfig:
    """In chunks of a third of what lies between two looks."""
    loop = replace(plan.loop, steps=asked.new_steps, evaluate_every=1_000)
    return replace(plan, agent=replace(plan.agent, chunk=21), loop=loop)


def curve(run: RunFolder) -> dict[int, dict[str, float]]:
    """By environment steps, the score of each task where the run was looked at."""
    looks = [line for line in run.metrics() if f"evaluation/score/{TASKS[0]}" in line]
    return {line["step"]: {task: line[f"evaluation/score/{task}"] for task in TASKS} for line in looks}


def at(looks: dict[int, dict[str, float]], steps: int) -> dict[str, float]:
    """The scores at the first look after so many steps."""
    return looks[min(step for step in looks if step >= steps)]


def rows(arm: Arm, runs: dict[str, list[RunFolder]]) -> list[Row]:
    """What an arm scores on the new task and on the old ones, after no, some and many steps: means over the tasks that
    were new in turn, with Student's interval over these."""
    table: list[Row] = []
    for steps in (0, 1_000, 5_000):
        scores = {new: [at(curve(run), steps) for run in of] for new, of in runs.items()}
        of_new = np.array([np.mean([score[new] for score in each]) for new, each in scores.items()])
        old = [
            np.mean([score[task] for score in each for task in TASKS if task != new]) for new, each in scores.items()
        ]
        value, low, high = over_seeds(of_new)
        row: Row = {"arm": arm, "steps": steps, "seeds": len(next(iter(runs.values())))}
        row |= {"score": value, "score_low": low, "score_high": high, "worst": float(of_new.min())}
        row |= {new: float(score) for new, score in zip(scores, of_new, strict=True)}
        table.append(row | {"old": float(np.mean(old)) if arm != "scratch" else None})
    return table


def main() -> None:
    asked = study(NewTasks, __doc__)
    models = dict.fromkeys(BEGINS[arm] for arm in asked.arms if arm in BEGINS)
    seeds = range(asked.seeds)
    asked.train([known(asked, model, new, seed) for model in models for new in TASKS for seed in seeds], "new-tasks")
    table: list[Row] = []
    for arm in asked.arms:
        runs = {new: asked.train([on_new(asked, arm, new, seed) for seed in seeds], "new-tasks") for new in TASKS}
        table += rows(arm, runs)
    asked.publish("new-tasks", table)


if __name__ == "__main__":
    main()
