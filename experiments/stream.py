"""A fleet is learned, then another, then the first again: what is forgotten, and how soon it is back (docs/mixture.md).

`mixture` and `shared` are those of `mixture.py`, as large as one another and told the task. The two tasks have modules
of their own in the mixture; `apart` is a mixture in which they have no expert in common either, as each has one that is
drawn once. In all three they share the actor. Replay begins anew at each stage.

    python experiments/stream.py
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from mixture import Mixtures, matched, measured, parameters, plan, trained
from study import ExamOptions, Study, study

from reverie.evaluate.examination import Exam
from reverie.evaluate.statistics import over_seeds
from reverie.evaluate.suites import SuiteTrials, suite_trials
from reverie.models.storm import StormConfig
from reverie.report.output import say
from reverie.runs.folder import RunFolder
from reverie.settings.config import SuiteConfig, TrainConfig
from reverie.settings.presets import MIXTURE, SHARED
from reverie.tables import Row

SUITE = "corners"
FIRST, OTHER = "two-speeds/heavy", "equal/steady"
"""Where it matters how fast a server is, and where it does not."""
STAGES = {"first": FIRST, "other": OTHER, "again": FIRST}
SOON = 1_000
"""Jobs after which it is seen how soon the first is back."""


@dataclass(frozen=True)
class Stream(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=100, jobs=250))
    seeds: int = 3
    """Training seeds."""
    steps: int = 8_000
    """Environment steps of a stage."""
    arms: tuple[Literal["mixture", "shared", "apart"], ...] = ("mixture", "shared", "apart")
    """What is trained."""


def model_of(arm: str) -> StormConfig:
    if arm == "shared":
        return matched(SUITE, SHARED, parameters)
    return replace(MIXTURE, active=1, routing="chance") if arm == "apart" else MIXTURE


def of_stage(arm: str, stage: str, seed: int, folder: Path, jobs: int) -> TrainConfig:
    """A stage, which begins from the run of the one before."""
    begun = plan(Mixtures(suite=SUITE), model_of(arm), f"{arm}-{stage}", seed, (STAGES[stage],))
    before = {"other": "first", "again": "other"}.get(stage)
    start = None if before is None else folder / f"{arm}-{before}-{seed}"
    experience = begun.agent.experience
    if stage == "other":  # replay of another size begins anew, and anew again when the first is back
        experience = replace(experience, capacity=experience.capacity - experience.streams)
    agent = replace(begun.agent, chunk=5, experience=experience)
    return replace(begun, agent=agent, start=start, loop=replace(begun.loop, steps=jobs))


def rows_of(arm: str, scores: dict[str, Float[np.ndarray, "S 2"]]) -> list[Row]:
    """The scores of both tasks after each stage, and how they changed, over seeds with Student's interval."""
    first, other = ({at: of[:, task] for at, of in scores.items()} for task in (0, 1))
    found = {f"first after {at}": of for at, of in first.items()} | {
        f"other after {at}": of for at, of in other.items()
    }
    found |= {"first lost": first["other"] - first["first"], "other lost": other["again"] - other["other"]}
    found |= {f"first {at} against before": first[at] - first["first"] for at in ("soon", "again")}
    rows: list[Row] = []
    for measure, values in found.items():
        value, low, high = over_seeds(values)
        row: Row = {"arm": arm, "measure": measure, "seeds": len(values), "value": value, "low": low, "high": high}
        rows.append(row | {"median": float(np.median(values)), "least": float(values.min())})
    return rows


def main() -> None:
    asked = study(Stream, __doc__)
    asked.only_here()
    exam, folder, seeds = asked.exam, asked.runs / asked.scale / "stream", range(asked.seeds)

    @cache
    def trials() -> SuiteTrials:
        return suite_trials(SuiteConfig(SUITE), exam.episodes, exam.jobs, exam.stream)

    def judged(at: str, run: RunFolder) -> list[float]:
        name = f"stream-{at}-{run.path.name}"
        by_task = {row["task"]: row for row in asked.kept(name, lambda: measured(trials(), run, (FIRST, OTHER)), exam)}
        return [float(str(by_task[task]["score"])) for task in (FIRST, OTHER)]

    for arm in asked.arms:
        scores: dict[str, Float[np.ndarray, "S 2"]] = {}
        for at, stage in {"first": "first", "other": "other", "soon": "again", "again": "again"}.items():
            say(f"{arm}: {at}")
            jobs = SOON if at == "soon" else asked.steps
            runs = trained(folder, [of_stage(arm, stage, seed, folder, jobs) for seed in seeds])
            scores[at] = np.array([judged(at, run) for run in runs])
        asked.publish_games("stream", rows_of(arm, scores), "arm", "measure")


if __name__ == "__main__":
    main()
