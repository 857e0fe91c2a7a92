"""Clusters of tasks: which pull a model the same way, in groups no larger than asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusters import clustered, directions
from sklearn.metrics import adjusted_rand_score


def test_tasks_that_want_the_same_of_a_model_are_found():
    """Regressions on two targets and inputs of two kinds: four groups of three tasks, by their gradients alone."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 3)
    x = rng.normal(size=(12, 5, 32, 4)) + np.array([1.0, -1.0])[truth // 2][:, None, None, None]
    y = (x @ rng.normal(size=(2, 4, 3))[truth % 2][:, None]) + 0.1 * rng.normal(size=(12, 5, 32, 3))
    parameters = {"weight": jnp.asarray(0.1 * rng.normal(size=(4, 3))), "bias": jnp.zeros(3)}

    def loss(p, batch):
        x, y = batch
        return jnp.square(x @ p["weight"] + p["bias"] - y).mean()

    found = directions(loss, parameters, (jnp.asarray(x), jnp.asarray(y)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, rtol=1e-6)
    one = jax.grad(lambda p: sum(loss(p, (x[7, m], y[7, m])) for m in range(5)) / 5)(parameters)
    bias, weight = one["bias"], one["weight"].mean(0)
    by_hand = np.concatenate([bias / np.linalg.norm(bias), weight / np.linalg.norm(weight)])
    np.testing.assert_allclose(found[7], by_hand / np.linalg.norm(by_hand), atol=1e-5)
    assert adjusted_rand_score(clustered(found, 4, 3), truth.tolist()) == 1.0


def test_no_cluster_is_larger_than_allowed_or_empty():
    rng = np.random.default_rng(1)
    near = rng.normal(size=(10, 3)) * 0.01 + np.array([1.0, 0, 0])
    vectors = np.concatenate([near, [[0, 1.0, 0], [0, 0, 1.0]]])
    free = np.bincount(clustered(vectors, 3, 12))
    assert sorted(free) == [1, 1, 10]
    limited = np.bincount(clustered(vectors, 3, 5))
    assert sorted(limited) == [2, 5, 5]
    assert clustered(vectors, 12, 1) == tuple(range(12))
    with pytest.raises(ValueError, match="12 tasks cannot be put into 3 clusters of 1 to 3 tasks"):
        clustered(vectors, 3, 3)
