"""Verdicts as tables of text, for the terminal and for pages. The rows themselves are what `--output json` prints."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from reverie.evaluate.statistics import EPISODES_FOR_A_CLAIM, METRICS, SEEDS_FOR_A_CLAIM, SHARE, WINDOWS_FOR_A_CLAIM
from reverie.evaluate.summary import Summary
from reverie.report.words import NAMES, answer, counts, milliseconds, number, place, ratio, with_interval


class TextTable(NamedTuple):
    """A table as it is read: the first column is a name, the others are numbers and words."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str
    emphasis: list[str]
    """For each row what it is: agent, rule, oracle or bound."""


def verdict_tables(verdict: Sequence[Mapping[str, Any]]) -> list[TextTable]:
    """Two tables per experiment, task and level of a verdict, the best first: the verdict, and its tails."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in verdict:
        groups.setdefault((row["experiment"], row["task"], row["level"]), []).append(row)
    with_levels = {(experiment, task) for experiment, task, level in groups if level is not None}
    return [
        table
        for key, rows in groups.items()
        for table in (_verdict_table(rows, key[2] is None and key[:2] in with_levels), _tail_table(rows))
    ]


def _verdict_table(rows: Sequence[Mapping[str, Any]], over_levels: bool) -> TextTable:
    first = rows[0]
    against, oracle, metric = first["against"], first["oracle"], NAMES[first["metric"]]
    shown = {
        "agent": [row["agent"] for row in rows],
        "sees": [row["sees"] or "-" for row in rows],
        metric: [with_interval(row, "value") for row in rows],
        f"/ {against}": [with_interval(row, "ratio", ratio) for row in rows],
        "of means": [with_interval(row, "means_ratio", ratio) for row in rows],
        "verdict": [word(row) for row in rows],
        "seeds": [str(row["seeds"]) if row["role"] == "agent" else "-" for row in rows],
    }
    on = counts({**first, "role": "rule"})
    if first["windows"]:
        on += f" of the trace{': no claim' * (first['windows'] < WINDOWS_FOR_A_CLAIM)}"
    confidence = f"{100 * first['confidence']:g} %"
    notes = [
        f"{on}; in brackets {confidence} intervals of single rows. The words are corrected for "
        f"the {len(rows)} rows (Holm): better and worse hold for the whole table.",
        f"/ {against}: geometric mean of the per-episode ratios{' to the best rule' * first['against_best_rule']}; "
        "of means: ratio of the mean response times.",
    ]
    if first["metric"] == SHARE:
        del shown["of means"]
        notes[1] = f"/ {against}: ratio of the shares; the words rest on their difference."
    if over_levels:
        shown["regret"] = [with_interval(row, "regret") for row in rows]
        notes.append("Regret: mean response minus that of the best rule of each level.")
    if oracle is not None:
        shown[f"/ {oracle}"] = [with_interval(row, "oracle_ratio", ratio) for row in rows]
        notes.append(f"/ {oracle}: the same ratio to the best of those that are told what is hidden.")
    if not all(row["claim"] for row in rows):
        least = f"{WINDOWS_FOR_A_CLAIM} windows" if first["windows"] else f"{EPISODES_FOR_A_CLAIM} episodes"
        notes.append(f"(?), no claim: fewer than {SEEDS_FOR_A_CLAIM} training seeds or {least}.")
    return TextTable(
        title=place(first),
        columns=list(shown),
        rows=[list(row) for row in zip(*shown.values(), strict=True)],
        caption=" ".join(notes),
        emphasis=[row["role"] for row in rows],
    )


def _tail_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """The distribution of response times beside the opponent's: p50, p95, p99 and slowdown."""
    rows = [row for row in rows if row["role"] != "bound"]
    shown = {"agent": [row["agent"] for row in rows], "p99": [with_interval(row, "p99") for row in rows]}
    for name in ("median", "p95", "p99", "mean_slowdown"):
        shown[f"{NAMES[name]} / {rows[0]['against']}"] = [with_interval(row, f"{name}_ratio", ratio) for row in rows]
    shown["p99's verdict"] = [_OPPONENT.get(row["p99_verdict"], row["p99_verdict"] or "-") for row in rows]
    return TextTable(
        title=f"{place(rows[0])}: tails",
        columns=list(shown),
        rows=[list(row) for row in zip(*shown.values(), strict=True)],
        caption="Percentiles of the response times of an episode and mean slowdown (response time over the time that "
        "an idle server of speed 1 needs): geometric means of the per-episode ratios.",
        emphasis=[row["role"] for row in rows],
    )


def players_table(standings: Sequence[Mapping[str, Any]]) -> TextTable:
    """How agents stand in a game; `standings` as `evaluate/players.py` has them."""
    first = standings[0]
    return TextTable(
        title=f"Returns of {first['episodes']} trials",
        columns=["tasks", "episode of a trial", "agent", "mean return", f"- {first['against']}", "verdict", "seeds"],
        rows=[
            [
                row["tasks"],
                str(row["episode"]),
                row["agent"],
                with_interval(row, "mean"),
                with_interval(row, "difference"),
                word(row),
                str(row["seeds"]),
            ]
            for row in standings
        ],
        caption="The likeliest action is taken, by all on the same tasks; in brackets 95 % intervals over seeds, and "
        "over trials, or over tasks where these are tested on. The words are corrected for the agents of a set of "
        f"tasks and an episode (Holm), not for several of these. {_FEW}",
        emphasis=["agent"] * len(standings),
    )


def suites_table(standings: Sequence[Mapping[str, Any]]) -> TextTable:
    """How agents stand in a suite of fleets; `standings` as `evaluate/suites.py` has them."""
    first = standings[0]
    return TextTable(
        title=f"{first['episodes']} episodes of each task",
        columns=["task", "agent", "score", "/ best rule", f"/ {first['against']}", "verdict", "seeds"],
        rows=[
            [
                f"{row['task'] or 'all'}{'' if row['learned'] else ' (new)'}",
                row["agent"],
                with_interval(row, "score", ratio),
                with_interval(row, "ratio", ratio),
                with_interval(row, "beside", ratio),
                word(row),
                str(row["seeds"]),
            ]
            for row in standings
        ],
        caption="Score: (random - agent) / (random - best rule) of mean response times; /: geometric means of the "
        "per-episode ratios, below 1 is faster. all: the mean of the scores of all tasks, geometric means of their "
        "ratios. In brackets 95 % intervals over seeds and episodes; the words are corrected for the agents of a task "
        "(Holm), not for several tasks. (new): a task, or one of all, that this agent was not trained on. "
        f"{_FEW}",
        emphasis=["agent" if row["learned"] else "rule" for row in standings],
    )


def answer_table(verdict: Sequence[Mapping[str, Any]]) -> TextTable:
    """The answer: one row for each kind of traffic, whatever happens within it."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in verdict:
        if row["level"] is None:
            groups.setdefault((row["experiment"], row["task"]), []).append(row)
    rows = [list(answer(group)) for group in groups.values()]
    return TextTable("", ["traffic", "winner", "how much", "how sure", "slowest 1 %"], rows, "", ["agent"] * len(rows))


_FEW = f"(?), no claim: fewer than {SEEDS_FOR_A_CLAIM} training seeds or {EPISODES_FOR_A_CLAIM} episodes."
_OPPONENT = {"baseline": "the opponent", "bound": "lower bound"}


def word(row: Mapping[str, Any]) -> str:
    """The verdict of a row, marked where too little stands behind it."""
    said = _OPPONENT.get(row["verdict"], row["verdict"])
    return said if row["claim"] or row["verdict"] in ("baseline", "bound", "no claim") else f"{said} (?)"


def summary_table(found: Sequence[Summary], title: str, caption: str) -> TextTable:
    """How jobs fared under each rule, one line for each."""
    others = METRICS[1:]
    return TextTable(
        title=title,
        columns=["rule", "mean", *(name.replace("_", " ") for name in others)],
        rows=[
            [rule.name, with_interval(rule.row(), "mean"), *(number(rule.estimates[metric].value) for metric in others)]
            for rule in found
        ],
        caption=caption,
        emphasis=[rule.role for rule in found],
    )


def race_table(lanes: Sequence[Mapping[str, Any]], ours: Collection[str], title: str) -> TextTable:
    """How each arm of a race came off (`serve.race.Lane`), the fastest first; ratios are to the first that is given."""
    rows = sorted(lanes, key=lambda lane: lane["mean"])
    shown = {
        "arm": [row["name"] for row in rows],
        "mean": [milliseconds(row["mean"]) for row in rows],
        "second half": [milliseconds(row["second_half"]) for row in rows],
        "p99": [milliseconds(row["p99"]) for row in rows],
        f"/ {lanes[0]['name']}": ["{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"]) for row in rows],
        "simulated": [milliseconds(row["simulated"]) if row["simulated"] else "-" for row in rows],
        "live / simulated": [f"{row['of_simulated']:.2f}" if row["of_simulated"] else "-" for row in rows],
        "failed": [str(row["failed"]) for row in rows],
    }
    return TextTable(
        title=title,
        columns=list(shown),
        rows=[list(row) for row in zip(*shown.values(), strict=True)],
        caption="From the planned moment of a request to its answer. Simulated: the same requests, servers and changes "
        "of speed under the rule that the arm comes to; none where the simulator has no such rule.",
        emphasis=["agent" if row["name"] in ours else "rule" for row in rows],
    )


def rich_table(table: TextTable) -> Table:
    """A table for the terminal; agents stand out, what is better is green and what is worse is red."""
    shown = Table(title=Text(table.title, "table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    shown.caption = Text(table.caption, "table.caption")
    shown.caption_justify = "left"
    for position, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if position else "left", no_wrap=True)
    for row, role in zip(table.rows, table.emphasis, strict=True):
        shown.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row), style=_ROLES[role])
    return shown


_ROLES = {"agent": "bold", "rule": "", "oracle": "italic", "bound": "dim"}
_STYLES = {"better": "green", "worse": "red"}
