"""A task over a stretch of time, on the host in float64: the speeds of its servers and the load that it offers.

Lower bounds, levels and pictures start from these; the simulator has its own exact integrals.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import Task
from reverie.envs.fleet.load import offered_load
from reverie.envs.fleet.schedule import Schedule


class Speeds(NamedTuple):
    """`speed[m]` of all servers from `start[m]` to `start[m + 1]`, the last one from then on."""

    start: Float[np.ndarray, " M"]
    speed: Float[np.ndarray, "M N"]
    """Work per time unit; 0 for a failed server and for padding."""


def speeds(task: Task, until: float) -> Speeds:
    """The speeds of all servers of one task from time 0 to `until`, in pieces within which none of them changes."""
    servers = [Schedule(*leaves) for leaves in zip(*task.speed, strict=True)]
    start = np.unique(np.concatenate([_unrolled(s, until)[0] for s in servers]))
    start = start[start <= until]
    return Speeds(start, np.stack([_at(s, start) for s in servers], -1) * np.asarray(task.mask))


def load_at(task: Task, time: Float[np.ndarray, " J"]) -> Float[np.ndarray, " J"]:
    """The offered load of one task at each time: of arrivals and sizes then, on the fleet's speed in the long run.

    Rounded to three places, so that it can name a level.
    """
    task = jax.tree.map(np.asarray, task)
    load = np.full(len(time), offered_load(task))
    for changing in (task.workload.rate, task.workload.scale):
        load *= _at(changing, time) / schedules.mean(changing)
    return np.round(load, 3)


def changes(task: Task, until: float) -> Float[np.ndarray, " C"]:
    """When, after time 0 and up to `until`, the offered load or the speed of a server of one task changes."""
    task = jax.tree.map(np.asarray, task)
    servers = [Schedule(*leaves) for leaves in zip(*task.speed, strict=True)]
    found = [_changes(s, until) for s in (*servers, task.workload.rate, task.workload.scale)]
    return np.unique(np.concatenate(found))


def _changes(s: Schedule, until: float) -> Float[np.ndarray, " C"]:
    start, value = _unrolled(s, until)
    lasts = np.append(np.diff(start) > 0, True)  # the others are padding
    start, value = start[lasts], value[lasts]
    changed = start[1:][np.diff(value) != 0]
    return changed[changed <= until]


def _at(s: Schedule, time: Float[np.ndarray, " J"]) -> Float[np.ndarray, " J"]:
    start, value = _unrolled(s, float(time.max()))
    return value[np.searchsorted(start, time, side="right") - 1]


def _unrolled(s: Schedule, until: float) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """The segments of a schedule, repeated up to `until` where it repeats."""
    start, value, period = (np.asarray(leaf, float) for leaf in s)
    if np.isinf(period):
        return start, value
    rounds = int(until // period) + 1
    return (np.arange(rounds)[:, None] * period + start).ravel(), np.tile(value, rounds)
