"""The classical rules as opponents on given tasks, told what the operator of such a fleet would know.

That is the speed of each server on average over the tasks and over time, and a sample of job sizes. A rule that needs
neither sees the truth through its view.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import Task, View
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.sharing import most
from reverie.envs.fleet.workload import sample_size
from reverie.evaluate.trials import Contestant, contenders
from reverie.policies.rules import rules

_SAMPLED_TASKS, _SAMPLED_SIZES = 64, 2000


def opponents(tasks: Task, view: View, names: Iterable[str] | None = None) -> list[Contestant]:
    """The rules, all of them or those named, as contestants beside agents that see `view`.

    Arguments: `tasks`, leaves [E, ...].
    Errors: ValueError for an unknown name.
    """
    alone = tasks.others is None and tasks.sharing is None
    return contenders(rules(nominal_speeds(tasks), typical_sizes(tasks), names), view, alone)


def nominal_speeds(tasks: Task) -> Float[np.ndarray, " N"]:
    """The speed of each server in the long run, all slots taken, on average over tasks [E, ...]; 0 for padding."""
    per_server = jax.tree.map(np.asarray, tasks.speed)
    of_tasks = [
        [schedules.mean(Schedule(*server)) for server in zip(*(leaf[e] for leaf in per_server), strict=True)]
        for e in range(tasks.mask.shape[0])
    ]
    slots = 1.0 if tasks.sharing is None else np.asarray(most(tasks.sharing))
    return (np.array(of_tasks) * slots * np.asarray(tasks.mask)).mean(0)


def typical_sizes(tasks: Task) -> Float[np.ndarray, " M"]:
    """Job sizes of tasks [E, ...]: those recorded, or an even grid of the quantiles of each task's law."""
    workload = jax.tree.map(lambda leaf: leaf[:_SAMPLED_TASKS], tasks.workload)
    survival = (jnp.arange(_SAMPLED_SIZES) + 0.5) / _SAMPLED_SIZES
    sizes = np.asarray(jax.vmap(jax.vmap(sample_size, (None, 0)), (0, None))(workload.sizes, survival))
    recorded, length = np.asarray(workload.recording.size), np.asarray(workload.recording.length)
    return np.concatenate([recorded[e, :n] if n else sizes[e] for e, n in enumerate(length)])
