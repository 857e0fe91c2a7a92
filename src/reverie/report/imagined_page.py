"""What a MetaDreamer takes tasks for, which ones it imagines, and how its model has things go on: two sections."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from reverie.evaluate.imagined import EPISODES, STEPS
from reverie.evaluate.players import CODES, FORETOLD
from reverie.report.figures import WIDTH, Table
from reverie.report.page import Picture, Section
from reverie.report.style import BLUE, INK, MUTED, setting
from reverie.report.tables import TextTable
from reverie.report.words import number
from reverie.runs.folder import RunFolder
from reverie.tables import read_csv

AHEAD = (1, 5, 10, STEPS)
"""Steps at which errors are told."""
NUMBERS = 3
"""Of an observation, that are drawn: those that the model misses by most."""


def imagined_sections(run: RunFolder) -> list[Section]:
    """Of a run that was evaluated."""
    codes, foretold = (read_csv(run.tables / name) for name in (CODES, FORETOLD))
    last = run.metrics()[-1]
    factors = [name.removeprefix("z/") for name in codes[0] if name.startswith("z/") and name != "z/other"]
    explained = {name: last[f"explained/{name}"] for name in factors}
    told = "; ".join(f"{name} {share:.2f}" for name, share in explained.items())
    placed = (
        "Where tasks lie: one dot for each that was not learned from, by what one context says of it, coloured by the "
        "factor; rings are the known tasks, crosses imagined ones. Across is the number of z that the factor was found "
        "in, by the networks after the last update (returns are of their running average). "
        f"How much of a factor that number explains over known tasks (R²): {told}."
    )
    went = (
        "How what is seen goes on in three known tasks, in the world (line) and in the model, which was told the "
        "task's code and foretells from its own words alone (dashes): the same actions, drawn evenly. Of all numbers "
        "those that the model misses by most."
    )
    return [
        Section("Tasks", pictures=[Picture(partial(codes_of_tasks, codes, factors), placed)]),
        Section("Foretelling", pictures=[Picture(partial(world_and_model, foretold), went)], tables=[errors(foretold)]),
    ]


def errors(rows: Table) -> TextTable:
    """How far the model is off, told the code of a task and told nothing.

    Arguments: `rows`, of `evaluate/imagined.py`.
    """
    at = {(str(row["task"]), int(row["ahead"])): row for row in rows}
    lines = []
    for task in dict.fromkeys(task for task, _ in at):
        each = [at.get((task, ahead)) for ahead in AHEAD]
        lines.append([task, *(number(row[how]) if row else "" for row in each for how in ("error", "unknowing"))])
    return TextTable(
        title="How far the model is off",
        columns=["task", *(f"{how}, {ahead}" for ahead in AHEAD for how in ("told z", "told nothing"))],
        rows=lines,
        caption=f"Root mean square error of all numbers of an observation, {', '.join(map(str, AHEAD))} steps ahead, "
        f"over {EPISODES} episodes: told the code of the task, and told z = 0. Empty where the episode that is drawn "
        "had ended.",
        emphasis=["agent"] * len(lines),
    )


def codes_of_tasks(rows: Table, factors: Sequence[str], width: float = WIDTH) -> Figure:
    """A panel for each factor: over the number of z that it is in, beside that of the next one, or another.

    Arguments: `rows`, of `evaluate/imagined.py`.
    """
    across = min(len(factors), max(1, int(2 * width / WIDTH)))
    lines = -(-len(factors) // across)
    of = {kind: [row for row in rows if row["tasks"] == kind] for kind in ("known", "imagined")}
    new = [row for row in rows if row["tasks"] not in of]
    others = [*(f"z/{name}" for name in factors[1:]), "z/other" if "z/other" in rows[0] else f"z/{factors[0]}"]
    with setting():
        figure = Figure(figsize=(min(width, 4.4 * across), 0.4 + 3.0 * lines))
        axes = figure.subplots(lines, across, squeeze=False).ravel()
        for axis in axes[len(factors) :]:
            axis.set_visible(False)
        for axis, name, other in zip(axes, factors, others, strict=False):
            x, y, shade = (np.array([row[column] for row in new], float) for column in (f"z/{name}", other, name))
            dots = axis.scatter(x, y, c=shade, s=7, cmap="viridis", linewidth=0)
            figure.colorbar(dots, ax=axis, label=name)
            for kind, mark, colour in (("imagined", "x", MUTED), ("known", "o", INK)):
                places = [(row[f"z/{name}"], row[other]) for row in of[kind]]
                marks = np.array(places, float).reshape(-1, 2).T
                axis.plot(*marks, mark, color=colour, markersize=5, markerfacecolor="none", linewidth=0)
            axis.set_xlabel(f"z of {name}")
            axis.set_ylabel("another number of z" if other == "z/other" else f"z of {other.removeprefix('z/')}")
    return figure


def world_and_model(rows: Table, width: float = WIDTH) -> Figure:
    """A column for each task, a line for each of the numbers that the model misses by most.

    Arguments: `rows`, of `evaluate/imagined.py`.
    """
    tasks, names = (list(dict.fromkeys(str(row[column]) for row in rows)) for column in ("task", "number"))
    came = {(task, name): [] for task in tasks for name in names}
    for row in rows:
        came[str(row["task"]), str(row["number"])].append((row["ahead"], row["came"], row["foretold"]))
    missed = {name: max(abs(was - said) for task in tasks for _, was, said in came[task, name]) for name in names}
    shown = sorted(sorted(names, key=lambda name: -missed[name])[:NUMBERS], key=names.index)
    with setting():
        figure = Figure(figsize=(width, 0.5 + 1.5 * len(shown)))
        axes = figure.subplots(len(shown), len(tasks), sharex=True, sharey="row", squeeze=False)
        for line, name in zip(axes, shown, strict=True):
            line[0].set_ylabel(name, size=8)
            for axis, task in zip(line, tasks, strict=True):
                ahead, real, foretold = np.array(came[task, name], float).T
                axis.plot(ahead, real, color=INK, linewidth=1.2, label="world")
                axis.plot(ahead, foretold, "--", color=BLUE, label="model")
        for axis, task in zip(axes[0], tasks, strict=True):
            axis.set_title(task.replace(", ", "\n"), size=8)
        axes[0, 0].legend(fontsize=7)
        figure.supxlabel("steps ahead", size=9)
    return figure
