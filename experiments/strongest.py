"""The strongest rival of each row: an agent that learns a model beside the best of all that see no more.

The agents of `standard.py` and `adaptive.py` meet other jobs than those that anything was chosen by, windows of traces
that do not overlap, and families that nobody here was trained or tuned on. Their rivals are all rules, rules
that evolution tuned on the traffic that agents learn from or on hard load, and learned rivals that read servers as they
do. The rival of a row is chosen after the fact, for the mean and for the slowest jobs apart, which errs against the
agent.

    python experiments/strongest.py --trace AzureLLMInferenceTrace_conv.csv --trace AzureLLMInferenceTrace_code.csv \
        --speeds Redis__..__long__eastus__B8ms.csv.gz --speeds Stress-NG__..__long__eastus__B8ms.csv.gz
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from adaptive import Adaptive, hidden_dreamers, hidden_rivals
from matplotlib.figure import Figure
from standard import Standard, dreamers, informed
from study import ExamOptions, Study, study
from tuned import Tuned

from reverie.envs.fleet.env import View
from reverie.evaluate.examination import Exam, Setting, hold, of_family
from reverie.evaluate.statistics import BEST_RULE, holm, verdict
from reverie.report.figures import WIDTH, axis_of_ratios
from reverie.report.style import BLUE, INK, VERMILLION, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig, WorldConfig
from reverie.tables import Row

SEARCHES = 3
"""Of each tuned rule."""
TUNED: dict[View, dict[str, tuple[str, ...]]] = {
    "full": {"scored-work": ("calm", "levels", "hard")},
    "counts": {"adaptive-least-connections": ("shifting",), "little": ("shifting",)},
}
"""Rules that are tuned where so much is seen, and the families that each is tuned on: those that agents learn from
(`calm`, `shifting`), and in full view `calm` with Park's sizes (`levels`) and one load alone."""
UNSEEN: dict[View, tuple[str, ...]] = {"full": ("continuous",), "counts": ("continuous", "neighbours")}
"""Families that nobody here was trained or tuned on."""
METRICS = ("mean", "p99")


@dataclass(frozen=True)
class Strongest(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(seed=20261130))
    """Its seed is of no other table."""
    trace: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A recorded trace to examine the agents on; give it again for each."""
    speeds: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A `long` file of Azure's VM noise dataset: measured drift; give it again for each."""

    def settings(self, view: View) -> list[Setting]:
        """What those that see so much of a fleet are examined on."""
        unseen = [of_family(name, self.exam) for name in UNSEEN[view]]
        changing = Adaptive(exam=self.exam, speeds=self.speeds)
        if view == "counts":
            return [*changing.hidden(), *unseen]
        return [*Standard(exam=self.exam, trace=self.trace).settings(), *changing.seen(), *unseen]

    def tuned(self, where: Setting, view: View) -> list[Row]:
        """Results of the tuned rules."""
        searched, rows = Tuned(runs=self.runs, scale=self.scale), []
        for rule, families in TUNED[view].items():
            for family in families:
                found = [searched.rule(rule, WorldConfig(family), seed) for seed in range(SEARCHES)]
                named = [replace(one, name=f"{one.name}-{family}") for one in found]
                place = f"{where.name.replace(' ', '-')}-tuned-{rule}-{family}-{SEARCHES}"
                rows += self.kept(place, lambda c=named: hold(where, c, self.exam).results, self.exam)
        return rows


def standing(results: Sequence[Row], ours: str, metric: str) -> list[Row]:
    """How an agent stands to the best of all others that see no more, and how these others do: whole trials, ratios to
    that rival. `p` is of the agent and the rival alone."""
    judged = [row for row in verdict(results, metric=metric) if row["level"] is None]
    others = [row for row in judged if row["role"] in ("rule", "agent") and row["agent"] != ours]
    rival, rule = others[0]["agent"], next(row["agent"] for row in others if row["role"] == "rule")
    shown = {ours, rival, rule} | {row["agent"] for row in others if row["role"] == "agent"}
    rows = [row for row in results if row["agent"] in shown]
    against = [row for row in verdict(rows, str(rival), metric) if row["level"] is None]
    alone = verdict([row for row in rows if row["agent"] in (ours, rival)], str(rival), metric)
    p = next(row["p"] for row in alone if row["level"] is None and row["agent"] == ours)
    return [
        {
            name: row[name]
            for name in ("task", "metric", "agent", "seeds", "episodes", "against", "ratio", "low", "high")
        }
        | {"means_ratio": row["means_ratio"], "p": p if row["agent"] == ours else None}
        for row in against
    ]


def beside(results: Sequence[Row], ours: str, metric: str) -> list[Row]:
    """How an agent stands to each other that learned or was tuned, one by one, and to the best rule."""
    rows: list[Row] = []
    whole = [row for row in verdict(results, metric=metric) if row["level"] is None]
    rule = next(row["agent"] for row in whole if row["role"] == "rule")
    learned = [row["agent"] for row in whole if row["role"] == "agent" and row["agent"] != ours]
    for rival, other in {**{name: name for name in learned}, BEST_RULE: rule}.items():
        judged = verdict([row for row in results if row["agent"] in (ours, other)], str(other), metric)
        (row,) = (row for row in judged if row["level"] is None and row["agent"] == ours)
        shown = {name: row[name] for name in ("task", "metric", "against", "ratio", "low", "high", "p")}
        rows.append({"rival": rival} | shown)
    return rows


def corrected(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Rows, in which every p is by Holm's correction for all rows that have these columns in common."""
    found = list(rows)
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        at = [i for i, row in enumerate(rows) if tuple(row[k] for k in keys) == group and row["p"] is not None]
        for i, p in zip(at, holm([float(str(rows[i]["p"])) for i in at]), strict=True):
            found[i] = found[i] | {"p": p}
    return found


def picture(rows: Iterable[Row]) -> Figure:
    """The agent beside the strongest rival of each row, in the mean and for the slowest jobs."""
    ours = [row for row in rows if row["p"] is not None]
    tasks = list(dict.fromkeys((row["view"], row["task"]) for row in ours))
    with setting():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(tasks)))
        axis = figure.subplots()
        axis.axvline(1, color=INK, linewidth=1)
        for metric, colour, shift in zip(METRICS, (BLUE, VERMILLION), (-0.12, 0.12), strict=True):
            mine = [row for row in ours if row["metric"] == metric]
            places = [tasks.index((row["view"], row["task"])) + shift for row in mine]
            ratio, low, high = ([float(str(row[end])) for row in mine] for end in ("ratio", "low", "high"))
            axis.hlines(places, low, high, color=colour, linewidth=1.5)
            axis.plot(ratio, places, "o", color=colour, markersize=4, label=metric)
        axis.set_xscale("log")
        axis_of_ratios(axis)
        axis.set_yticks(range(len(tasks)), [f"{_short(str(task))} ({view})" for view, task in tasks])
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.legend(loc="best")
        axis.set(xlabel="response time of Dreamer / that of the strongest rival of the row (left is better)")
    return figure


def _short(task: str) -> str:
    """A task without where its trace comes from."""
    return task.removeprefix("AzureLLMInferenceTrace_").partition(" at load")[0]


def agents(asked: Study, view: View) -> tuple[list[RunFolder], list[RunFolder]]:
    """Dreamers and their learned rivals, trained."""
    ours, rivals = (dreamers, informed) if view == "full" else (hidden_dreamers, hidden_rivals)
    return asked.train(ours(asked)), asked.train(rivals(asked))


def main() -> None:
    asked = study(Strongest, __doc__)
    table: list[Row] = []
    pairs: list[Row] = []
    for view in TUNED:
        ours, rivals = agents(asked, view)
        for where in asked.settings(view):
            results = asked.examined(asked.exam, where, [*ours, *rivals], view) + asked.tuned(where, view)
            name = ours[0].config(TrainConfig).name
            for metric in METRICS:
                table += [{"view": view} | row for row in standing(results, name, metric)]
                pairs += [{"view": view} | row for row in beside(results, name, metric)]
    asked.publish("strongest", found := corrected(table, "metric"))
    asked.publish("strongest_pairs", corrected(pairs, "view", "metric", "rival"))
    asked.draw("strongest", picture(found))


if __name__ == "__main__":
    main()
