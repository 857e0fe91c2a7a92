"""Specialists: an agent that learns on the very traffic that it will meet, beside rules that were tuned on it.

The agent of `standard.py` is a generalist: it learns on changing loads, and rules that evolution tuned on hard load, or
on Park's sizes, know more of those rows than it does. Here Dreamer and A2C are trained anew on each row's own family,
or on the first half of its trace, and so are the rules; whoever is ahead after the fact is the rival, as in
`strongest.py`. Traces are judged on the other half.

    python experiments/specialists.py --trace AzureLLMInferenceTrace_conv.csv --trace AzureLLMInferenceTrace_code.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import tyro
from standard import dreamers, informed
from strongest import METRICS, SEARCHES, beside, corrected, standing
from study import ExamOptions, Study, study
from tuned import Tuned

from reverie.envs.fleet.formats.reading import read_trace
from reverie.evaluate.examination import Exam, Setting, hold, of_family, of_levels, of_trace
from reverie.settings.config import TrainConfig, WorldConfig
from reverie.tables import Row

SPECIALIST = "dreamer-specialist"
RULE = "scored-work"
FAMILIES = ("hard", "levels")


class Ground(NamedTuple):
    """What is trained on, and where that is judged."""

    world: WorldConfig
    judged: Setting


@dataclass(frozen=True)
class Specialists(Study):
    """The options of this experiment."""

    seeds: int = 3
    """Training seeds; a claim takes five."""
    exam: ExamOptions = field(default_factory=lambda: Exam(seed=20261130))
    """As in `strongest.py`."""
    trace: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A recorded trace: its first half is trained on, its second examined; give it again for each."""
    load: float = 0.8
    """The offered load that traces are brought to."""

    def grounds(self) -> list[Ground]:
        """Families, then traces."""
        judged = {name: of_levels(self.exam) if name == "levels" else of_family(name, self.exam) for name in FAMILIES}
        return [Ground(WorldConfig(name), setting) for name, setting in judged.items()] + [
            Ground(
                WorldConfig(trace=path, load=self.load), of_trace(read_trace(path).halves()[1], self.exam, self.load)
            )
            for path in self.trace
        ]

    def results(self, ground: Ground) -> list[Row]:
        """Of all rules of the view, rules tuned on this ground, and agents: generalists, and those trained on it."""
        plans = [
            *specialised(dreamers(self), ground, SPECIALIST),
            *specialised(informed(self), ground, "a2c-specialist"),
        ]
        generalists = self.train([*dreamers(self), *informed(self)])
        specialists = self.train(plans, f"on-{self._place(ground)}")
        searched = Tuned(runs=self.runs, scale=self.scale)
        tuned = [searched.rule(RULE, ground.world, seed) for seed in range(SEARCHES)]
        return self.examined(self.exam, ground.judged, [*specialists, *generalists], "full") + self.kept(
            f"{self._place(ground)}-tuned-on-it-{RULE}-{SEARCHES}",
            lambda: hold(ground.judged, tuned, self.exam).results,
            self.exam,
        )

    def _place(self, ground: Ground) -> str:
        return ground.judged.name.replace(" ", "-")


def specialised(plans: Sequence[TrainConfig], ground: Ground, label: str) -> list[TrainConfig]:
    """The same settings, trained there."""
    world = {"family": ground.world.family, "trace": ground.world.trace, "load": ground.world.load}
    return [replace(plan, world=replace(plan.world, **world), label=label) for plan in plans]


def main() -> None:
    asked = study(Specialists, __doc__)
    generalist = dreamers(asked)[0].name
    table: list[Row] = []
    pairs: list[Row] = []
    for ground in asked.grounds():
        results = asked.results(ground)
        for metric in METRICS:
            table += standing([row for row in results if row["agent"] != generalist], SPECIALIST, metric)
            pairs += beside(results, SPECIALIST, metric)
    asked.publish("specialists", corrected(table, "metric"))
    asked.publish("specialists_pairs", corrected(pairs, "metric", "rival"))


if __name__ == "__main__":
    main()
