"""The classical rules as opponents on given tasks, told what the operator of such a fleet would know.

That is the speed of each server on average over the tasks and over time, and a sample of job sizes. A rule that needs
neither sees the truth through its view.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import Task
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.sharing import most
from reverie.envs.fleet.weights import USUAL, Proxy, View, WeightsEnv
from reverie.envs.fleet.workload import sample_size
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.trials import contenders
from reverie.policies.rules import rules
from reverie.policies.weights import HeldWeights, weight_rules

AT_FIRST = "weights-at-first"
"""The name of weights that were right when an episode began."""
_SAMPLED_TASKS, _SAMPLED_SIZES = 64, 2000


def opponents(tasks: Task, view: View, names: Iterable[str] | None = None, proxy: Proxy = USUAL) -> list[Contestant]:
    """The rules, all of them or those named, as contestants beside agents that see `view`. Those that set the weights
    of the `proxy` are opponents of agents that do.

    Arguments: `tasks`, leaves [E, ...].
    Errors: ValueError for an unknown name.
    """
    alone = tasks.others is None and tasks.sharing is None
    speeds, sizes = nominal_speeds(tasks), typical_sizes(tasks)
    if names is None:
        names = [*rules(speeds, sizes), *([*weight_rules(speeds, 1.0), AT_FIRST] if view == "weights" else [])]
    known = rules(speeds, sizes, [name for name in names if name != AT_FIRST])
    found = contenders(known, view, alone, proxy)
    if AT_FIRST in names:
        world, told = WeightsEnv(proxy=proxy), "the speeds at the beginning"
        found.append(Contestant(AT_FIRST, HeldWeights(_speeds_at_first(tasks)), world, "oracle", knows=told))
    return found


def nominal_speeds(tasks: Task) -> Float[np.ndarray, " N"]:
    """The speed of each server in the long run, all slots taken, on average over tasks [E, ...]; 0 for padding."""
    per_server = jax.tree.map(np.asarray, tasks.speed)
    of_tasks = [
        [schedules.mean(Schedule(*server)) for server in zip(*(leaf[e] for leaf in per_server), strict=True)]
        for e in range(tasks.mask.shape[0])
    ]
    slots = 1.0 if tasks.sharing is None else np.asarray(most(tasks.sharing))
    return (np.array(of_tasks) * slots * np.asarray(tasks.mask)).mean(0)


def _speeds_at_first(tasks: Task) -> Float[Array, "E N"]:
    """The speed of each server as an episode begins, all slots taken; 0 for padding."""
    slots = 1.0 if tasks.sharing is None else most(tasks.sharing)
    return jnp.where(tasks.mask, tasks.speed.value[..., 0] * slots, 0.0)


def typical_sizes(tasks: Task) -> Float[np.ndarray, " M"]:
    """Job sizes of tasks [E, ...]: those recorded, or an even grid of the quantiles of each task's law."""
    workload = jax.tree.map(lambda leaf: leaf[:_SAMPLED_TASKS], tasks.workload)
    survival = (jnp.arange(_SAMPLED_SIZES) + 0.5) / _SAMPLED_SIZES
    sizes = np.asarray(jax.vmap(jax.vmap(sample_size, (None, 0)), (0, None))(workload.sizes, survival))
    recorded, length = np.asarray(workload.recording.size), np.asarray(workload.recording.length)
    return np.concatenate([recorded[e, :n] if n else sizes[e] for e, n in enumerate(length)])
