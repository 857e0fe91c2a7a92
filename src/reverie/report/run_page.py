"""The page of a run or of many, put together from what lies in its folder; and the verdict in brief."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from reverie.envs.fleet.traces import describe
from reverie.envs.fleet.weights import View
from reverie.evaluate.about import about_view
from reverie.evaluate.curve import curve_rules
from reverie.evaluate.players import CODES, RETURNS, tables_of
from reverie.evaluate.results import Results
from reverie.evaluate.statistics import verdict
from reverie.report import figures, page
from reverie.report.imagined_page import imagined_sections
from reverie.report.page import Picture, Section, write_page
from reverie.report.tables import TextTable, word
from reverie.report.traces import draw_trace
from reverie.report.words import lead, number, place, ratio, with_interval
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.tables import Row, read_csv

_CURVE_RULES_SHOWN = 4


def write_report(
    run: RunFolder, trained: Sequence[RunFolder], results: Results, title: str, view: View | None = None
) -> list[Row]:
    """Write the page of `run`, as far as there is something to show, and return the verdict.

    Arguments: `trained`, the training runs that belong to it; `results`, of their agents and of the rules; `view`, what
    is seen of the fleet, if it is to be named before a run is trained.
    """
    tables = results.tables()
    judged = verdict(tables.results)
    begun = [each for each in trained if has_learned(each)]
    sections = [
        page.answer_section(judged),
        page.verdict_section(judged),
        page.response_section(tables.responses, judged),
        *([learning_section(begun, judged)] if begun else []),
        page.fleet_section(results.watched()),
        trace_section(results),
        page.numbers_section(judged),
        run_section(run, begun),
    ]
    fleet, clock, *_ = results.about[1:]
    warned = [line for line in results.about if line.startswith("warning")]
    played = f"The trace {results.trace.name} is played on this {'; '.join([fleet, clock, *warned])}."
    views = sorted({each.config(TrainConfig).fleet.view for each in begun} | ({view} if view else set()))
    write_page(
        run.report, title, " ".join([lead(judged), played, *(f"{about_view(view)}." for view in views)]), sections
    )
    return judged


def brief(judged: Sequence[Mapping[str, Any]]) -> TextTable:
    """The verdict on the agents alone, one line for each of them and each task or level."""
    tasks = list(dict.fromkeys((row["experiment"], row["task"]) for row in judged))
    agents = sorted(
        (row for row in judged if row["role"] == "agent"),
        key=lambda row: (tasks.index((row["experiment"], row["task"])), row["level"] or 0.0),
    )
    best = {place(row): row for row in judged if row["agent"] == row["against"]}
    rows = [
        [
            place(row),
            row["agent"],
            with_interval(row, "mean"),
            f"{row['against']} {number(best[place(row)]['mean'])}",
            with_interval(row, "ratio", ratio),
            ratio(row["means_ratio"]),
            with_interval(row, "p99_ratio", ratio),
            word(row),
            str(row["seeds"]),
        ]
        for row in agents
    ]
    return TextTable(
        title="Verdict: would a learned balancer beat the best rule?",
        columns=[
            "task",
            "agent",
            "mean response",
            "best rule",
            "agent / best rule",
            "of means",
            "p99",
            "verdict",
            "seeds",
        ],
        rows=rows,
        caption="agent / best rule: geometric mean of the per-episode ratios on the same jobs, below 1 is faster; of "
        "means: ratio of the mean response times; p99: ratio of the slowest 1 %; in brackets 95 % intervals. (?), no "
        "claim: too few training seeds, episodes or independent windows.",
        emphasis=["agent"] * len(rows),
    )


def training_table(trained: Sequence[RunFolder]) -> TextTable:
    """What the training of each agent took."""
    rows = []
    for run in trained:
        config, last = run.config(TrainConfig), run.metrics()[-1]
        cost = f"{last['cpu_seconds'] / 60:.1f}", f"{last['wall_seconds'] / 60:.1f}"
        rows.append([config.name, str(config.seed), f"{last['step']:,.0f}", f"{last['updates']:,.0f}", *cost])
    return TextTable(
        title="Training",
        columns=["agent", "seed", "environment steps", "updates", "CPU minutes", "minutes"],
        rows=rows,
        caption="Time without compilation.",
        emphasis=["agent"] * len(rows),
    )


def has_learned(run: RunFolder) -> bool:
    """Whether anything of a training run is on record."""
    return any("evaluation/response" in line for line in run.metrics())


def learning_section(trained: Sequence[RunFolder], judged: Sequence[Mapping[str, Any]]) -> Section:
    """Learning curves over CPU time and over environment steps, beside the rules that are best on the same episodes."""
    curves = [
        {
            "agent": (config := run.config(TrainConfig)).name,
            "training_seed": config.seed,
            "response": line["evaluation/response"],
            "cpu_seconds": line["cpu_seconds"],
            "step": line["step"],
        }
        for run in trained
        for line in run.metrics()
        if "evaluation/response" in line
    ]
    shown = dict(list(curve_rules(trained[0]).items())[:_CURVE_RULES_SHOWN])
    agents = [row["agent"] for row in judged if row["role"] == "agent"]
    caption = (
        "Mean response time on the same few episodes while training went on, one line per run; dashed are the best of "
        "the classical rules there. Training takes place in the family that the configuration names."
    )
    pictures = [
        Picture(partial(figures.learning_curves, curves, shown, "cpu_seconds", agents=agents), caption),
        Picture(
            partial(figures.learning_curves, curves, shown, "step", agents=agents),
            "The same over the jobs dispatched in training.",
        ),
    ]
    return Section("Learning", pictures=pictures, tables=[training_table(trained)])


def trace_section(results: Results) -> Section:
    """The trace that the agents are examined on, and how it is played."""
    trace = results.trace
    caption = "When its jobs arrive, how bursty they are and how large, beside Poisson arrivals and exponential sizes."
    facts = dict(line.split(": ", 1) for line in results.about) | dict(trace.provenance)
    return Section(
        f"The trace {trace.name}", pictures=[Picture(partial(draw_trace, trace, describe(trace)), caption)], facts=facts
    )


def run_section(run: RunFolder, trained: Sequence[RunFolder]) -> Section:
    """Command, versions and configurations: what is needed to do it again."""
    facts: dict[str, Any] = {}
    if written := run.versions():
        facts |= {"command": " ".join(written[-1]["command"]), "versions": written[-1]["versions"]}
    facts |= {"configuration": run.config_json()}
    facts |= {f"configuration of {each.path.name}": each.config_json() for each in trained if each.path != run.path}
    return page.run_section(facts)


def returns_table(rows: Sequence[Row]) -> TextTable:
    """Arguments: `rows`, of one run, as `evaluate_player` gives them."""
    lines = []
    for row in rows:
        best = "unknown" if row["best"] is None else number(float(str(row["best"])))
        steps = f"{int(str(row['steps'])):,}"
        names = [str(row[column]) for column in ("agent", "game", "tasks", "episode")]
        lines.append([*names, steps, with_interval(row, "mean"), best])
    return TextTable(
        title=f"Returns of {rows[0]['episodes']} episodes",
        columns=["agent", "game", "tasks", "episode of a trial", "environment steps", "mean return", "best possible"],
        rows=lines,
        caption="The likeliest action is taken; in brackets 95 % intervals over episodes, or over tasks where "
        "these are tested on.",
        emphasis=["agent"] * len(lines),
    )


def write_player_report(run: RunFolder) -> None:
    """Write the page of a run that learned a game: returns, learning curve, of a MetaDreamer what it takes tasks
    for and what it imagines, configuration."""
    rows = read_csv(run.tables / RETURNS)
    curve = [line for line in run.metrics() if "evaluation/return" in line]
    caption = "Mean return of the same few episodes while training went on."
    row = max(rows, key=lambda each: (each["tasks"] == "interpolated", each["episode"]))  # what the curve is about
    best = None if row["best"] is None else float(str(row["best"]))
    pictures = [Picture(partial(figures.return_curve, curve, best), caption)]
    sections = [
        Section("Returns", tables=[returns_table(rows)]),
        Section("Learning", pictures=pictures, tables=[training_table([run])]),
        *(imagined_sections(run) if CODES in tables_of(run.config(TrainConfig)) else []),
        run_section(run, []),
    ]
    said = f"{row['agent']} in {row['game']}: mean return {with_interval(row, 'mean')} over {row['episodes']} episodes."
    write_page(run.report, f"Report on {run.path.name}", said, sections)
