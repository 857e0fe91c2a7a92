"""One episode of one policy, job by job: the tables from which a picture of the fleet over time is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from reverie.envs.fleet.env import Task
from reverie.evaluate.capacity import load_at, speeds
from reverie.evaluate.contestants import Contestant, key_of
from reverie.evaluate.trials import play
from reverie.tables import Row


class Watched(NamedTuple):
    """An episode as two tidy tables."""

    jobs: Sequence[Mapping[str, Any]]
    """One row per job in order of arrival: agent, task, job (its number), arrival and response (time units), size (work
    units), server, level (the offered load when it arrived). What it found at any server is what the jobs before it
    left: a server is busy until the largest arrival + response among its jobs so far."""
    servers: Sequence[Mapping[str, Any]]
    """One row per server and change of speed: agent, task, server, time, speed (work per time unit, from then on)."""


def watch(contestant: Contestant, task: Task, name: str, key: Key[Array, ""], jobs: int) -> Watched:
    """Play one episode of `jobs` jobs and keep all of it.

    Arguments: one `task` without batch axis and its `name`; two contestants watched with one key meet the same jobs.
    """
    episode = play([contestant], jax.tree.map(lambda leaf: leaf[None, None], task), key_of(key, name), jobs)[0]
    who: Row = {"agent": contestant.name, "task": name}
    server, size, arrival, response = (column[0, :, 0] for column in episode)
    columns = {"job": np.arange(jobs), "arrival": arrival, "response": response, "size": size, "server": server}
    columns["level"] = load_at(task, arrival)
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [who | dict(zip(columns, row, strict=True)) for row in values]
    start, speed = speeds(task, float((arrival + response).max()))
    changed = np.diff(speed, axis=0, prepend=-1.0) != 0  # [M, N]
    return Watched(
        rows,
        [
            who | {"server": int(n), "time": float(start[m]), "speed": float(speed[m, n])}
            for m, n in np.argwhere(changed & np.asarray(task.mask))
        ],
    )


def waits(watched: Watched, time: Float[np.ndarray, " M"]) -> Float[np.ndarray, "N M"]:
    """How long a job that came at each time would wait at each server: its backlog, in time units.

    Servers are first come, first served, so that is the time until the last job sent to one so far is finished.
    """
    servers = 1 + max(row["server"] for row in watched.servers)
    arrival, response, server = (
        np.array([row[name] for row in watched.jobs]) for name in ("arrival", "response", "server")
    )
    free = np.zeros((servers, len(time)))
    for n in range(servers):
        mine = server == n
        last = np.searchsorted(arrival[mine], time, side="right")
        free[n] = np.concatenate([[0.0], (arrival + response)[mine]])[last]
    return np.maximum(free - time, 0)
