"""The picture of a trace: when its jobs arrive, how bursty they are and how large.

Drawing only; the numbers come from `reverie.envs.fleet.traces`.
"""

import math
import textwrap

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from reverie.colours import BLUE, GRID, INK, MUTED, ORANGE
from reverie.envs.fleet.traces import Tenths, Trace, TraceSummary, tenths
from reverie.report.style import as_text

WIDTH, _HEAD = 8.8, 0.9
"""Inches of a figure, and of what stands above its panels."""
_DATA, _REFERENCE = BLUE, ORANGE
_WINDOWS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Seconds that one point of the arrival curve may stand for."""
_POINTS = 360
"""At most so many points are on it, and at least so many jobs in a point:"""
_JOBS_PER_POINT = 5


def draw_trace(trace: Trace, summary: TraceSummary, width: float = WIDTH) -> Figure:
    """Draw arrivals over time, the gaps between them and the sizes, beside Poisson arrivals and exponential sizes.

    Args:
        trace: what is drawn.
        summary: `describe(trace)`, for the numbers beside the curves.
        width: of the figure in inches; panels stand below one another on a narrow one.

    Returns:
        A figure that belongs to no window: save it with `savefig`.
    """
    course = tenths(trace)
    narrow = width < WIDTH
    heights = {"a": 1.6 if narrow else 1.0} | ({} if course is None else {"l": 0.7})
    heights |= {"g": 1.25, "s": 1.25} if narrow else {"gs": 1.25}
    height = 3 + 1.6 * sum(heights.values())
    layout = ConstrainedLayoutEngine(
        rect=(0, 0, 1, 1 - _HEAD / height), w_pad=0.12, h_pad=0.1, hspace=0.06, wspace=0.06
    )
    figure = Figure(figsize=(width, height), layout=layout, facecolor="none")
    axes = figure.subplot_mosaic(
        [list(row if narrow or len(row) == 2 else 2 * row) for row in heights], height_ratios=list(heights.values())
    )
    _arrivals(axes["a"], trace, summary, "\n" if narrow else "     ")
    if course is not None:
        _load(axes["l"], course, trace.span)
    _gaps(axes["g"], trace, summary)
    _sizes(axes["s"], trace, summary)
    said = (
        f"{summary.count:,} jobs in {_duration(summary.span)}, {_number(summary.rate)} per second; "
        f"they keep {_number(summary.work_rate)} servers of speed 1 busy"
    )
    x, y = 0.15 / width, 1 - 0.06 / height
    figure.text(x, y, trace.name, fontsize=13, fontweight="bold", color=INK, va="top", parse_math=False)
    said = textwrap.fill(said, int(12 * width))
    figure.text(x, y - 0.25 / height, said, fontsize=10, color=INK, va="top")
    figure.legend(
        *axes["g"].get_legend_handles_labels(),
        loc="lower left" if narrow else "upper right",
        bbox_to_anchor=(0.02, 1 - _HEAD / height) if narrow else (0.99, 1),
        ncols=2,
        reverse=True,
        frameon=False,
        fontsize=7 if narrow else 9,
        labelcolor=INK,
        borderaxespad=0,
        columnspacing=1,
    )
    as_text(figure)
    return figure


def _arrivals(ax: Axes, trace: Trace, summary: TraceSummary, between: str) -> None:
    points = min(_POINTS, max(1, summary.count // _JOBS_PER_POINT))
    window = next((w for w in _WINDOWS if trace.span / w <= points), trace.span / points)
    windows = max(1, int(trace.span // window))  # the last one is cut off and would look like a lull
    counts, edges = np.histogram(trace.arrival, windows, (0.0, windows * window))
    unit, seconds = _time_unit(trace.span)
    rate, deviation = counts / window, math.sqrt(summary.rate / window)
    _style(ax, f"Arrivals per second, in windows of {_duration(window)}", unit)
    ax.axhspan(max(0.0, summary.rate - 2 * deviation), summary.rate + 2 * deviation, color=_REFERENCE, alpha=0.18, lw=0)
    ax.axhline(summary.rate, color=_REFERENCE, lw=1)
    ax.stairs(rate, edges / seconds, color=_DATA, fill=True, alpha=0.15)
    ax.stairs(rate, edges / seconds, color=_DATA, lw=1.1)
    ax.set(
        xlim=(0, edges[-1] / seconds),
        ylim=(0, (1.9 if "\n" in between else 1.35) * max(rate.max(), summary.rate + 2 * deviation)),
    )
    dispersions = (summary.dispersion_1s, summary.dispersion_10s, summary.dispersion_60s)
    notes = [
        "shaded: 95 % of windows, if Poisson (dispersion 1)",
        f"dispersion at 1, 10, 60 s: {', '.join(map(_number, dispersions))}",
        f"busiest minute over mean: {_number(summary.peak_to_mean)}",
    ]
    ax.text(0.008, 0.96, between.join(notes), transform=ax.transAxes, va="top", fontsize=9, color=INK, in_layout=False)


def _load(ax: Axes, course: Tenths, span: float) -> None:
    unit, seconds = _time_unit(span)
    load = np.minimum(
        course.load, 10 * course.load[np.isfinite(course.load)].max()
    )  # a tenth that arrives at once has no bounds
    _style(ax, "Load in tenths of the jobs over the whole's", unit)
    ax.stairs(load, course.edges / seconds, color=_DATA, fill=True, alpha=0.15)
    ax.stairs(load, course.edges / seconds, color=_DATA, lw=1.1)
    ax.axhline(1.0, color=_REFERENCE, lw=1)
    ax.set(xlim=(0, span / seconds), ylim=(0, 1.35 * max(1.0, load.max())))
    if course.unsteady:
        said = "not steady: one load for the whole is true of few jobs"
        ax.text(0.008, 0.94, said, transform=ax.transAxes, va="top", fontsize=9, color=INK, in_layout=False)


def _gaps(ax: Axes, trace: Trace, summary: TraceSummary) -> None:
    _style(ax, "Share of gaps longer than", "seconds")
    gaps = np.diff(trace.arrival)
    _survival(ax, gaps, float(gaps.mean()))
    _notes(
        ax,
        f"CV {_number(summary.gap_cv)} (Poisson: 1)",
        f"correlation with the next gap {_number(summary.gap_autocorrelation)}",
    )


def _sizes(ax: Axes, trace: Trace, summary: TraceSummary) -> None:
    _style(ax, "Share of jobs larger than", "work units (seconds on a server of speed 1)")
    _survival(ax, trace.work, summary.size_mean)
    _notes(
        ax,
        f"mean {_number(summary.size_mean)}, CV {_number(summary.size_cv)}",
        f"median {_number(summary.size_p50)}, p99 {_number(summary.size_p99)}, largest {_number(summary.size_max)}",
        f"tail index {_number(summary.size_tail_index)}",
        f"largest 1 % bring {100 * summary.size_top_share:.3g} % of the work",
    )


def _survival(ax: Axes, values: Float64[np.ndarray, " K"], mean: float) -> None:
    """The share of values above x on logarithmic axes, beside an exponential distribution of the same mean."""
    positive = np.sort(values[values > 0])
    rank = np.unique(np.geomspace(1, len(positive), 1000).astype(int))  # enough points for any number of values
    low, high = max(min(positive[0], mean / 10), mean / 1000), max(positive[-1], 3 * mean)
    x = np.geomspace(low, high, 200)
    ax.plot(x, np.exp(-x / mean), color=_REFERENCE, lw=1.4, label="Poisson arrivals, exponential sizes")
    at_least = np.concatenate([positive[-rank], [low]]), np.concatenate([rank, [len(positive)]]) / len(values)
    ax.step(*at_least, where="post", color=_DATA, lw=1.8, label="this trace")
    ax.set(xscale="log", yscale="log", xlim=(low, 1.15 * high), ylim=(0.5 / len(values), 1.6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    ax.minorticks_off()


def _style(ax: Axes, title: str, xlabel: str) -> None:
    ax.set_facecolor("none")
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(xlabel, fontsize=9.5, color=MUTED)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GRID)
    ax.tick_params(color=GRID, labelcolor=MUTED, labelsize=9)
    ax.grid(color=GRID, lw=0.7)
    ax.set_axisbelow(True)


def _notes(ax: Axes, *lines: str) -> None:
    """Lines in the lower left corner, where a survival curve never is."""
    ax.text(0.03, 0.04, "\n".join(lines), transform=ax.transAxes, fontsize=9, color=INK, linespacing=1.5)


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3g}"


def _time_unit(span: float) -> tuple[str, float]:
    for name, seconds in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if span >= 3 * seconds:
            return name, seconds
    return "seconds", 1.0


def _duration(span: float) -> str:
    unit, seconds = _time_unit(span)
    return f"{span / seconds:.3g} {unit}"
