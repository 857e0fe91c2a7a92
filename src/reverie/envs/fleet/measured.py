"""Measured speeds of real machines: a prior for fleets whose servers differ and drift.

What lives here reads a recording and draws from it, in NumPy on the host; the schedules that the simulator follows are
built elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from reverie.envs.fleet.records import Records, TraceError, delimiter_of, read_lines, split_csv, stem

OUTAGE_HOURS = 24.0
"""A machine that was not measured for longer than this was away; no path is drawn across the gap."""


@dataclass(frozen=True)
class MeasuredSpeeds:
    """M measurements of the speed of virtual machines, machine by machine in order of time."""

    name: str
    """What reports call it."""
    machine: Int64[np.ndarray, " M"]
    """Which machine was measured, 0 to `num_machines` - 1."""
    hours: Float64[np.ndarray, " M"]
    """Hours since the first measurement of the same machine."""
    speed: Float64[np.ndarray, " M"]
    """Speed over the median of the recording: 1 is an ordinary machine at an ordinary time."""

    @property
    def num_machines(self) -> int:
        """How many machines were measured."""
        return int(self.machine[-1]) + 1


def read_speeds(path: str | Path) -> MeasuredSpeeds:
    """Read a file of Azure's VM noise dataset of 2024 (Freischuetz et al., TUNA, EuroSys 2025), plain or packed.

    It is CSV with the columns value (work per time, higher is faster), starttime (ISO 8601) and VM_id; others are
    ignored, and lines may come in any order. The `short` files hold many machines measured once, fit for
    `draw_fleet`; the `long` ones a few machines measured for a year, fit for `speed_paths`.

    Raises:
        TraceError: the file is not there, not readable, lacks a column, or has broken lines.
    """
    path = Path(path)
    (_, header), *lines = read_lines(path)
    mark = delimiter_of(header)
    records = Records.from_csv(path, split_csv(header, mark), lines, ("VM_id", "starttime", "value"), mark)
    vm, (seconds, _), value = records.texts("VM_id"), records.times("starttime"), records.numbers("value")
    records.complain(value == 0, "value is 0: a machine that does no work has no speed")
    records.check()
    _, machine = np.unique(vm, return_inverse=True)
    order = np.lexsort((seconds, machine))
    machine, hours, speed = machine[order], seconds[order] / 3600, (value / np.median(value))[order]
    first = np.searchsorted(machine, machine)  # of the measurements of the same machine
    return MeasuredSpeeds(stem(path), machine, hours - hours[first], speed)


def draw_fleet(measured: MeasuredSpeeds, num_servers: int, rng: np.random.Generator) -> Float64[np.ndarray, " N"]:
    """Draw the speeds of N different machines, each at one of the times at which it was measured.

    Args:
        num_servers: N, at most the number of machines.

    Raises:
        TraceError: N is below 1 or above the number of machines.
    """
    if not 1 <= num_servers <= measured.num_machines:
        raise TraceError(
            f"num_servers is {num_servers}: expected 1 to {measured.num_machines}, the number of machines in "
            f"{measured.name} (the `short` files of the dataset hold thousands)"
        )
    machines = rng.choice(measured.num_machines, num_servers, replace=False)
    first, last = (np.searchsorted(measured.machine, machines, side) for side in ("left", "right"))
    return measured.speed[rng.integers(first, last)]


def speed_paths(
    measured: MeasuredSpeeds, num_servers: int, segments: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "N P"], Float64[np.ndarray, "N P"]]:
    """Draw how the speeds of N servers drift: each repeats a random stretch of a random machine's history.

    A stretch is P measurements in a row without an outage; each holds until the next. Servers may share a machine.

    Args:
        num_servers: N.
        segments: P, the measurements of a stretch.

    Returns:
        start [N, P] in hours, rising from 0 in each row, and the value [N, P] that holds from then on.

    Raises:
        TraceError: N or P is below 1, or no machine was measured P times without an outage.
    """
    for name, count in (("num_servers", num_servers), ("segments", segments)):
        if count < 1:
            raise TraceError(f"{name} is {count}: expected at least 1")
    breaks = (np.diff(measured.machine) > 0) | (np.diff(measured.hours) > OUTAGE_HOURS)
    run = np.concatenate([[0], np.cumsum(breaks)])  # [M] number of the unbroken run that holds each measurement
    ends = run[segments - 1 :]
    begins = np.flatnonzero(run[: len(ends)] == ends)  # of the stretches of P measurements within one run
    if len(begins) == 0:
        raise TraceError(
            f"segments is {segments}: the longest stretch without an outage of {OUTAGE_HOURS:g} h in {measured.name} "
            f"has {np.bincount(run).max()} measurements (the `long` files of the dataset hold thousands)"
        )
    machine = measured.machine[begins]
    begin = [rng.choice(begins[machine == m]) for m in rng.choice(np.unique(machine), num_servers)]
    rows = np.array(begin)[:, None] + np.arange(segments)  # [N, P]
    return measured.hours[rows] - measured.hours[rows[:, :1]], measured.speed[rows]
