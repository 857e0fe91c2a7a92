"""What a MetaDreamer takes tasks for, which ones it imagines, and how its model has things go on in them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reverie.agents.metadreamer import Learner, MetaDreamer
from reverie.envs.core import World
from reverie.evaluate.contexts import codes_of, foretold
from reverie.models.tasks import find_dimensions
from reverie.tables import Row

CONTEXTS, EPISODES = 16, 64
"""Of each known task: contexts whose codes are averaged, and episodes that errors are averaged over."""
STEPS = 20
"""That are foretold."""
SHOWN = 200
"""Imagined tasks."""


def code_rows(
    agent: MetaDreamer,
    learner: Learner,
    world: Callable[[int], World],
    sets: Mapping[str, Float[np.ndarray, "_ F"]],
    seed: int,
) -> list[Row]:
    """A row for each task: its set (`tasks`), its factors, the number of z that each is found in (`z/FACTOR`), and of
    the others the one that differs most (`z/other`). Codes are those of one context, of known tasks means of several.
    Of tasks that are imagined, the last ones, the factors are not known.

    Arguments: `world`, for so many tasks at once; `sets`, of tasks that were not learned from.
    """
    keys, known = iter(jax.random.split(jax.random.key(seed), len(sets) + 2)), np.array(agent.tasks, np.float32)
    policy, steps = agent.policy(learner.networks, greedy=True), agent.config.pearl.evidence
    dimensions, _ = find_dimensions(learner.codes, jnp.asarray(known), learner.known)
    several = codes_of(world(len(known) * CONTEXTS), policy, jnp.asarray(known), CONTEXTS, steps, next(keys))
    found = {"known": (known, several.mean(1))}
    for name, tasks in sets.items():
        found[name] = tasks, codes_of(world(len(tasks)), policy, jnp.asarray(tasks), 1, steps, next(keys))[:, 0]
    if agent.config.imagination in ("meta", "both"):
        codes = agent.interpolation.codes(learner.codes, dimensions, agent.config.epsilon, SHOWN, next(keys))
        found["imagined"] = None, codes
    spread = np.concatenate([np.asarray(codes) for _, codes in found.values()]).std(0)
    spread[np.asarray(dimensions)] = -1
    columns = {f"z/{name}": int(z) for name, z in zip(agent.factors, dimensions, strict=True)}
    if len(spread) > len(columns):
        columns["z/other"] = int(spread.argmax())
    rows: list[Row] = []
    for name, (tasks, codes) in found.items():
        for place, z in enumerate(np.asarray(codes)):
            row: Row = {"tasks": name}
            for k, factor in enumerate(agent.factors):
                row[factor] = None if tasks is None else float(tasks[place, k])
            rows.append(row | {column: float(z[number]) for column, number in columns.items()})
    return rows


def foretold_rows(agent: MetaDreamer, learner: Learner, world: Callable[[int], World], seed: int) -> list[Row]:
    """How the world and the model go on with the same actions, in three known tasks whose codes the model is told: of
    each step ahead and each number of an observation what it was and what was foretold, in one episode, as long as
    that goes on; and over many the error of all numbers, told that code and told nothing (`error`, `unknowing`).

    Arguments: `world`, for so many tasks at once.
    """
    code_key, *keys = jax.random.split(jax.random.key(seed), 4)
    known, networks = np.array(agent.tasks, np.float32), learner.networks
    order = np.lexsort(known.T[::-1])  # by the first factor first
    tasks = known[order[[0, len(order) // 2, -1]]]
    policy = agent.policy(networks, greedy=True)
    steps, contexts = agent.config.pearl.evidence, world(len(tasks) * CONTEXTS)
    codes = codes_of(contexts, policy, jnp.asarray(tasks), CONTEXTS, steps, code_key).mean(1)
    names = [f"{name} {i}" for name, spec in networks.model.numbers.spec for i in range(int(np.prod(spec.shape)))]
    rows, episodes = list[Row](), world(EPISODES)
    for task, z, key in zip(np.atleast_2d(tasks).tolist(), codes, keys, strict=True):
        told = ", ".join(f"{name} {value:.2g}" for name, value in zip(agent.factors, task, strict=True))
        many, z = jnp.tile(jnp.array(task), (EPISODES, 1)), jnp.tile(z, (EPISODES, 1))
        knowing, unknowing = (foretold(episodes, networks.model, many, x, STEPS, key) for x in (z, jnp.zeros_like(z)))
        errors = np.asarray(knowing.error), np.asarray(unknowing.error)
        came, said, counts = (np.asarray(x[:, 0]) for x in knowing)
        for step in np.flatnonzero(counts):
            error, of_nothing = (float(each[step]) for each in errors)
            for number, name in enumerate(names):
                row: Row = {"task": told, "ahead": int(step) + 1, "number": name, "came": float(came[step, number])}
                rows.append(row | {"foretold": float(said[step, number]), "error": error, "unknowing": of_nothing})
    return rows
