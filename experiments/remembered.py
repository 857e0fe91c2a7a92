"""A memory of each server: is it worth something in trials on servers whose speeds nobody sees, and which stay?

Ten servers up to tenfold apart, another fleet, load and law of sizes in each trial; the balancer sees how many jobs
each holds. `lives` keeps what its model knows of each server through the trial, `ends` until the episode ends; both
were trained alike. In trials of 16 episodes of 100 jobs each plays as it is; then `lives` once more with its memory
wiped where an episode begins, and with that of other trials in its place (a policy that is merely good would not
mind). Loads that training never had follow, and spreads of speed that it had rarely. Beside them all rules that see no
more, and two that infer speeds, tuned by evolution on single episodes of 1,000 jobs of the same family.

    python experiments/remembered.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.figure import Figure
from memory import EPISODES, logs, of_trials, wiped
from study import ExamOptions, Study, agent, study
from tuned import Tuned

from reverie.envs.core import TaskFamily
from reverie.envs.fleet.families import unlike
from reverie.evaluate import statistics
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import Exam, hold
from reverie.evaluate.probes import Swapped
from reverie.report.figures import WIDTH
from reverie.report.style import INK, looks, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, TrainConfig, WorldConfig
from reverie.settings.presets import preset
from reverie.tables import Row

FAMILIES: dict[str, TaskFamily] = {
    "as in training": unlike(),
    "loads 0.1 to 0.3": unlike(loads=(0.1, 0.3)),
    "loads 1.0 to 1.15": unlike(loads=(1.0, 1.15)),
    "equal speeds": unlike(ratios=(1.0, 1.0)),
    "up to 10 to 20 times apart": unlike(ratios=(10.0, 20.0)),
}
"""Load in training: 0.3 to 1.0; the fastest server is at most 1 to 10 times as fast as the slowest."""
TUNED = ("adaptive-least-connections", "little")
SEARCHES = 3


@dataclass(frozen=True)
class Remembered(Study):
    """The options of this experiment."""

    seeds: int = 3
    """Training seeds of each agent."""
    exam: ExamOptions = field(default_factory=lambda: Exam(jobs=100))
    """Trials, and the length of each of their episodes."""


def plan(forgets: str, label: str) -> TrainConfig:
    """The preset for hidden speeds, in trials of eight episodes of 100 jobs."""
    hidden = preset("dreamer", "hidden")
    assert isinstance(hidden.agent, OffPolicyRun)
    algorithm = hidden.agent.algorithm
    algorithm = replace(algorithm, model=replace(algorithm.model, forgets=forgets))
    run = replace(hidden.agent, algorithm=algorithm, experience=replace(hidden.agent.experience, episodes=8))
    world = replace(hidden.fleet, family="continuous", jobs=100, tasks=512)
    return replace(hidden, agent=run, world=world, label=label)


def played(asked: Remembered, name: str, runs: Sequence[RunFolder]) -> list[Row]:
    """Results of all, for whole episodes."""
    where = of_trials(name, FAMILIES[name], asked.exam)
    rows = asked.examined(asked.exam, where, runs, "counts")
    changed = {"wiped": wiped, "swapped": swapped}
    for run in runs:
        for how, change in changed.items() if run.path.name.startswith("lives") else ():
            rows += asked.kept(
                f"{where.name.replace(' ', '-')}-{run.path.name}-{how}",
                lambda run=run, change=change: hold(where, [change(agent(run))], asked.exam).results,
                asked.exam,
            )
    searched = Tuned(runs=asked.runs, scale=asked.scale)
    for rule in TUNED:
        rows += asked.kept(
            f"{where.name.replace(' ', '-')}-tuned-{rule}-{SEARCHES}",
            lambda rule=rule: (
                hold(
                    where,
                    [searched.rule(rule, WorldConfig("continuous"), seed) for seed in range(SEARCHES)],
                    asked.exam,
                ).results
            ),
            asked.exam,
        )
    return [row for row in rows if row["level"] is None]


def swapped(contestant: Contestant) -> Contestant:
    return replace(contestant, name=f"{contestant.name}-swapped", policy=Swapped(contestant.policy))


def compared(name: str, rows: Sequence[Row]) -> list[Row]:
    """What `lives` takes as a ratio to each of the others, for every episode and for all from the third on; for these
    also the slowest 1 % of jobs, as the mean of each episode's p99."""
    whole = {str(k + 1): [k] for k in range(EPISODES)} | {"3 to 16": list(range(2, EPISODES))}
    found = [_compared(name, rows, label, part, "mean") for label, part in whole.items()]
    return [*found, _compared(name, rows, "3 to 16, p99", whole["3 to 16"], "p99")]


def _compared(name: str, rows: Sequence[Row], label: str, part: Sequence[int], measure: str) -> Row:
    times = {str(who): logs(rows, str(who), measure) for who in dict.fromkeys(row["agent"] for row in rows)}
    lives = times.pop("lives")
    own = {who: times.pop(f"lives-{who}") for who in ("wiped", "swapped")}
    learned = {"ends", *(f"tuned-{rule}" for rule in TUNED)}
    untuned = [who for who in times if who not in learned and _role(rows, who) == "rule"]
    best = min(untuned, key=lambda who: float(times[who].mean()))
    row: Row = {"task": name, "episode": label, "seeds": len(lives), "trials": lives.shape[1], "best rule": best}
    mine = lives[..., part].mean(-1)
    for who, other in own.items():  # each seed is its own control
        row |= _columns(who, statistics.difference(mine - other[..., part].mean(-1), np.zeros((1, mine.shape[1]))))
    others = {who: who for who in (*sorted(learned), "jsq", "little-root")} | {"best rule": best}
    for shown, who in others.items():
        row |= _columns(f"over {shown}", statistics.difference(mine, times[who][..., part].mean(-1)))
    return row


def _role(rows: Sequence[Row], who: str) -> str:
    return next(str(row["role"]) for row in rows if row["agent"] == who)


def _columns(name: str, logarithm: statistics.Estimate) -> Row:
    value, low, high = np.exp(logarithm).tolist()
    return {name: value, f"{name}, low": low, f"{name}, high": high}


def picture(rows: Sequence[Row]) -> Figure:
    """By episode, over itself without what it remembers, and over others."""
    panels = {
        "over itself with its memory": ("wiped", "swapped"),
        "over others": ("over ends", *map("over tuned-{}".format, TUNED)),
    }
    with setting():
        figure = Figure(figsize=(WIDTH, 3.2))
        for axis, (title, columns) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            axis.axhline(1, color=INK, linewidth=1)
            styles = looks([{"agent": column, "role": "agent"} for column in columns])
            for column, (colour, dashes, _) in styles.items():
                episode = np.arange(1, EPISODES + 1)
                ratio, low, high = (
                    np.array([row[f"{column}{end}"] for row in rows[:EPISODES]], float)
                    for end in ("", ", low", ", high")
                )
                axis.fill_between(episode, low, high, color=colour, alpha=0.15, linewidth=0)
                axis.plot(episode, ratio, dashes, color=colour, label=column.removeprefix("over "))
            axis.set_title(title)
            axis.set_xlabel("episode of the trial")
            axis.legend(loc="center right")  # where no line is
        figure.axes[0].set_ylabel("response time ratio")
    return figure


def main() -> None:
    asked = study(Remembered, __doc__)
    kinds = (plan("trial", "lives"), plan("episode", "ends"))
    runs = asked.train([asked.larger(replace(kind, seed=seed)) for seed in range(asked.seeds) for kind in kinds])
    found = [row for name in FAMILIES for row in compared(name, played(asked, name, runs))]
    asked.publish("remembered", found)
    asked.draw("remembered", picture(found))


if __name__ == "__main__":
    main()
