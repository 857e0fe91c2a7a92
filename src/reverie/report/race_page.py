"""The page of a race of ways to balance real servers: who was how fast, when, and what the simulator had said."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reverie.report.figures import PHONE, WIDTH, axis_of_ratios
from reverie.report.page import Picture, Section, run_section, write_page
from reverie.report.style import INK, SILVER, Look, looks, setting
from reverie.report.tables import race_table
from reverie.report.words import milliseconds

Table = Sequence[Mapping[str, Any]]

_PARTS = 24
"""Of a race, in each of which a mean is taken."""
_FAR = 2.4
"""Ratios beyond are written out."""
_SHOWN = 4
"""Arms besides our own that have lines, the best of them."""


def write_race_page(path: Path, seen: Table, lanes: Table, config: Mapping[str, Any], length: float) -> None:
    """Arguments: `seen`, for each race and arm its name (arm), whether weights are `served` by us, and of all requests
    when they were to be sent (at) and their `seconds`, both [J]; `lanes`, how each arm came off; `config`, of the
    race, and its `length` in seconds."""
    ours = {row["arm"] for row in seen if row["served"]}
    best = min(lanes, key=lambda lane: lane["mean"])
    requests = sum(len(row["at"]) for row in seen if row["arm"] == lanes[0]["name"])
    lead = (
        f"{best['name']} was the fastest of {len(lanes)} ways to balance {requests:,} requests: "
        f"{milliseconds(best['mean'])} in the mean, {_ratio(best)} times {lanes[0]['name']}. All of "
        "them met the same requests at the same time."
    )
    caption = (
        f"Mean response time over that of {lanes[0]['name']}, with 95 % intervals; left is faster. Weights of arms in "
        "colour are set by reverie serve. Rings are what the simulator says of the same requests."
    )
    over_time = (
        f"Mean response times of requests that came in each of {_PARTS} parts of the race, for the fastest ways and "
        "ours, on a logarithmic scale."
    )
    if config["drift"]:
        over_time += " Speeds of servers are reversed at the line."
    tails = "The share of requests that take longer than a time; lines further to the left are better."
    shown = _shown(lanes, ours)
    pictures = [
        Picture(partial(_ratios, lanes, ours), caption),
        Picture(partial(_over_time, seen, shown, ours, config, length), over_time),
        Picture(partial(_tails, seen, shown, ours), tails),
    ]
    sections = [
        Section("Who was how fast", pictures=pictures, tables=[race_table(lanes, ours, "Response times")]),
        run_section({"config": config}),
    ]
    write_page(path, "A race of ways to balance", lead, sections)


def _shown(lanes: Table, ours: set[str]) -> list[str]:
    """Our own and the best of the others."""
    names = [lane["name"] for lane in sorted(lanes, key=lambda lane: lane["mean"])]
    others = [name for name in names if name not in ours][:_SHOWN]
    return [name for name in names if name in ours or name in others]


def _looks(names: Sequence[str], ours: set[str]) -> dict[str, Look]:
    return looks([{"agent": name, "role": "agent" if name in ours else "rule"} for name in names])


def _ratios(lanes: Table, ours: set[str], width: float = WIDTH) -> Figure:
    rows = sorted(lanes, key=lambda lane: lane["mean"])
    look = _looks([row["name"] for row in rows], ours)
    base = next(lane for lane in lanes if lane["ratio"][0] == 1.0)
    with setting():
        figure = Figure(figsize=(width, 0.8 + 0.26 * len(rows)))
        axis = figure.subplots()
        axis.set_xscale("log")
        axis.axvline(1, color=INK, linewidth=1)
        for y, row in enumerate(rows):
            ratio, low, high = row["ratio"]
            style = look[row["name"]]
            if ratio < _FAR:
                axis.plot([low, min(high, _FAR)], [y, y], color=style.colour, linewidth=style.weight)
                axis.plot(ratio, y, "o", color=style.colour, ms=3 + style.weight)
            else:
                axis.text(_FAR, y, f"{ratio:.3g} ▸", color=style.colour, ha="right", va="center", size=8)
            if row["simulated"] and (said := row["simulated"] / base["mean"]) < _FAR:
                axis.plot(said, y, "o", color=INK, mfc="none", ms=8, mew=1)
        axis.set_xlim(
            0.9 * min(row["ratio"][1] for row in rows), 1.02 * min(_FAR, max(row["ratio"][2] for row in rows))
        )
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis_of_ratios(axis)
        axis.set_xlabel(f"mean response time / that of {base['name']}")
    return figure


def _over_time(
    seen: Table, shown: Sequence[str], ours: set[str], config: Mapping[str, Any], length: float, width: float = WIDTH
) -> Figure:
    edges = np.linspace(0, length, _PARTS + 1)
    look = _looks(shown, ours)
    with setting():
        figure = Figure(figsize=(width, 3.2))
        axis = figure.subplots()
        for name in shown:
            mine = [row for row in seen if row["arm"] == name]
            part = np.concatenate([np.digitize(row["at"], edges[1:-1]) for row in mine])
            seconds = np.concatenate([row["seconds"] for row in mine])
            count = np.bincount(part, minlength=_PARTS)
            mean = np.bincount(part, seconds, minlength=_PARTS) / np.maximum(count, 1)
            style = look[name]
            middle = (edges[1:] + edges[:-1])[count > 0] / 2
            axis.plot(middle, mean[count > 0], style.dashes, color=style.colour, linewidth=style.weight, label=name)
        if config["drift"]:
            axis.axvline(length / 2, color=SILVER, linewidth=1)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("seconds since the beginning")
        axis.set_ylabel("mean response time, seconds")
        _legend(figure, width)
    return figure


def _tails(seen: Table, shown: Sequence[str], ours: set[str], width: float = WIDTH) -> Figure:
    look = _looks(shown, ours)
    with setting():
        figure = Figure(figsize=(width, 3.2))
        axis = figure.subplots()
        for name in shown:
            seconds = np.sort(np.concatenate([row["seconds"] for row in seen if row["arm"] == name]))
            share = 1 - np.arange(len(seconds)) / len(seconds)
            style = look[name]
            axis.plot(seconds, share, style.dashes, color=style.colour, linewidth=style.weight, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(left=np.quantile(seconds, 0.2))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axis.set_xlabel("response time, seconds")
        axis.set_ylabel("requests that take longer")
        _legend(figure, width)
    return figure


def _legend(figure: Figure, width: float) -> None:
    figure.legend(loc="outside lower center", ncols=4 if width > PHONE else 2)


def _ratio(lane: Mapping[str, Any]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*lane["ratio"])
