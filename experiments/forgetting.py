"""Forgetting: train on easy, medium and hard load in sequence, and test on all three after each.

Dreamer + RL2 goes on from stage to stage with its networks, optimiser and replay; A2C with networks and optimiser, for
as many environment steps and for 400 times as many. Beside them stand the same agents trained on the mixture of the
three levels for as many steps in total. What is reported is the response time over that of the best rule of each level,
and from its logarithm retention, forgetting and transfer.

What is measured of a learner that meets T tasks in turn, and is tested on all of them before it begins (stage 0) and
after each, is L[i, j], the logarithm of its response time on task j after stage i over that of a fixed rule: less is
better, and its negative stands where the sources have accuracies. Differences are shares of the response time: 0.1 is
about 10 %.

    python experiments/forgetting.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from study import UNTRAINED, ExamOptions, Study, study, untrained, with_steps_of

from reverie.evaluate.examination import STANDARD, Exam, hold, of_family
from reverie.evaluate.statistics import over_seeds, verdict
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREEN, INK, VERMILLION, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.settings.presets import preset
from reverie.tables import Row

MIXTURE = "mixture"
STAGES = (UNTRAINED, *STANDARD)
LONG = 400
"""Steps of the long A2C for one of Dreamer."""


class Continual(NamedTuple):
    """Measures of T tasks learned in turn, one number for each leading index. The first four concern change."""

    retention: Float[np.ndarray, "*B"]
    """Of the gain that each task but the last had when it had just been learned, summed over these tasks, the share
    that is left at the end: 1 where nothing is lost, more where later tasks helped, 0 where all tasks together are as
    bad as untrained, NaN where nothing was gained. This measure is ours."""
    forgetting: Float[np.ndarray, "*B"]
    """How far each task but the last fell from its best stage to the end, on average (Chaudhry et al. 2018, arXiv
    1801.10112, section 3.3)."""
    backward: Float[np.ndarray, "*B"]
    """Backward transfer: how much better each task but the last is at the end than just after it was learned, on
    average (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 3)."""
    forward: Float[np.ndarray, "*B"]
    """Forward transfer: how much better each task but the first is right before it is learned than untrained, on
    average (there, equation 4)."""
    final: Float[np.ndarray, "*B"]
    """L at the end, averaged over tasks (there, equation 2, with our sign: less is better)."""


def continual(logs: Float[np.ndarray, "*B I T"]) -> Continual:
    """The measures of L [T + 1, T], behind any leading axes: row 0 untrained, row i after the i-th task was learned.

    Errors: ValueError where there are fewer than two tasks, or not one stage more than tasks.
    """
    stages, tasks = logs.shape[-2:]
    if tasks < 2 or stages != tasks + 1:
        raise ValueError(f"L needs T + 1 stages (the first untrained) and T >= 2 tasks, got {stages} and {tasks}")
    good = -logs
    untrained, end = good[..., 0, :], good[..., -1, :]
    learned = np.diagonal(good[..., 1:, :], axis1=-2, axis2=-1)  # [*B, T] each task after its own stage
    before = np.diagonal(good[..., :-1, :], axis1=-2, axis2=-1)  # and before it
    best = good[..., 1:-1, :].max(-2)
    early = slice(None, -1)
    gained = (learned - untrained)[..., early].sum(-1)
    kept = (end - untrained)[..., early].sum(-1)
    return Continual(
        retention=np.divide(kept, gained, out=np.full_like(gained, np.nan), where=gained > 0),
        forgetting=(best - end)[..., early].mean(-1),
        backward=(end - learned)[..., early].mean(-1),
        forward=(before - untrained)[..., 1:].mean(-1),
        final=logs[..., -1, :].mean(-1),
    )


@dataclass(frozen=True)
class Forgetting(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    seeds: int = 2
    """Training seeds of each agent."""
    steps: int = 40_000
    """Environment steps of a stage at the scale `cpu`; the mixture has three times as many."""


def learners(asked: Forgetting) -> dict[str, TrainConfig]:
    """By name, the plan of one stage, without its family."""
    dreamer = preset("dreamer", "cpu")
    steady = replace(dreamer.agent.algorithm.optimiser, decay=0)  # who may have to learn more must not slow down
    agent = replace(dreamer.agent, algorithm=replace(dreamer.agent.algorithm, optimiser=steady))
    dreamer = replace(dreamer, agent=agent, loop=replace(dreamer.loop, steps=asked.steps, evaluate_every=asked.steps))
    a2c = with_steps_of(dreamer, preset("a2c", "cpu"))
    plans = {"dreamer-queue-rl2": dreamer, "a2c-equal-steps": a2c, "a2c-long": long(asked.steps)}
    return {name: asked.larger(plan) for name, plan in plans.items()}


def long(steps: int) -> TrainConfig:
    """A2C as its preset has it, for 400 times the steps of a stage of Dreamer."""
    plan = preset("a2c", "cpu")
    return replace(plan, loop=replace(plan.loop, steps=LONG * steps, evaluate_every=LONG * steps))


def stage(asked: Forgetting, name: str, seed: int, number: int) -> TrainConfig:
    """Stage 1, 2 or 3 of the sequence; the later ones begin from the run of the stage before."""
    before = asked.runs / f"{label(name, number - 1)}-{seed}" if number > 1 else None
    plan = learners(asked)[name]
    world = replace(plan.world, family=STANDARD[number - 1])
    return replace(plan, world=world, seed=seed, start=before, label=label(name, number))


def mixture(asked: Forgetting, name: str, seed: int) -> TrainConfig:
    """As many steps as all stages have together, on the three levels at once."""
    plan = learners(asked)[name]
    loop = replace(plan.loop, steps=len(STANDARD) * (plan.loop.steps or 0))
    return replace(plan, world=replace(plan.world, family="mixed"), loop=loop, seed=seed, label=f"{name}-{MIXTURE}")


def label(name: str, number: int) -> str:
    return "-".join((name, *STANDARD[:number]))


def trained(asked: Forgetting) -> dict[tuple[str, int, str], RunFolder]:
    """All runs, by learner, seed and stage."""
    who = [(name, seed) for name in learners(asked) for seed in range(asked.seeds)]
    runs: dict[tuple[str, int, str], RunFolder] = {}
    for number, level in enumerate(STANDARD, start=1):  # a stage needs what the stage before has left
        plans = [stage(asked, name, seed, number) for name, seed in who]
        runs |= {(*key, level): run for key, run in zip(who, asked.train(plans), strict=True)}
    mixed = asked.train([mixture(asked, name, seed) for name, seed in who])
    return runs | {(*key, MIXTURE): run for key, run in zip(who, mixed, strict=True)}


def examined(asked: Forgetting, level: str, runs: Sequence[RunFolder]) -> list[Row]:
    """Result rows at one level: rules, and the agents of all stages."""
    place = of_family(level, asked.exam)
    rows = asked.examined(asked.exam, place, runs, "full")
    for name in learners(asked):
        for seed in range(asked.seeds):
            rows += asked.kept(
                f"{level}-{UNTRAINED}-{name}-{seed}",
                lambda name=name, seed=seed: (
                    hold(place, [untrained(replace(learners(asked)[name], seed=seed, label=name))], asked.exam).results
                ),
                asked.exam,
            )
    return rows


def called(name: str, at: str) -> str:
    """What the tables of results call a learner after a stage."""
    return label(name, STANDARD.index(at) + 1) if at in STANDARD else f"{name}-{at}"


def matrix(names: Sequence[str], levels: dict[str, list[Row]]) -> list[Row]:
    """For each learner and stage its ratio to the best rule of each level, with the interval of the verdict."""
    rows: list[Row] = []
    for level, results in levels.items():
        verdicts = {row["agent"]: row for row in verdict(results)}
        for name in names:
            for at in (*STAGES, MIXTURE):
                row = verdicts[called(name, at)]
                shown = ("against", "seeds", "episodes", "ratio", "low", "high")
                rows.append({"agent": name, "after": at, "level": level} | {column: row[column] for column in shown})
    return rows


def logs(name: str, seeds: int, levels: dict[str, list[Row]], stages: Sequence[str]) -> np.ndarray:
    """L, [S, stages, levels]: the mean over episodes, for each seed."""
    found = np.zeros((seeds, len(stages), len(levels)))
    for j, results in enumerate(levels.values()):
        best = verdict(results)[0]["against"]
        time = {(row["agent"], row["training_seed"], row["evaluation_seed"]): row["mean"] for row in results}
        episodes = sorted({row["evaluation_seed"] for row in results})
        rule = np.log([time[best, None, episode] for episode in episodes])
        for seed, i in np.ndindex(seeds, len(stages)):
            mine = np.log([time[called(name, stages[i]), seed, episode] for episode in episodes])
            found[seed, i, j] = (mine - rule).mean()
    return found


def measures(names: Sequence[str], seeds: int, levels: dict[str, list[Row]]) -> list[Row]:
    """Retention, forgetting and transfer of each learner, and what it and its twin on the mixture end with."""
    rows: list[Row] = []
    for name in names:
        values = continual(logs(name, seeds, levels, STAGES))._asdict()
        values["final_mixture"] = logs(name, seeds, levels, [MIXTURE])[:, 0].mean(-1)
        for measure, of_seeds in values.items():
            value, low, high = over_seeds(of_seeds)
            rows.append({"agent": name, "measure": measure, "seeds": seeds, "value": value, "low": low, "high": high})
    return rows


def picture(rows: Sequence[Row]) -> Figure:
    """The matrix as one panel a level: how far from its best rule each learner is after each stage. Untrained agents,
    and whatever else is more than three times as slow, lie beyond the axis."""
    looks = {"dreamer-queue-rl2": (BLUE, "o"), "a2c-equal-steps": (GREEN, "s"), "a2c-long": (VERMILLION, "^")}
    with setting():
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.subplots(1, len(STANDARD), sharey=True)
        for axis, level in zip(axes, STANDARD, strict=True):
            axis.axvspan(STANDARD.index(level) - 0.25, STANDARD.index(level) + 0.25, color=INK, alpha=0.08, linewidth=0)
            axis.axhline(1, color=INK, linewidth=1)
            for shift, (name, (colour, mark)) in zip((-0.08, 0, 0.08), looks.items(), strict=True):
                mine = {row["after"]: row for row in rows if (row["agent"], row["level"]) == (name, level)}
                stages = [*STANDARD, MIXTURE]
                ratio, low, high = (np.array([mine[at][c] for at in stages], float) for c in ("ratio", "low", "high"))
                at = np.arange(len(stages)) + shift
                axis.vlines(at, low, high, color=colour, linewidth=1.2)
                axis.plot(at[:-1], ratio[:-1], mark, linestyle="-", color=colour, markersize=4, label=name)
                axis.plot(at[-1:], ratio[-1:], mark, color=colour, markersize=4)
            axis.set_title(f"tested on {level}")
            axis.set_xticks(range(len(STANDARD) + 1), [*STANDARD, MIXTURE], rotation=35, ha="right")
            axis.set_yscale("log")
            axis.set_ylim(0.92, 3.0)
            axis.yaxis.set_major_locator(FixedLocator([0.8, 0.9, 1, 1.25, 1.6, 2, 3, 5, 10, 20]))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes[0].set_ylabel("response time / best rule's")
        axes[-1].legend(loc="upper right")
        figure.supxlabel("after training on (shaded: the level itself)", size=9)
    return figure


def main() -> None:
    asked = study(Forgetting, __doc__)
    runs, names = trained(asked), list(learners(asked))
    levels = {level: examined(asked, level, list(runs.values())) for level in STANDARD}
    table = matrix(names, levels)
    asked.publish("forgetting_matrix", table)
    asked.publish("forgetting", measures(names, asked.seeds, levels))
    asked.draw("forgetting", picture(table))


if __name__ == "__main__":
    main()
