"""Ablations: what each part of the agent is worth, one change at a time, at a third of the usual experience.

The first group changes the preset `cpu`, whose model knows what a queue is: the recurrent policy's size, the length of
dreams, the siblings by which actions are judged, the sizes of jobs in training, and when response times are credited.
The second changes the preset `learned`, which is told nothing: discrete against Gaussian latents at equal size, and a
flat RSSM (size1m) against one that keeps servers apart.

    python experiments/ablations.py --seeds 2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import tyro
from matplotlib.figure import Figure
from study import ExamOptions, Study, brief, study

from reverie.agents.dreamer import DreamerConfig
from reverie.envs.fleet.env import Reward
from reverie.evaluate.examination import STANDARD, Exam, of_family, of_levels
from reverie.evaluate.statistics import verdict
from reverie.models import rssm
from reverie.models.queue import QueueConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, INK, VERMILLION, setting
from reverie.settings.config import TrainConfig
from reverie.settings.presets import Preset, preset
from reverie.tables import Row


@dataclass(frozen=True)
class Ablations(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    seeds: int = 2
    """Training seeds; a claim takes five."""
    steps: int = 60_000
    """Environment steps of each run, at CPU scale."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A variant to train and examine; give it again for each. All of them unless given."""

    def plans(self) -> list[TrainConfig]:
        wanted = [plan for plan in variants(self.steps) if not self.only or plan.label in self.only]
        return [self.larger(replace(plan, seed=seed)) for plan in wanted for seed in range(self.seeds)]


def variants(steps: int) -> list[TrainConfig]:
    """Every variant, each group led by what it changes."""

    def variant(
        label: str, base: Preset, reward: Reward = "admission", family: str = "calm", **changes: object
    ) -> TrainConfig:
        plan = preset("dreamer", base)
        algorithm: DreamerConfig = replace(plan.agent.algorithm, **changes)
        updates = steps // plan.agent.experience.env_steps
        falling = replace(algorithm.optimiser, decay=updates - algorithm.optimiser.warmup)
        agent = replace(plan.agent, algorithm=replace(algorithm, optimiser=falling))
        loop, world = replace(plan.loop, steps=steps), replace(plan.world, reward=reward, family=family)
        return replace(plan, agent=agent, loop=loop, world=world, label=label)

    queue = preset("dreamer", "cpu").agent.algorithm.model
    assert isinstance(queue, QueueConfig)
    told = replace(queue, rewards="any")
    flat = rssm.PRESETS["size1m"]
    return [
        variant("queue", "cpu"),
        variant("queue-memory-0", "cpu", memory=0),
        variant("queue-memory-64", "cpu", memory=64),
        *(variant(f"queue-dream-{h}", "cpu", dream_length=h, discount_lambda=0.95) for h in (5, 15, 30)),
        variant("queue-alone", "cpu", siblings=1, starts=16),
        variant("queue-park-sizes", "cpu", family="levels"),
        variant("queue-any-admission", "cpu", model=told),
        variant("queue-any-elapsed", "cpu", "elapsed", model=told),
        variant("set", "learned"),
        variant("set-gaussian", "learned", model=SetRSSMConfig(latent="gaussian")),
        variant("flat", "learned", model=flat),
        variant("flat-gaussian", "learned", model=replace(flat, latent="gaussian")),
    ]


def picture(rows: Sequence[Row]) -> Figure:
    """The ratio to the best rule of every variant, on hard and on changing loads; those far off are written out."""
    tasks, left, right = ("hard", "levels"), 0.88, 1.32
    names = list(dict.fromkeys(str(row["agent"]) for row in rows))
    with setting():
        figure = Figure(figsize=(WIDTH, 0.28 * len(names) + 0.9))
        for axis, task in zip(figure.subplots(1, 2, sharey=True), tasks, strict=True):
            axis.axvline(1.0, color=INK, linewidth=1)
            for place, name in enumerate(names):
                (row,) = (row for row in rows if (row["agent"], row["task"]) == (name, task))
                ratio, low, high = (float(str(row[column])) for column in ("ratio", "low", "high"))
                colour = BLUE if name.startswith("queue") else VERMILLION
                axis.hlines(place, max(low, left), min(high, right), color=colour, linewidth=1.5)
                if ratio < right:
                    axis.plot(ratio, place, "o", color=colour, markersize=4)
                else:
                    axis.annotate(f"{ratio:.3g} ▸", (right, place), ha="right", va="bottom", color=colour, fontsize=8)
            axis.set(title=task, xlabel="mean response / best rule", yticks=range(len(names)), yticklabels=names)
            axis.set_xlim(left, right)
        figure.axes[0].invert_yaxis()
    return figure


def main() -> None:
    asked = study(Ablations, __doc__)
    runs = asked.train(asked.plans())
    rows = []
    for where in (*(of_family(name, asked.exam) for name in STANDARD), of_levels(asked.exam)):
        rows += asked.examined(asked.exam, where, runs, "full")
    table = [row for row in brief(verdict(rows)) if row["level"] is None]
    best = [row for row in table if row["role"] == "agent" or row["agent"] == row["against"]]
    asked.publish("ablations", best)
    order = [plan.name for plan in asked.plans()]
    agents = sorted((row for row in best if row["role"] == "agent"), key=lambda row: order.index(str(row["agent"])))
    asked.draw("ablations", picture(agents))


if __name__ == "__main__":
    main()
