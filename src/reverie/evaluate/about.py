"""What an examination is about, in a few lines that stand above its numbers: jobs, fleet, clock, and what is seen."""

import numpy as np
from jaxtyping import Float

from reverie.envs.fleet.families import PARK_SPEEDS, Load, at_load
from reverie.envs.fleet.traces import Trace, tenths
from reverie.envs.fleet.views import VIEWS, View
from reverie.evaluate.statistics import EPISODES_FOR_A_CLAIM, WINDOWS_FOR_A_CLAIM


def about_view(view: View) -> str:
    """What agents and rules are told."""
    return f"seen ({view}): {VIEWS[view].seen}"


def about_trace(
    trace: Trace,
    load: Load,
    jobs: int,
    windows: int,
    per_window: bool = False,
    speeds: Float[np.ndarray, " N"] = PARK_SPEEDS,
) -> tuple[str, ...]:
    """How so many disjoint windows of `jobs` jobs of a trace are played on servers of these speeds, line by line.

    Errors: those of `traced`.
    """
    course = tenths(trace)
    total, rate = float(np.sum(speeds)), float(trace.work.sum() / trace.span)
    left_out = "".join(f"; {what}: {said}" for what, said in trace.provenance if "lines" in what or what == "stretch")
    fleet = "Park's ten servers" if np.array_equal(speeds, PARK_SPEEDS) else f"{len(speeds)} servers"
    lines = [
        f"jobs: {len(trace.work):,} of {trace.name} in {trace.span:,.4g} s; as recorded they keep {rate:.3g} servers "
        f"of speed 1 busy{left_out}",
        f"fleet: {fleet}, of speed {np.min(speeds):.3g} to {np.max(speeds):.3g}, {total:.3g} together",
        f"clock: {_clock(trace, load, per_window, total)}",
    ]
    few = "" if windows >= WINDOWS_FOR_A_CLAIM else f": fewer than {WINDOWS_FOR_A_CLAIM}, too few to claim anything"
    several = "windows" if windows != 1 else "window"
    lines.append(f"episodes: {windows:,} {several} of {jobs:,} jobs that do not overlap{few}")
    unsteady = course is not None and course.unsteady and not per_window
    return (*lines, f"warning: {course.warning()}") if unsteady else tuple(lines)


def about_episodes(count: int) -> tuple[str, ...]:
    """Whether so many episodes of a trial are too few: nothing where they are enough."""
    enough = EPISODES_FOR_A_CLAIM
    few = f"--episodes {count}: fewer than {enough} of each trial, too few to claim anything"
    return () if count >= enough else (few,)


def _clock(trace: Trace, load: Load, per_window: bool, total: float) -> str:
    recorded = float(trace.work.sum() / (trace.span * total))
    if per_window:
        return f"another pace in each window, so that its load is {load:g}"
    if load == "recorded":
        return f"as recorded, which is load {recorded:.3g} on this fleet"
    pace = trace.span / at_load(trace, load, total).span
    what = f"{pace:.3g} times as fast as" if pace >= 1 else f"{1 / pace:.3g} times slower than"
    return f"{what} recorded, for load {load:g} (--load recorded keeps it, which is load {recorded:.3g} on this fleet)"
