"""Pictures of an agent that learns many tasks: how well it does in each, over training; and of a mixture, which experts
its tasks use, how alike they are to it, and what it foretells of each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREY, INK, MUTED, SKY, setting

Table = Sequence[Mapping[str, Any]]


def scores_over_training(curve: Table, names: Sequence[str], width: float = WIDTH) -> Figure:
    """The score of each task at each evaluation, as a field of shades from 0 (random choice) to 1 (the best rule).

    Arguments: `curve`, lines of metrics with `step` and `evaluation/score/NAME`.
    """
    scores = np.array([[line[f"evaluation/score/{name}"] for line in curve] for name in names], float)
    with setting():
        figure = Figure(figsize=(width, 1.0 + 0.24 * len(names)))
        axis = figure.subplots()
        shown = axis.imshow(np.clip(scores, 0, 1), vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
        for (row, column), score in np.ndenumerate(scores):
            colour = "white" if score > 0.6 else INK
            axis.text(column, row, f"{score:.2f}", ha="center", va="center", size=6.5, color=colour)
        axis.set_yticks(range(len(names)), list(names))
        axis.set_xticks(range(len(curve)), [f"{line['step'] / 1000:,.0f}" for line in curve])
        axis.set_xlabel("thousand environment steps")
        axis.grid(visible=False)
        figure.colorbar(shown, ax=axis, label="score", format=FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


def experts_over_training(
    use: Float[np.ndarray, "L K E"], steps: Sequence[int], names: Sequence[str], width: float = WIDTH
) -> Figure:
    """A field for each expert: the share of each task's steps that pass it, from none (white) to all (dark).

    Arguments: `use`, at each of L lines of metrics, logged at `steps`; NaN, where no step was replayed, is grey.
    """
    bins = np.array_split(np.arange(len(use)), min(len(use), 60))
    shares = np.stack([np.mean(use[lines], 0) for lines in bins])
    experts, across = use.shape[-1], max(1, int(4 * width / WIDTH))
    lines = math.ceil(experts / across)
    with setting():
        figure = Figure(figsize=(width, 0.7 + lines * (0.4 + 0.17 * len(names))))
        axes = figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False)
        ends = steps[0] / 1000, steps[-1] / 1000
        for expert, axis in enumerate(axes.ravel()):
            if expert >= experts:
                axis.set_visible(False)
                continue
            axis.set_facecolor(GREY)
            extent = (*ends, len(names) - 0.5, -0.5)
            field = shares[:, :, expert].T
            shown = axis.imshow(
                field, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest", extent=extent
            )
            axis.set_title(f"expert {expert + 1}")
            axis.set_yticks(range(len(names)), list(names), size=7)
            axis.xaxis.set_major_locator(MaxNLocator(3))
            axis.grid(visible=False)
        figure.supxlabel("thousand environment steps", size=9)
        figure.colorbar(shown, ax=axes, label="share of steps", aspect=40)
    return figure


def router_entropy(curve: Table, experts: int, width: float = WIDTH) -> Figure:
    """How undecided the router is over training; dashed is the most, all experts alike.

    Arguments: `curve`, lines of metrics with `step` and `model/router_entropy`.
    """
    with setting():
        figure = Figure(figsize=(width, 2.2))
        axis = figure.subplots()
        steps = [line["step"] / 1000 for line in curve]
        axis.plot(steps, [line["model/router_entropy"] for line in curve], color=BLUE)
        axis.axhline(math.log(experts), color=MUTED, linestyle="--", linewidth=1)
        axis.set_ylim(0, 1.1 * math.log(experts))
        axis.set_xlabel("thousand environment steps")
        axis.set_ylabel("entropy [nats]")
    return figure


def likeness(rows: Table, width: float = WIDTH) -> Figure:
    """The cosine of the embeddings of each two tasks.

    Arguments: `rows`, one for each task, which have a column of its name for each.
    """
    names = [str(row["task"]) for row in rows]
    cosines = np.array([[row[name] for name in names] for row in rows], float)
    with setting():
        figure = Figure(figsize=(width, min(width, 1.6 + 0.32 * len(names))))
        axis = figure.subplots()
        shown = axis.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu", interpolation="nearest")
        axis.set_xticks(range(len(names)), names, rotation=90, size=8)
        axis.set_yticks(range(len(names)), names, size=8)
        axis.grid(visible=False)
        figure.colorbar(shown, ax=axis, label="cosine")
    return figure


def dreams_and_truth(rows: Table, marked: Sequence[int], width: float = WIDTH) -> Figure:
    """The work that waits in a fleet, as it was and as it was dreamt, one panel for each task.

    Arguments: `rows`, of `evaluate/dreams.py`; `marked`, steps ahead at which a line stands.
    """
    names = list(dict.fromkeys(str(row["task"]) for row in rows))
    across = max(1, int(4 * width / WIDTH))
    lines = math.ceil(len(names) / across)
    with setting():
        figure = Figure(figsize=(width, 0.5 + 1.6 * lines))
        axes = figure.subplots(lines, across, sharex=True, squeeze=False).ravel()
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes, names, strict=False):
            columns = ("ahead", "truth", "mean", "low", "high")
            ahead, truth, mean, low, high = (
                np.array([row[column] for row in rows if row["task"] == name], float) for column in columns
            )
            axis.fill_between(ahead, low, high, color=SKY, alpha=0.35, linewidth=0)
            axis.plot(ahead, mean, color=BLUE, label="dreams")
            axis.plot(ahead, truth, color=INK, linewidth=1.2, label="truth")
            for step in marked:
                axis.axvline(step, color=MUTED, linewidth=0.8, linestyle=":")
            axis.set_title(name, size=9)
            axis.set_xticks([1, *marked])
            axis.set_ylim(bottom=0)
        axes[0].legend(fontsize=7, loc="upper left")
        figure.supxlabel("jobs ahead", size=9)
        figure.supylabel("work that waits", size=9)
    return figure
