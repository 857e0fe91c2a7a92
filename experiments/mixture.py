"""What a mixture of world models is worth: one agent for several fleets, beside one agent for each (docs/mixture.md).

Arms, all for equally many steps of each task: an ensemble of STORMs, one for each task alone; the mixture; one STORM
for all that is told the task, of as many parameters as the mixture, and another of as many operations in an update; the
mixture without one of its parts; and what a user should run, the agent that knows what a queue is. They are judged by
their score, (random - agent) / (random - best rule), on the same jobs.

    python experiments/mixture.py
    python experiments/mixture.py --suite loads             # one fleet at four loads: one end of the dial
    python experiments/mixture.py --suite schemas           # unlike fleets in unlike views: the other
    python experiments/mixture.py --arms mixture no-trunk   # some arms alone
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from study import ExamOptions, Study, study

from reverie.evaluate.examination import Exam
from reverie.evaluate.statistics import over_seeds
from reverie.evaluate.suites import SuiteTrials, score_row, suite_trials
from reverie.models.core import Sequence as Replayed
from reverie.models.storm import StormConfig
from reverie.report.figures import WIDTH
from reverie.report.output import say
from reverie.report.style import BLUE, GREY, INK, VERMILLION, setting
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.runs.folders import RunFolders
from reverie.settings.config import LoopConfig, SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE, MIXTURE, SHARED, with_steps
from reverie.settings.suites import of_storms, suite_plan
from reverie.sweep.training import LIMITS, beginning_of, open_or_create
from reverie.tables import Row
from reverie.train.seeds import side_by_side

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "random-routing": {"routing": "chance"},
    "token-routing": {"routing": "token"},
    "token-routing-kept": {"routing": "token", "switching": 1.0},
    "descriptor": {"tells": "descriptor"},
    "history": {"tells": "history"},
    "no-trunk": {"trunk": 0, "layers": 2},
    "no-clusters": {"modules": 1},
    "clusters-4": {"modules": 4},
    "no-task-loss": {"task_scale": 0.0},
    "no-balance": {"balance": 0.0},
    "experts-2": {"experts": 2},
    "experts-8": {"experts": 8},
}
"""What each changes in the mixture."""


@dataclass(frozen=True)
class Mixtures(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=100, jobs=250))
    seeds: int = 5
    """Training seeds."""
    suite: Literal["corners", "schemas", "loads", "fleets"] = "corners"
    """The tasks."""
    steps: int = 8_000
    """Environment steps of each task."""
    arms: tuple[str, ...] = ("ensemble", "mixture", "shared-parameters", "shared-operations", *ABLATIONS, "queue")
    """What is trained, besides the ensemble."""


def plans(asked: Mixtures, arm: str, seed: int) -> list[TrainConfig]:
    """The trainings that an arm consists of, one or one for each task.

    Raises:
        ValueError: another scale is asked for, or a number of workers.
    """
    asked.only_here()
    names = SuiteConfig(asked.suite).names
    if arm == "ensemble":
        return [plan(asked, ALONE, f"ensemble-{k}", seed, (name,)) for k, name in enumerate(names)]
    if arm == "queue":
        whole = suite_plan(asked.suite, "queue")
        return [timed(asked, replace(whole, label="queue", seed=seed), len(names))]
    return [plan(asked, model_of(asked.suite, arm), arm, seed)]


def plan(asked: Mixtures, model: StormConfig, label: str, seed: int, only: tuple[str, ...] = ()) -> TrainConfig:
    """The same training for any model."""
    world = SuiteConfig(asked.suite, tasks=only)
    return timed(asked, replace(of_storms(world, model, label), seed=seed), len(world.learned))


def timed(asked: Mixtures, plan: TrainConfig, tasks: int) -> TrainConfig:
    steps = asked.steps * tasks
    return replace(with_steps(plan, steps), loop=LoopConfig(steps=steps, save_every=200.0))


def model_of(suite: str, arm: str) -> StormConfig:
    """The world model of an arm that learns all tasks at once."""
    if arm.startswith("shared"):
        return matched(suite, SHARED, {"shared-parameters": parameters, "shared-operations": operations}[arm])
    return replace(MIXTURE, **({} if arm == "mixture" else ABLATIONS[arm]))


@cache
def matched[M: StormConfig](suite: str, model: M, measure: Callable[[str, StormConfig], float]) -> M:
    """A model for all tasks, of the width that makes it measure as much as the mixture."""
    wanted = measure(suite, MIXTURE)
    widths = range(16, 256, 4)
    shared = {w: replace(model, deter=w) for w in widths}
    low, high = 0, len(widths) - 1
    while low < high:  # the first width that is not smaller
        middle = (low + high) // 2
        low, high = (middle + 1, high) if measure(suite, shared[widths[middle]]) < wanted else (low, middle)
    near = [shared[widths[i]] for i in (max(0, low - 1), low)]
    return min(near, key=lambda config: abs(np.log(measure(suite, config) / wanted)))


def networks(plan: TrainConfig) -> Any:
    """The shapes of all that a training learns."""
    return jax.eval_shape(build(plan).agent.init, jax.random.key(0)).networks


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))


@cache
def parameters(suite: str, model: StormConfig) -> float:
    """Numbers that an agent with this world model learns, actor and critics included."""
    return float(size(networks(plan(Mixtures(suite=suite), model, "x", 0))))


@cache
def operations(suite: str, model: StormConfig) -> float:
    """Floating-point operations of the gradient of the world model's loss on one batch, as XLA counts them."""
    agent, experience = (trainer := build(plan(Mixtures(suite=suite), model, "x", 0))).agent, trainer.config
    learned = networks(plan(Mixtures(suite=suite), model, "x", 0)).model
    shape, spec = (experience.batch, experience.length), agent.observation_spec
    integer = {name: entry.kind == "task" for name, entry in spec.items()}

    def cost(model: Any) -> Any:
        observation = {
            name: jnp.zeros((*shape, *entry.shape), jnp.int32 if integer[name] else jnp.float32)
            for name, entry in spec.items()
        }
        no, nothing = jnp.zeros(shape, bool), jnp.zeros(shape)
        action, task = jnp.zeros((*shape, agent.action_spec.width)), jnp.zeros(shape, jnp.int32)
        sequence = Replayed(observation, action, nothing, no, no, no, no, task)
        return eqx.filter_grad(lambda m: m.loss(m.initial(shape[0]), sequence, jax.random.key(0))[0])(model)

    return float(jax.jit(cost).lower(learned).cost_analysis()["flops"])


def trained(folder: Path, plans: list[TrainConfig]) -> list[RunFolder]:
    """Train plans of one shape side by side in one program, or go on with them, for longer maybe."""
    runs = [open_or_create(folder / f"{plan.name}-{plan.seed}", plan, LIMITS) for plan in plans]
    each = [build(plan) for plan in plans]

    def continued() -> tuple[Any, int]:
        begun = []
        for trainer, plan in zip(each, plans, strict=True):
            assert plan.start is not None
            before, other = beginning_of(plan, plan.start)
            begun.append(trainer.continued(loop.newest_state(build(other), before)[1], plan.seed))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun), each[0].first_steps

    beginning = None if plans[0].start is None else continued
    limits, seeds = plans[0].loop, [plan.seed for plan in plans]
    loop.train(side_by_side(each), limits, RunFolders(tuple(runs)), sys.argv, seeds, beginning=beginning, quiet=True)
    return runs


def measured(trials: SuiteTrials, run: RunFolder, tasks: Sequence[str] = ()) -> list[Row]:
    """A row for each task that a run has learned, or those named: how it does there, and its part in what that took."""
    config = run.config(TrainConfig)
    assert config.suite is not None
    trainer = build(config)
    _, state = loop.newest_state(trainer, run)
    tasks = tasks or config.suite.learned
    played = trials.responses(trainer.policy(state), tasks)
    shares = {"parameters": size(state.averaged), "cpu_seconds": run.metrics()[-1]["cpu_seconds"]}
    shares = {name: value / len(tasks) for name, value in shares.items()}
    return [score_row(trials, name, played[name][None]) | shares for name in tasks]


def summary(asked: Mixtures, arm: str, rows: list[list[Row]], ensemble: Float[np.ndarray, ""]) -> Row:
    """An arm over its seeds: the mean score over tasks with Student's interval, the least mean of a task (`worst`), and
    the median and the least of all runs of a task."""
    scores = np.array([[float(str(row["score"])) for row in seed] for seed in rows])  # [S, K]
    ratios = np.log([[float(str(row["ratio"])) for row in seed] for seed in rows])
    value, low, high = over_seeds(scores.mean(1))
    total = {
        name: float(np.mean([sum(float(str(row[name])) for row in seed) for seed in rows]))
        for name in ("parameters", "cpu_seconds")
    }
    row: Row = {"suite": asked.suite, "arm": arm, "seeds": len(rows), "parameters": round(total["parameters"])}
    row |= {"score": value, "score_low": low if len(rows) > 1 else None, "score_high": high if len(rows) > 1 else None}
    row |= {"of_ensemble": float(value / ensemble)}
    row |= {"worst": float(scores.mean(0).min()), "median": float(np.median(scores)), "least": float(scores.min())}
    row |= {"ratio": float(np.exp(ratios.mean()))}
    return row | {"cpu_seconds": total["cpu_seconds"]}


def picture(rows: list[Row]) -> Figure:
    """The score of each arm, with Student's interval over its seeds, and its parameters in thousands; a line says what
    the mixture is to reach with half of the ensemble's: 97 % of its score."""
    names = [f"{row['arm']}, {round(float(str(row['parameters'])) / 1000)}" for row in rows]
    with setting():
        figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * len(rows)))
        axis = figure.subplots()
        for place, row in enumerate(rows):
            score, low, high = (row[name] for name in ("score", "score_low", "score_high"))
            colour = {"ensemble": INK, "mixture": VERMILLION}.get(str(row["arm"]), BLUE)
            if low is not None:
                axis.hlines(place, float(str(low)), float(str(high)), color=colour, linewidth=1.5)
            axis.plot(float(str(score)), place, "o", color=colour, markersize=4)
            if row["arm"] == "ensemble":
                axis.axvline(0.97 * float(str(score)), color=GREY, linestyle="--", linewidth=1)
        axis.set_yticks(range(len(rows)), names)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set(xlabel="score (random 0, best rule 1), and parameters in thousands")
    return figure


def main() -> None:
    asked = study(Mixtures, __doc__)
    exam = asked.exam

    @cache
    def trials() -> SuiteTrials:
        return suite_trials(SuiteConfig(asked.suite), exam.episodes, exam.jobs, exam.stream)

    found: dict[str, list[list[Row]]] = {}
    for arm in dict.fromkeys(("ensemble", *asked.arms)):  # by which others are judged
        say(f"{asked.suite}: {arm}")
        of_seeds = [plans(asked, arm, seed) for seed in range(asked.seeds)]
        folder = asked.runs / asked.scale / f"mixture-{asked.suite}"
        runs = trained(folder, [plan for plans in of_seeds for plan in plans])
        rows = [
            asked.kept(f"mixture-{asked.suite}-{run.path.name}", lambda run=run: measured(trials(), run), exam)
            for run in runs
        ]
        share = len(runs) // asked.seeds
        found[arm] = [
            [row for run in rows[seed * share : (seed + 1) * share] for row in run] for seed in range(asked.seeds)
        ]
        means = {name: np.mean([float(str(row["score"])) for seed in of for row in seed]) for name, of in found.items()}
        table = [summary(asked, name, of, means["ensemble"]) for name, of in found.items()]
        asked.draw(f"mixture-{asked.suite}", picture(asked.publish_games(f"mixture-{asked.suite}", table, "arm")))


if __name__ == "__main__":
    main()
