"""The page of a run that learned a suite of fleets: a row for each task, how each was learned, and of a mixture which
experts they used, how alike they are to it and what it foretells."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from reverie.evaluate.suites import DREAMS, LIKENESS, SCORES, tables_of
from reverie.report.page import Picture, Section, write_page
from reverie.report.run_page import run_section, training_table
from reverie.report.suite_figures import (
    dreams_and_truth,
    experts_over_training,
    likeness,
    router_entropy,
    scores_over_training,
)
from reverie.report.tables import TextTable
from reverie.report.words import number, ratio, with_interval
from reverie.runs.experts import LINES, Watch, expert_use
from reverie.runs.folder import RunFolder
from reverie.settings.config import SuiteConfig, TrainConfig
from reverie.tables import Row, read_csv

HORIZONS = (16, 64)
"""Jobs ahead at which dreams are measured on the page."""


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


def collapses(run: RunFolder) -> list[str]:
    """What the log says of experts that collapsed and recovered."""
    watch = Watch()
    return [f"At step {line['step']:,.0f}: {said}." for line in run.metrics() for said in watch(line)]


def experts_section(run: RunFolder, suite: SuiteConfig) -> list[Section]:
    """Which experts each task used over training; none where there is no choice."""
    curve = [(line, use) for line in run.metrics() if (use := expert_use(line)) is not None]
    if not curve:
        return []
    lines, use = [line for line, _ in curve], np.stack([use for _, use in curve])
    said = collapses(run) or ["None has collapsed."]
    pictures = [
        Picture(
            partial(experts_over_training, use, [int(line["step"]) for line in lines], suite.names),
            "The share of each task's steps that pass an expert, while training went on; grey is not replayed.",
        ),
        Picture(
            partial(router_entropy, lines, use.shape[-1]),
            "How undecided the router is: entropy of its scores, the mean over tasks or steps. Dashed: all experts "
            "score alike. Temperature falls to 1, which lowers it too.",
        ),
    ]
    told = f"An expert has collapsed where, on {LINES} lines of metrics in a row, no task or all of them used it."
    return [Section("Experts", text=[told, *said], pictures=pictures)]


def dreams_section(rows: Sequence[Row]) -> Section:
    """What the model foretells of each task."""
    at = {(str(row["task"]), row["ahead"]): row for row in rows}
    names = list(dict.fromkeys(task for task, _ in at))

    def errors(name: str, ahead: int) -> list[str]:
        return [number(float(str(at[name, ahead][column]))) for column in ("error", "still")]

    table = TextTable(
        title=f"How far dreams are from what came, {HORIZONS[0]} and {HORIZONS[1]} jobs ahead",
        columns=["task", *(f"{what}, {ahead}" for ahead in HORIZONS for what in ("dreams", "no change"))],
        rows=[[name, *errors(name, HORIZONS[0]), *errors(name, HORIZONS[1])] for name in names],
        caption="Root mean square error of the work that waits in the fleet, over episodes; of the mean of 16 dreams, "
        "and of taking it to stay as it was.",
        emphasis=["agent"] * len(names),
    )
    caption = (
        "The work that waits in the fleet, as it was in one episode and as the model dreamt it: it saw 64 jobs, then "
        "only what the agent did. The line is the mean of 16 dreams; 80 % of them lie in the band."
    )
    return Section("Dreams", pictures=[Picture(partial(dreams_and_truth, rows, HORIZONS), caption)], tables=[table])


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
        *experts_section(run, suite),
    ]
    if LIKENESS in (tables := tables_of(run.config(TrainConfig))):
        alike = "How alike the embeddings of tasks are: 1 the same, 0 nothing in common. They begin at random."
        sections.append(
            Section("Embeddings", pictures=[Picture(partial(likeness, read_csv(run.tables / LIKENESS)), alike)])
        )
    if DREAMS in tables:
        sections.append(dreams_section(read_csv(run.tables / DREAMS)))
    sections.append(run_section(run, []))
    write_page(run.report, f"Report on {run.path.name}", answer(rows), sections)
