"""The pictures of a report: each function makes one matplotlib figure from tidy tables and computes nothing new.

`forest` draws a verdict, `survival` the distribution of response times, `learning_curves` how training went and
`fleet_over_time` what happened inside the fleet. Figures are saved by `style.py`; no window is opened.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from reverie.evaluate.watch import Watched, waits
from reverie.report.style import BLUE, GREY, GRID, INK, MUTED, SILVER, SKY, Look, looks, setting

Table = Sequence[Mapping[str, Any]]

UNIT = "time units"
"""Of the worlds' own clock; traces have seconds."""
WIDTH, PHONE = 8.8, 4.0
"""Inches of a figure on a page, 880 pixels on screen, and on a phone: letters are as large, and panels stand below one
another."""


def forest(verdict: Table, width: float = WIDTH) -> Figure:
    """The verdict as a forest plot: for each agent the ratio of its response times to the opponent's, with interval.

    `verdict` holds the rows of one experiment: a panel for each of its tasks and levels, agents in the order of their
    mean ratio. Ratios beyond the axis are written out; a hollow mark was told what is hidden from the agents.
    """
    panels = list(dict.fromkeys((row["task"], row["level"]) for row in verdict))
    cells = {(row["agent"], row["task"], row["level"]): row for row in verdict}
    names = list(dict.fromkeys(str(row["agent"]) for row in verdict))
    ratios = {name: [row["ratio"] for row in verdict if row["agent"] == name] for name in names}
    names.sort(key=lambda name: np.log(ratios[name]).mean())
    look = looks(verdict)
    lines, columns = _grid(len(panels), side_by_side=int(4 * width / WIDTH))
    with setting():
        figure = Figure(figsize=(width, 0.5 + lines * (0.6 + 0.2 * len(names))))
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axis, (task, level) in zip(axes, panels, strict=False):
            mine = [(y, cells[name, task, level]) for y, name in enumerate(names) if (name, task, level) in cells]
            _forest_panel(axis, mine, look)
            title = _place(task, level, levels=len({panel[1] for panel in panels if panel[0] == task}) > 1)
            _title(axis, title, int(11 * (width - 1.8) / columns))
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        for axis in axes[::columns]:
            for label, name in zip(axis.get_yticklabels(), names, strict=True):
                _emphasise(label, look[name])
        opponents = {row["against"] for row in verdict}
        opponent = opponents.pop() if len(opponents) == 1 else "the best rule of each panel"
        label = f"response time / that of {opponent} (geometric mean over episodes; left is better)"
        figure.supxlabel(textwrap.fill(label, int(15 * width)), size=9)
    return figure


def _forest_panel(axis: Axes, rows: Sequence[tuple[int, Mapping[str, Any]]], look: Mapping[str, Look]) -> None:
    ends = [end for _, row in rows if row["role"] != "bound" for end in _interval(row)]
    left, right = max(0.6, 0.96 * min(ends)), min(2.3, 1.04 * max(ends))
    left, right = min(left, 0.9), max(right, 1.1)
    axis.set_xscale("log")
    axis.set_xlim(left, right)
    axis.axvline(1, color=INK, linewidth=1)
    for y, row in rows:
        ratio, (low, high) = row["ratio"], _interval(row)
        style = look[row["agent"]]
        if left < ratio < right:
            axis.plot([max(low, left), min(high, right)], [y, y], color=style.colour, linewidth=style.weight)
            told = row["role"] == "oracle"
            axis.plot(ratio, y, "o", color=style.colour, mfc="white" if told else style.colour, ms=3 + style.weight)
        else:
            beyond, side, arrow = (right, "right", "{} ▸") if ratio >= right else (left, "left", "◂ {}")
            text = arrow.format(f"{ratio:.3g}")
            axis.text(beyond, y, text, color=style.colour, ha=side, va="center", size=8)
    axis_of_ratios(axis)


def axis_of_ratios(axis: Axes) -> None:
    """Ticks where ratios lie of what stands in rows below one another."""
    left, right = axis.get_xlim()
    axis.xaxis.set_major_locator(FixedLocator([x for x in _RATIOS if left <= x <= right]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Of the ratio; the ratio alone where the episodes are too few for an interval."""
    return (row["ratio"],) * 2 if row["low"] is None else (row["low"], row["high"])


_RATIOS = (0.5, 0.64, 0.8, 1, 1.25, 1.6, 2)


def survival(
    responses: Table,
    highlighted: Sequence[str] = (),
    units: Mapping[str, str] = MappingProxyType({}),
    width: float = WIDTH,
) -> Figure:
    """The share of jobs that take longer than a time, one panel per task, both axes logarithmic: heavy tails are lines.

    Agents and `highlighted` rules are named; all others are drawn faintly behind them. Training seeds are averaged.
    `units` says in what units the times of a task are.
    """
    tasks = list(dict.fromkeys(row["task"] for row in responses))
    look = looks(responses)
    named = [name for name in look if look[name].weight > 2] + [name for name in highlighted if name in look]
    with setting():
        lines, columns = _grid(len(tasks), side_by_side=int(3 * width / WIDTH))
        figure = Figure(figsize=(width, 0.6 + 2.6 * lines))
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axis in axes[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes, tasks, strict=False):
            for name in sorted(look, key=named.__contains__):
                seeds = _distributions(responses, name, task)  # [S, 2, P]
                if not len(seeds):
                    continue
                share, response = seeds[0, 0], np.exp(np.log(seeds[:, 1]).mean(0))
                style = look[name]
                if name in named:
                    axis.plot(response, share, style.dashes, color=style.colour, linewidth=style.weight, label=name)
                else:
                    axis.plot(response, share, color=GRID, linewidth=0.8)
            axis.set_xscale("log")
            axis.set_yscale("log")
            _title(axis, task, int(11 * (width - 1.8) / columns))
            axis.set_xlabel(f"response time [{units.get(task, UNIT)}]")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        for axis in axes[::columns]:
            axis.set_ylabel("share of jobs that take longer")
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
        drawn = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        handles = [drawn[name] for name in named if name in drawn]
        if len(named) < len(look):
            handles += axes[0].plot([], [], color=GRID, linewidth=0.8, label="all others")
        if width == WIDTH:
            figure.legend(handles=handles, loc="outside right center")
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _distributions(responses: Table, name: str, task: str) -> Float[np.ndarray, "S two P"]:
    """Survival and response time, for each training seed of an agent."""
    mine = [row for row in responses if row["agent"] == name and row["task"] == task]
    seeds = dict.fromkeys(row["training_seed"] for row in mine)
    return np.array(
        [
            [[row[column] for row in mine if row["training_seed"] == seed] for column in ("survival", "response")]
            for seed in seeds
        ],
        float,
    )


_CURVES_TOP = 3.0
"""Learning curves are shown up to this multiple of the best rule."""


def learning_curves(
    curves: Table,
    rules: Mapping[str, float],
    x: Literal["step", "cpu_seconds"] = "step",
    y: str = "response",
    agents: Sequence[str] = (),
    width: float = WIDTH,
) -> Figure:
    """How a number (mean response time on the evaluation episodes) fell in training, one line per run.

    Arguments: `curves`, rows with the columns agent, training_seed, `x` and `y`; `rules`, the level that each classical
    rule reaches on the same episodes, drawn as a horizontal line; `agents`, all that the other pictures of a page show.
    """
    look = looks([{"agent": name, "role": "agent"} for name in (*agents, *(row["agent"] for row in curves))])
    with setting():
        figure = Figure(figsize=(width, 3.4))
        axis = figure.subplots()
        for run, agent in {(row["agent"], row["training_seed"]): str(row["agent"]) for row in curves}.items():
            points = [(row[x], row[y]) for row in curves if (row["agent"], row["training_seed"]) == run and row[x] > 0]
            style = look[agent]
            axis.plot(*np.array(points, float).T, color=style.colour, linewidth=1.3, alpha=0.85, label=agent)
        for level in rules.values():
            axis.axhline(level, color=GREY, linewidth=1, linestyle="--")
        axis.set_yscale("log")
        if x == "step":
            axis.set_xscale("log")
            low, high = axis.get_xlim()
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axis.xaxis.set_minor_formatter(NullFormatter())
        if rules:
            best = min(rules.values())
            lowest, highest = (limit([row[y] for row in curves]) for limit in (min, max))
            axis.set_ylim(0.95 * min(lowest, best), min(1.05 * highest, _CURVES_TOP * best))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axis.set_xlabel({"step": "environment steps", "cpu_seconds": "CPU seconds"}[x])
        axis.set_ylabel(f"mean response time [{UNIT}]")
        axis.margins(x=0.01)
        _label_lines(axis, rules)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(handles.values(), handles.keys(), loc="upper right")
    return figure


def return_curve(curve: Table, best: float | None = None, width: float = WIDTH) -> Figure:
    """How the mean return of a game rose in training; `curve` has the columns `step` and `evaluation/return`.

    Arguments: `best`, the highest return that is possible, drawn as a line.
    """
    with setting():
        figure = Figure(figsize=(width, 3.0))
        axis = figure.subplots()
        points = [(row["step"], row["evaluation/return"]) for row in curve]
        axis.plot(*np.array(points, float).reshape(-1, 2).T, color=BLUE, linewidth=1.6)
        if best is not None:
            axis.axhline(best, color=GREY, linewidth=1, linestyle="--")
            axis.annotate(
                "best possible",
                (1, best),
                (0, -3),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="top",
                textcoords="offset points",
                color=MUTED,
            )
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axis.set_xlabel("environment steps")
        axis.set_ylabel("mean return")
        axis.margins(x=0.01)
    return figure


def _label_lines(axis: Axes, levels: Mapping[str, float]) -> None:
    """Names at the right end of horizontal lines, pushed apart as little as possible where they would overlap."""
    names = sorted(levels, key=lambda name: levels[name])
    low, high = np.log(axis.get_ylim())
    apart = 0.06 * (high - low) * np.arange(len(names))
    wanted = np.log([levels[name] for name in names])
    placed = np.exp(isotonic_regression(wanted - apart).x + apart) if names else []
    for name, at in zip(names, placed, strict=True):
        axis.annotate(
            name,
            (1, levels[name]),
            (1.03, at),
            xycoords=axis.get_yaxis_transform(),
            textcoords=axis.get_yaxis_transform(),
            va="center",
            size=8,
            color=MUTED,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def fleet_over_time(
    episodes: Sequence[Watched], begin: float = 0.0, end: float | None = None, width: float = WIDTH
) -> Figure:
    """What happened inside the fleet: servers as rows, the fastest on top, bright where a job would have to wait long.

    Ticks are the jobs sent to a server, longer for larger ones; a hatched server has failed. Below, the load that
    arrived (bars) and that the workload has in the mean (line), as a share of what the fleet can do. Arguments: one or
    more policies on the same jobs; the stretch of time from `begin` to `end` (the last arrival).
    """
    arrival = np.array([row["arrival"] for row in episodes[0].jobs], float)
    end = float(arrival[-1]) if end is None else end
    time = np.linspace(begin, end, 1200)
    grids = [waits(watched, time) for watched in episodes]
    most = max(max(grid.max() for grid in grids), 1e-9)
    norm = LogNorm(most / 1000, most, clip=False)
    with setting():
        heights = [len(grids[0]) * 0.19] * len(episodes) + [1.0]
        figure = Figure(figsize=(width, sum(heights) + 0.45 * len(heights) + 0.3))
        figure.set_layout_engine("constrained", h_pad=0.08)
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for axis, watched, grid in zip(axes, episodes, grids, strict=False):
            image = _fleet_panel(axis, watched, grid, norm, begin, end, int(12 * (width - 1.3)))
        bar = figure.colorbar(image, ax=axes[:-1], pad=0.01, aspect=30, fraction=0.03)
        bar.set_label(f"wait of a new job [{UNIT}]")
        bar.outline.set_visible(False)
        _load_panel(axes[-1], episodes[0], begin, end)
        axes[-1].set_xlim(begin, end)
        axes[-1].set_xlabel(f"time [{UNIT}]")
        axes[-1].xaxis.set_major_formatter(FuncFormatter(_thousands))
    return figure


def _fleet_panel(
    axis: Axes,
    watched: Watched,
    wait: Float[np.ndarray, "N M"],
    norm: LogNorm,
    begin: float,
    end: float,
    room: int,
) -> AxesImage:
    speed = {row["server"]: row["speed"] for row in reversed(watched.servers)}  # at first
    order = sorted(speed, key=lambda server: -speed[server])
    place = {server: row for row, server in enumerate(order)}
    image = axis.imshow(
        wait[order],
        cmap=mpl.colormaps["inferno"].with_extremes(under="black", bad="black"),
        norm=norm,
        extent=(begin, end, len(order) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    axis.hlines(np.arange(1, len(order)) - 0.5, begin, end, color=MUTED, linewidth=0.4)
    for server, at, until in _failures(watched, end):
        axis.barh(place[server], until - at, 0.9, left=at, fill=False, hatch="/////", edgecolor=SKY, linewidth=0)

    jobs = [row for row in watched.jobs if begin <= row["arrival"] <= end]
    size = np.array([row["size"] for row in jobs])
    half = 0.08 + 0.37 * size.argsort().argsort() / len(size)
    row = np.array([place[job["server"]] for job in jobs])
    arrival = [job["arrival"] for job in jobs]
    axis.vlines(arrival, row - half, row + half, color="white", linewidth=0.5, alpha=0.5)

    response = np.array([row["response"] for row in watched.jobs])
    numbers = f"mean response {response.mean():,.4g}, slowest 1 % above {np.percentile(response, 99):,.4g}"
    title = f"{watched.jobs[0]['agent']} on {watched.jobs[0]['task']}: {numbers}"
    axis.set_title(textwrap.fill(title, room, break_on_hyphens=False))
    axis.set_yticks(range(len(order)), [f"{speed[n]:.3g}" for n in order], size=7)
    axis.set_ylabel("speed\n[work / time]")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def _failures(watched: Watched, end: float) -> list[tuple[int, float, float]]:
    """Which servers stood still, from when until when."""
    found = []
    for server in dict.fromkeys(row["server"] for row in watched.servers):
        mine = [row for row in watched.servers if row["server"] == server]
        until = [*(row["time"] for row in mine[1:]), end]
        found += [(server, row["time"], t) for row, t in zip(mine, until, strict=True) if row["speed"] == 0]
    return found


def _load_panel(axis: Axes, watched: Watched, begin: float, end: float) -> None:
    arrival, size, level = (
        np.array([row[name] for row in watched.jobs], float) for name in ("arrival", "size", "level")
    )
    fleet = sum(row["speed"] for row in watched.servers if row["time"] == 0)
    edges = np.linspace(begin, end, 61)
    work, _ = np.histogram(arrival, edges, weights=size)
    axis.stairs(work / np.diff(edges) / fleet, edges, fill=True, color=SILVER)
    axis.step(arrival, level, where="post", color=INK, linewidth=1.2)
    axis.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axis.set_ylim(0, min(axis.get_ylim()[1], 4))
    axis.set_ylabel("load\n[of capacity]")
    axis.grid(axis="x", visible=False)


def _title(axis: Axes, text: str, room: int) -> None:
    """A title in lines of `room` letters, or of smaller ones where a name is longer: names do not break."""
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    axis.set_title("\n".join(lines), size=10 * min(1.0, room / max(map(len, lines))))


def _grid(panels: int, side_by_side: int) -> tuple[int, int]:
    """Lines and columns, as even as may be."""
    lines = math.ceil(panels / side_by_side)
    return lines, math.ceil(panels / lines)


def _place(task: str, level: float | None, levels: bool) -> str:
    if level is None:
        return f"{task}, all of it" if levels else str(task)
    return f"{task}, load {level:g}"


def _emphasise(label: Text, look: Look) -> None:
    judged = look.weight > 2
    label.set_color(look.colour if judged else MUTED)
    label.set_fontweight("bold" if judged else "normal")


def _thousands(value: float, _: int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
