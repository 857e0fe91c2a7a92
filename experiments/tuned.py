"""Tuned rules: what evolution makes of a rule on the workload that it will meet, beside all untuned rules.

Five searches for each family of tasks, then the exam that agents take. In view `full` the formula of waiting and
service time with a correction of 84 numbers; where only jobs in progress are seen, the two constants of adaptive
least-connections.

    python experiments/tuned.py
"""

from dataclasses import dataclass, field, replace

from study import ExamOptions, Study, brief, study

from reverie.envs.fleet.env import FleetEnv
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import Exam, Setting, hold, of_family, of_levels, rules_of
from reverie.evaluate.statistics import verdict
from reverie.evaluate.tuning import tune
from reverie.report.output import say
from reverie.runs.tuned import TuneConfig, load_rule
from reverie.settings.config import WorldConfig
from reverie.tables import Row
from reverie.train.evolve import EvolveConfig


@dataclass(frozen=True)
class Tuned(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    full: tuple[str, ...] = ("hard",)
    """Families in which everything is seen."""
    counts: tuple[str, ...] = ("drift",)
    """Families in which jobs in progress are seen."""
    generations: int = 150
    """Of each search where everything is seen; a fifth of it for the two constants."""

    def rule(self, rule: str, world: WorldConfig, seed: int) -> Contestant:
        """What one search found in a world; as the seeds of an agent, its searches are averaged over."""
        traffic = world.family if world.trace is None else world.trace.stem
        path = self.runs / self.scale / "tuned" / f"{rule}-{traffic}-{seed}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        world, search = replace(world, jobs=1000), EvolveConfig(seed=seed)
        generations = self.generations if rule == "scored-work" else self.generations // 5
        took = tune(TuneConfig(rule, world, search), path, generations, minutes=1e6)
        say(f"{path.name}: {took.seconds:.0f} s")
        found = load_rule(path).rule
        return Contestant(f"tuned-{rule}", found, FleetEnv(view=found.view), training_seed=seed)

    def setting(self, family: str) -> Setting:
        return of_levels(self.exam) if family == "levels" else of_family(family, self.exam)


def main() -> None:
    asked = study(Tuned, __doc__)
    rows: list[Row] = []
    for view, families, rule in (
        ("full", asked.full, "scored-work"),
        ("counts", asked.counts, "adaptive-least-connections"),
    ):
        for family in families:
            tuned = [asked.rule(rule, WorldConfig(family), seed) for seed in range(asked.seeds)]
            setting = asked.setting(family)._replace(name=f"{family}, {view}")
            results = asked.kept(
                f"{family}-rules-{view}",
                lambda s=setting, v=view: hold(s, rules_of(s, v), asked.exam).results,
                asked.exam,
            )
            results += asked.kept(
                f"{family}-{rule}-{asked.seeds}", lambda s=setting, t=tuned: hold(s, t, asked.exam).results, asked.exam
            )
            rows += [row for row in verdict(results) if row["level"] is None and row["role"] != "bound"]
    columns = ("means_ratio", "p99_ratio", "p99_ratio_low", "p99_ratio_high")
    table = [small | {name: row[name] for name in columns} for small, row in zip(brief(rows), rows, strict=True)]
    asked.publish("tuned", [row for row in table if row["role"] != "rule" or float(str(row["ratio"])) < 1.3])
    asked.draw_verdict("tuned", rows)


if __name__ == "__main__":
    main()
