"""Verdicts as tables of text, for the terminal and for pages. The rows themselves are what `--output json` prints."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from reverie.evaluate.statistics import EPISODES_FOR_A_CLAIM, SEEDS_FOR_A_CLAIM
from reverie.evaluate.summary import METRICS, Summary
from reverie.report.words import number, place, ratio, with_interval


class TextTable(NamedTuple):
    """A table as it is read: the first column is a name, the others are numbers and words."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str
    emphasis: list[str]
    """For each row what it is: agent, rule, oracle or bound."""


def verdict_tables(verdict: Sequence[Mapping[str, Any]]) -> list[TextTable]:
    """One table per experiment, task and level of a verdict, the best first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in verdict:
        groups.setdefault((row["experiment"], row["task"], row["level"]), []).append(row)
    with_levels = {(experiment, task) for experiment, task, level in groups if level is not None}
    return [_verdict_table(rows, key[2] is None and key[:2] in with_levels) for key, rows in groups.items()]


def _verdict_table(rows: Sequence[Mapping[str, Any]], over_levels: bool) -> TextTable:
    first = rows[0]
    against, oracle = first["against"], first["oracle"]
    shown = {
        "agent": [row["agent"] for row in rows],
        f"{first['metric']} response": [with_interval(row, "mean") for row in rows],
        f"/ {against}": [with_interval(row, "ratio", ratio) for row in rows],
        "verdict": [_word(row) for row in rows],
        "seeds": [str(row["seeds"]) if row["role"] == "agent" else "-" for row in rows],
    }
    notes = [
        f"{first['episodes']} episodes; in brackets {100 * first['confidence']:g} % intervals.",
        f"/ {against}: geometric mean of the per-episode ratios{' to the best rule' * first['against_best_rule']}.",
    ]
    if over_levels:
        shown["regret"] = [with_interval(row, "regret") for row in rows]
        notes.append("Regret: mean response minus that of the best rule of each level.")
    if oracle is not None:
        shown[f"/ {oracle}"] = [with_interval(row, "oracle_ratio", ratio) for row in rows]
        notes.append(f"/ {oracle}: the same ratio to the best of those that are told what is hidden.")
    if not all(row["claim"] for row in rows):
        notes.append(f"(?): fewer than {SEEDS_FOR_A_CLAIM} training seeds or {EPISODES_FOR_A_CLAIM} episodes.")
    return TextTable(
        title=place(first),
        columns=list(shown),
        rows=[list(row) for row in zip(*shown.values(), strict=True)],
        caption=" ".join(notes),
        emphasis=[row["role"] for row in rows],
    )


def _word(row: Mapping[str, Any]) -> str:
    word = {"baseline": "the opponent", "bound": "lower bound"}.get(row["verdict"], row["verdict"])
    return word if row["claim"] or row["verdict"] in ("baseline", "bound") else f"{word} (?)"


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


def rich_table(table: TextTable) -> Table:
    """A table for the terminal; agents stand out, what is better is green and what is worse is red."""
    shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, caption=table.caption)
    shown.caption_justify = "left"
    for position, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row, role in zip(table.rows, table.emphasis, strict=True):
        shown.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row), style=_ROLES[role])
    return shown


_ROLES = {"agent": "bold", "rule": "", "oracle": "italic", "bound": "dim"}
_STYLES = {"better": "green", "worse": "red"}
