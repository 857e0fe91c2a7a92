"""A task that was never learned, given to one agent for many fleets: what it takes to place it (docs/mixture.md).

Twelve of the sixteen fleets are known, four are new: they share neither fleet nor traffic with one another, but each of
both with known ones. Two learn nothing: `guess`, a mixture that infers its task from history, plays the new ones, and
`untold`, one STORM for all, as large as the mixture that is told, which is told nothing and has nothing that guesses.
The others learn each new task for itself for some jobs: `place` nothing but the embeddings of tasks and the router,
from a mixture that is told the task; `all` everything, from the same mixture; `shared-all` everything, from one STORM
for all that is told the task and as large; `scratch` a STORM of its own from nothing.

    python experiments/new_tasks.py
    python experiments/new_tasks.py --arms guess untold     # some ways alone
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from mixture import Mixtures, matched, measured, networks, parameters, size, timed, trained
from study import ExamOptions, Study, study

from reverie.evaluate.examination import Exam
from reverie.evaluate.statistics import over_seeds
from reverie.evaluate.suites import SuiteTrials, suite_trials
from reverie.models.storm import StormConfig
from reverie.report.figures import WIDTH
from reverie.report.output import say
from reverie.report.style import BLUE, GREEN, GREY, INK, SKY, VERMILLION, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE, MIXTURE, SHARED
from reverie.settings.suites import of_storms
from reverie.tables import Row

NEW = SuiteConfig("corners").names
KNOWN = tuple(name for name in SuiteConfig("fleets").names if name not in NEW)
JOBS = (1_000, 5_000)
"""Environment steps of a new task."""
ARMS = {
    "guess": "known-history",
    "untold": "known-untold",
    "place": "known",
    "all": "known",
    "shared-all": "known-shared",
    "scratch": None,
}
"""Ways to place a new task, and what they begin from."""
AT_ONCE = ("guess", "untold")
"""Those that learn nothing."""


@dataclass(frozen=True)
class NewTasks(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=100, jobs=250))
    seeds: int = 3
    """Training seeds."""
    steps: int = 8_000
    """Environment steps of each known task."""
    arms: tuple[Literal["guess", "untold", "place", "all", "shared-all", "scratch"], ...] = tuple(ARMS)
    """Ways to place a new task."""


def model_of(name: str) -> StormConfig:
    """Of what is trained on the known tasks."""
    if name in ("known-shared", "known-untold"):
        return matched("fleets", SHARED if name == "known-shared" else ALONE, parameters)
    return replace(MIXTURE, tells="history" if name == "known-history" else "number")


def of_known(asked: NewTasks, name: str, seed: int) -> TrainConfig:
    plan = of_storms(SuiteConfig("fleets", tasks=KNOWN), model_of(name), name)
    return timed(Mixtures(steps=asked.steps), replace(plan, seed=seed), len(KNOWN))


def of_new(arm: str, task: str, seed: int, known: Path, jobs: int) -> TrainConfig:
    """One new task. The step size stays as it was for the known tasks."""
    begin = ARMS[arm]
    model = ALONE if begin is None else model_of(begin)
    plan = of_storms(SuiteConfig("fleets", tasks=(task,)), model, f"{arm}-{NEW.index(task)}")
    assert isinstance(plan.agent, OffPolicyRun)
    learns = "place" if arm == "place" else "all"
    agent = replace(plan.agent, chunk=5, algorithm=replace(plan.agent.algorithm, learns=learns))
    start = None if begin is None else known / f"{begin}-{seed}"
    return replace(plan, agent=agent, seed=seed, start=start, loop=replace(plan.loop, steps=jobs, save_every=200.0))


def learned(plan: TrainConfig, arm: str) -> int:
    """How many numbers a new task may change."""
    changed = networks(plan)
    return size(changed.model.placing if arm == "place" else changed)


def row(arm: str, jobs: int, numbers: int, tasks: Sequence[str], of_seeds: Sequence[Sequence[Row]]) -> Row:
    """The mean score over tasks, with Student's interval over seeds; `numbers` are those that a new task may change."""
    scores = np.array([[float(str(row["score"])) for row in seed] for seed in of_seeds])  # [S, K]
    ratios = np.log([[float(str(row["ratio"])) for row in seed] for seed in of_seeds])
    value, low, high = over_seeds(scores.mean(1))
    found: Row = {"arm": arm, "jobs": jobs, "tasks": len(tasks), "seeds": len(of_seeds), "numbers": numbers}
    found |= {"score": value, "score_low": low, "score_high": high, "median": float(np.median(scores))}
    if tasks == NEW:
        found |= {name: float(mean) for name, mean in zip(NEW, scores.mean(0), strict=True)}
    else:
        found |= dict.fromkeys(NEW)
    return found | {"least": float(scores.min()), "ratio": float(np.exp(ratios.mean()))}


def picture(rows: list[Row]) -> Figure:
    """The median score over tasks and seeds of each arm, over the jobs of a new task: of means one run decides."""
    colours = {"guess": INK, "untold": GREY, "place": VERMILLION, "all": BLUE, "shared-all": SKY, "scratch": GREEN}
    with setting():
        figure = Figure(figsize=(WIDTH, 3.0))
        axis = figure.subplots()
        for arm, colour in colours.items():
            own = np.array([(int(str(row["jobs"])), float(str(row["median"]))) for row in rows if row["arm"] == arm])
            if len(own):
                # what has one point lies above lines that begin there
                axis.plot(*own.T, "o-", color=colour, markersize=4, label=arm, zorder=2 + 1 / len(own))
        axis.set(xlabel="jobs of the new task", ylabel="median score")
        axis.legend()
    return figure


def main() -> None:
    asked = study(NewTasks, __doc__)
    asked.only_here()
    exam, folder = asked.exam, asked.runs / asked.scale / "new-tasks"

    @cache
    def trials() -> SuiteTrials:
        return suite_trials(SuiteConfig("fleets"), exam.episodes, exam.jobs, exam.stream)

    def judged(name: str, run: RunFolder, tasks: Sequence[str]) -> list[Row]:
        return asked.kept(f"new-tasks-{name}", lambda: measured(trials(), run, tasks), exam)

    seeds, rows = range(asked.seeds), []
    for arm in asked.arms:
        begin = ARMS[arm]
        if begin is not None:
            say(f"{arm}: {begin}")
            known = trained(folder, [of_known(asked, begin, seed) for seed in seeds])
            if begin not in {str(row["arm"]) for row in rows}:
                of_seeds = [judged(run.path.name, run, KNOWN) for run in known]
                rows.append(row(begin, 0, 0, KNOWN, of_seeds))
            untaught = [judged(f"untaught-{run.path.name}", run, NEW) for run in known]
            rows.append(row(arm, 0, 0, NEW, untaught))
        for jobs in () if arm in AT_ONCE else JOBS:
            say(f"{arm}: {jobs:,} jobs of each new task")
            plans = [of_new(arm, task, seed, folder, jobs) for seed in seeds for task in NEW]
            runs = trained(folder, plans)
            each = [judged(f"{run.path.name}-{jobs}", run, ()) for run in runs]
            of_seeds = [[task[0] for task in each[seed * len(NEW) : (seed + 1) * len(NEW)]] for seed in seeds]
            rows.append(row(arm, jobs, learned(plans[0], arm), NEW, of_seeds))
        asked.draw("new-tasks", picture(asked.publish_games("new_tasks", rows, "arm", "jobs")))


if __name__ == "__main__":
    main()
