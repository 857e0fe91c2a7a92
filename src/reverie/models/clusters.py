"""Which tasks are alike, by how a model would have to change for each: the clusters of a mixture (`mixture.py`).

One model is trained on random play of all tasks for a while. Tasks whose gradients then point the same way want the
same changes and can share a module ("Mixture of World Models", arXiv 2602.01270). What the paper says no more of is
ours: a tensor's gradient is averaged over all its axes but the last, each of these averages counts alike, and tasks are
grouped by spherical k-means in which no cluster has more than so many.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

RESTARTS = 20
"""Random beginnings of which the best is taken."""


def directions(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]], parameters: PyTree[Array], batches: PyTree[Array]
) -> Float[np.ndarray, "K F"]:
    """The direction in which each task pulls, of length 1.

    Arguments: `loss(parameters, batch)`; `parameters` all inexact, those that are to be shared or not; `batches`,
    leaves [K, M, ...], M of each task, whose gradients are averaged.
    """

    def of_task(batches: PyTree[Array]) -> PyTree[Array]:
        return jax.grad(lambda p: jax.vmap(lambda batch: loss(p, batch))(batches).mean())(parameters)

    def of_layer(gradient: Float[Array, "K *D"]) -> Float[Array, "K F"]:
        mean = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1] if gradient.ndim > 1 else 1).mean(1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    gradients = jax.jit(jax.vmap(of_task))(batches)
    together = np.concatenate([np.asarray(of_layer(x), np.float64) for x in jax.tree.leaves(gradients)], -1)
    return together / np.maximum(np.linalg.norm(together, axis=-1, keepdims=True), 1e-12)


def clustered(vectors: Float[np.ndarray, "K F"], count: int, most: int, seed: int = 0) -> tuple[int, ...]:
    """The cluster of each task: `count` of them by cosine, of no more than `most` tasks each. Clusters are numbered by
    their first task.

    Raises:
        ValueError: so many tasks do not fit, or there are fewer tasks than clusters.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it takes half a second to import

    tasks = len(vectors)
    if not count <= tasks <= count * most:
        raise ValueError(f"{tasks} tasks cannot be put into {count} clusters of 1 to {most} tasks")
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    rng, best, found = np.random.default_rng(seed), -np.inf, np.zeros(tasks, int)
    for _ in range(RESTARTS):
        centres, before = vectors[rng.choice(tasks, count, replace=False)], None
        while True:
            # A place costs its cluster's distance; the first place of each cluster has to be taken.
            cost = -np.repeat(vectors @ centres.T, most, 1)  # [K, count * most]
            cost[:, ::most] -= 4.0
            place = linear_sum_assignment(cost)[1] // most
            if before is not None and (place == before).all():
                break
            before = place
            means = np.stack([vectors[place == c].mean(0) for c in range(count)])
            centres = means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)
        score = (vectors * centres[place]).sum()
        if score > best + 1e-9:
            best, found = score, place
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(int(c), len(numbers)) for c in found)


def adjusted_rand(left: Sequence[int], right: Sequence[int]) -> float:
    """How well two groupings agree: 1 where they are the same, 0 as expected of chance (Hubert and Arabie 1985)."""
    _, rows = np.unique(left, return_inverse=True)
    _, columns = np.unique(right, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)

    def pairs(x: Float[np.ndarray, "..."]) -> float:
        return float((x * (x - 1) / 2).sum())

    both, one, other, all_of_them = (
        pairs(table),
        pairs(table.sum(1)),
        pairs(table.sum(0)),
        pairs(table.sum(keepdims=True)),
    )
    chance = one * other / all_of_them
    return 1.0 if one == other == both else (both - chance) / ((one + other) / 2 - chance)
