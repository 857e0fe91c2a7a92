"""Pictures of an agent that learns many tasks: how well it does in each, over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from reverie.report.figures import WIDTH
from reverie.report.style import INK, setting

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
