"""The page of a run that learned a suite of fleets: a row for each task, and how each was learned."""

from collections.abc import Sequence
from functools import partial

from reverie.evaluate.suites import SCORES
from reverie.report.page import Picture, Section, write_page
from reverie.report.run_page import run_section, training_table
from reverie.report.suite_figures import scores_over_training
from reverie.report.tables import TextTable
from reverie.report.words import number, ratio, with_interval
from reverie.runs.folder import RunFolder
from reverie.settings.config import SuiteConfig
from reverie.tables import Row, read_csv


def answer(rows: Sequence[Row]) -> str:
    """What comes first: how well the agent does the tasks that it was trained on."""
    learned = {str(row["task"]): float(str(row["score"])) for row in rows if row["learned"]}
    worst = min(learned, key=lambda task: learned[task])
    mean = sum(learned.values()) / len(learned)
    return (
        f"Mean score {ratio(mean)} over the tasks that were trained on, the least {ratio(learned[worst])} on {worst}."
    )


def scores_table(rows: Sequence[Row]) -> TextTable:
    """Arguments: `rows`, of one run, as `evaluate_suite` gives them."""
    lines = [
        [
            f"{row['task']}{'' if row['learned'] else ' (new)'}",
            with_interval(row, "score", ratio),
            with_interval(row, "ratio", ratio),
            number(float(str(row["response"]))),
            f"{row['rule']} {number(float(str(row['rule_response'])))}",
            number(float(str(row["random_response"]))),
        ]
        for row in rows
    ]
    return TextTable(
        title=f"{rows[0]['agent']} on each task: {rows[0]['episodes']} episodes, after {rows[0]['steps']:,} jobs",
        columns=["task", "score", "agent / best rule", "mean response", "best rule", "random"],
        rows=lines,
        caption=f"{answer(rows)} Score: (random - agent) / (random - best rule) of mean response "
        "times, 0 for random choice and 1 for the best rule; agent / best rule: geometric mean of the per-episode "
        "ratios, below 1 is faster. In brackets 95 % intervals over episodes. (new): was not trained on.",
        emphasis=["agent" if row["learned"] else "rule" for row in rows],
    )


def write_suite_report(run: RunFolder, suite: SuiteConfig) -> None:
    """Write the page of a run."""
    rows = read_csv(run.tables / SCORES)
    table = scores_table(rows)
    curve = [line for line in run.metrics() if "evaluation/score" in line]
    caption = "Score of each task on the same few episodes while training went on; shades end at 0 and 1."
    learning = [Picture(partial(scores_over_training, curve, suite.names), caption)]
    sections = [
        Section("Tasks", tables=[table]),
        Section("Learning", pictures=learning, tables=[training_table([run])]),
        run_section(run, []),
    ]
    write_page(run.report, f"Report on {run.path.name}", answer(rows), sections)
