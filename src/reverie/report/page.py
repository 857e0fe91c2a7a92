"""A report as one HTML file that needs nothing else: no scripts, no network; readable in light, dark and on paper.

`write_page` puts sections together; `answer_section`, `verdict_section`, `response_section`, `fleet_section`,
`numbers_section` and `run_section` make those of a run from its tables. Numbers are formatted here, never computed.
"""

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from reverie.evaluate.statistics import EPISODES_FOR_A_CLAIM, SEEDS_FOR_A_CLAIM, WINDOWS_FOR_A_CLAIM
from reverie.evaluate.watch import Watched
from reverie.files import write_text
from reverie.report import figures
from reverie.report.style import DARK, LIGHT, css_colours, to_svg
from reverie.report.tables import TextTable, answer_table, verdict_tables
from reverie.report.words import sentence

Table = Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    draw: Callable[..., Figure]
    """Makes a figure of `width` inches: there is one for a wide page and one for a phone."""
    caption: str


class Section(NamedTuple):
    """A part of the page. Everything is plain text but the figures."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs."""
    findings: Sequence[tuple[str, str]] = ()
    """A word (better, worse, no difference, baseline) and a sentence each."""
    pictures: Sequence[Picture] = ()
    tables: Sequence[TextTable] = ()
    answer: TextTable | None = None
    """A table that is read first, on a narrow screen too; it stands above all else."""
    facts: Mapping[str, str] = {}
    """Names and what stands for them; text of several lines is kept as it is."""


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all; `lead` is a sentence below the title."""
    write_text(path, page(title, lead, sections))


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as text; the same sections give the same text."""
    body = "\n".join(_section(number, section) for number, section in enumerate(sections, 1))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
:root {{ {css_colours(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_colours(DARK)} }} }}
{_CSS}</style>
</head>
<body>
<main>
<header>
<h1>{html.escape(title)}</h1>
<p class="lead">{_text(lead)}</p>
</header>
{body}
</main>
</body>
</html>
"""


# --- the sections of a run -------------------------------------------------------------------------------------------


def answer_section(verdict: Table) -> Section:
    """Who wins, by how much and how sure that is, for each kind of traffic."""
    return Section("The answer", answer=answer_table(verdict))


def verdict_section(verdict: Table) -> Section:
    """All contestants, levels too, as a picture; and what is to be said of the agents in whole tasks, in words."""
    agents = [row for row in verdict if row["role"] == "agent" and row["level"] is None]
    text = [] if agents else ["No trained agent took part; these are the classical rules among themselves."]
    experiments = dict.fromkeys(row["experiment"] for row in verdict)
    pictures = [
        Picture(
            partial(figures.forest, [row for row in verdict if row["experiment"] == name]),
            f"{str(name).capitalize()} trials: response times as a ratio to those of the best rule, with "
            f"{100 * verdict[0]['confidence']:g} % intervals; left of 1 is faster. Every contestant met the same jobs."
            + " Hollow marks were told what is hidden from the agents."
            * any(r["role"] == "oracle" for r in verdict),
        )
        for name in experiments
    ]
    return Section(
        "Verdict",
        text=[*text, _READING],
        findings=[(row["verdict"], sentence(row)) for row in agents],
        pictures=pictures,
    )


def numbers_section(verdict: Table) -> Section:
    """The verdict in numbers, a table for each task and level."""
    return Section("Numbers", tables=verdict_tables(verdict))


_READING = (
    "The opponent is the classical rule that turned out best on these same episodes, which makes it a slightly harder "
    "one than a rule chosen in advance. Ratios are geometric means over episodes, all contestants on the same jobs. "
    "Words such as better are corrected for the number of rows of a table (Holm); intervals are those of single rows "
    "and cover training seeds and episodes. Episodes of a trace are windows that do not overlap. "
    f"Below {SEEDS_FOR_A_CLAIM} seeds and "
    f"{EPISODES_FOR_A_CLAIM} episodes, or {WINDOWS_FOR_A_CLAIM} windows, nothing is claimed."
)


def response_section(responses: Table, verdict: Table) -> Section:
    """How response times are distributed, beside the rules and oracles that were best somewhere."""
    best = [name for name in dict.fromkeys(row[role] for role in ("against", "oracle") for row in verdict) if name]
    experiments = dict.fromkeys(row["experiment"] for row in responses)
    units = {str(row["task"]): "seconds" for row in verdict if row["windows"]}
    pictures = [
        Picture(
            partial(figures.survival, [row for row in responses if row["experiment"] == name], best, units),
            f"{str(name).capitalize()} trials: the share of jobs that take longer than a time, over all episodes. "
            "Lines further to the left are better; where they are straight, tails are heavy.",
        )
        for name in experiments
    ]
    return Section("Response times", pictures=pictures)


def fleet_section(episodes: Sequence[Watched]) -> Section:
    """What happened inside the fleet in one episode, for one or more policies on the same jobs."""
    caption = (
        "One episode: servers as rows, the fastest on top; brighter where a new job would have to wait longer (black: "
        "hardly at all). White ticks are the jobs sent there, longer for larger ones; a hatched server has failed. "
        "Below, the load that arrived (bars) and the workload's mean (line); above 1 the fleet falls behind."
    )
    return Section("Inside the fleet", pictures=[Picture(partial(figures.fleet_over_time, episodes), caption)])


def run_section(facts: Mapping[str, Any]) -> Section:
    """What was run: names and values, such as the command, versions, seeds and the configuration (kept as JSON)."""
    return Section(
        "What was run",
        facts={
            name: value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            for name, value in facts.items()
        },
    )


# --- HTML ------------------------------------------------------------------------------------------------------------


def _section(number: int, section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.answer:
        parts.append(_table(section.answer, "answer"))
    parts += [f"<p>{_text(text)}</p>" for text in section.text]
    for position, picture in enumerate(section.pictures):
        drawn = ""
        for kind, width in (("wide", figures.WIDTH), ("narrow", figures.PHONE)):
            svg = to_svg(picture.draw(width=width), f"{kind}-{number}-{position}", picture.caption)
            drawn += f'<div class="{kind}">{svg}</div>'
        parts.append(f"<figure>{drawn}<figcaption>{_text(picture.caption)}</figcaption></figure>")
    if section.findings:
        items = (
            f'<li class="{word.replace(" ", "-")}"><b>{html.escape(word)}</b> {_text(said)}</li>'
            for word, said in section.findings
        )
        parts.append(f'<ul class="findings">{"".join(items)}</ul>')
    parts += [_table(table) for table in section.tables]
    if section.facts:
        items = (f"<dt>{html.escape(name)}</dt><dd>{_fact(value)}</dd>" for name, value in section.facts.items())
        parts.append(f"<dl>{''.join(items)}</dl>")
    return f"<section>{''.join(parts)}</section>"


def _text(text: str) -> str:
    """Text in which names do not break at their hyphens, nor numbers from their per cent."""
    text = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", html.escape(text))
    return re.sub(
        r"[\w.]+(-[\w.]+)+", lambda name: f'<span class="name">{name[0]}</span>' if len(name[0]) < 30 else name[0], text
    )


def _fact(value: str) -> str:
    text = html.escape(value)
    if value.count("\n") > 12:
        return f"<details><summary>{value.count(chr(10)) + 1} lines</summary><pre>{text}</pre></details>"
    return f"<pre>{text}</pre>" if "\n" in value else text


def _table(table: TextTable, kind: str = "") -> str:
    """Cells carry the names of their columns, which stand beside them where a narrow screen shows rows as blocks."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f'<tr class="{role}">{"".join(map(_cell, table.columns, row))}</tr>'
        for row, role in zip(table.rows, table.emphasis, strict=True)
    )
    caption = (
        f"<caption><b>{html.escape(table.title)}</b> {html.escape(table.caption)}</caption>" if table.title else ""
    )
    body = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="table {kind}">{body}</div>'


def _cell(column: str, text: str) -> str:
    return f'<td data-column="{html.escape(column)}">{_text(text)}</td>'


_CSS = """
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
.lead, figcaption, caption, dt { color: var(--muted); }
.lead { font-size: 1.1rem; margin: 0; }
.findings { list-style: none; margin: 1rem 0; padding: 0; }
.findings li {
  --tone: var(--grey); margin: .5rem 0; padding: .6rem .9rem;
  border-left: 4px solid var(--tone); background: color-mix(in srgb, var(--tone) 12%, transparent);
}
.findings .better { --tone: var(--green); }
.findings .worse { --tone: var(--vermillion); }
.findings b { display: block; font-size: .85rem; color: var(--muted); }
figure { margin: 1.5rem 0; }
figure .narrow { display: none; }
figure svg { display: block; width: 100%; height: auto; }
.name { white-space: nowrap; }
figcaption { font-size: .9rem; margin-top: .4rem; }
.table { overflow-x: auto; margin: 2rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .8rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; margin-bottom: .4rem; }
caption b { color: var(--ink); display: block; font-size: 1rem; }
th, td { padding: .22rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; white-space: normal; border-bottom-color: var(--grey); }
th:first-child, td:first-child { text-align: left; }
tr.agent { font-weight: 600; background: color-mix(in srgb, var(--blue) 8%, transparent); }
tr.oracle td:first-child { font-style: italic; }
tr.bound { color: var(--muted); }
.answer table { font-size: .95rem; }
.answer th, .answer td { text-align: left; white-space: normal; padding: .4rem .6rem; vertical-align: top; }
.answer td { font-weight: 400; }
.answer td:first-child, .answer td:nth-child(2) { font-weight: 600; }
.answer td:nth-child(2) { white-space: nowrap; }
.answer tr.agent { background: none; }
@media screen and (max-width: 40rem) {
  main { padding: .75rem .75rem 3rem; }
  h1 { font-size: 1.3rem; }
  h2 { margin-top: 1.5rem; font-size: 1.15rem; }
  .lead { font-size: .95rem; line-height: 1.35; }
  .answer h2 { margin-top: .75rem; }
  .answer { margin: 0; line-height: 1.35; }
  .answer thead { display: none; }
  .answer table, .answer tbody, .answer tr, .answer td { display: block; }
  .answer tr { border-top: 1px solid var(--grid); padding: .45rem 0; }
  .answer td { border: 0; padding: 0; font-size: .9rem; }
  .answer td:first-child, .answer td:nth-child(2) { display: inline; font-size: 1rem; }
  .answer td:first-child::after { content: ": "; }
  .answer td:nth-child(n + 4) { display: inline; font-size: .8rem; color: var(--muted); }
  .answer td:nth-child(4)::after { content: "; "; }
  .answer td:nth-child(5)::before { content: attr(data-column) ": "; }
  figure .wide { display: none; }
  figure .narrow { display: block; }
  dl { grid-template-columns: 1fr; }
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.25rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
pre { margin: 0; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
summary { cursor: pointer; color: var(--muted); }
@media print {
  html { font-size: 10px; }
  main { max-width: none; padding: 0; }
  figure svg { max-height: 23cm; }
  figure, tr, .findings li { break-inside: avoid; }
  h2, caption, thead { break-after: avoid; }
  .table { overflow: visible; }
  .table th, .table td { white-space: normal; padding: .15rem .3rem; }
  pre { white-space: pre-wrap; }
  details pre { columns: 3; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
