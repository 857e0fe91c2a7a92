"""Weights averaged over updates: they act when an agent is judged, as single updates are noisy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def average[T: PyTree](averaged: T, now: T, rate: float, updates: Int[Array, ""]) -> T:
    """The running average after so many updates, the last of which led to the weights of `now`: at first the mean of
    all so far; at rate 1 those of now."""
    return now if rate == 1 else follow(averaged, now, jnp.maximum(rate, 1 / updates))


def follow[T: PyTree](averaged: T, now: T, rate: Float[Array, ""] | float) -> T:
    """The running average of weights, moved by `rate` towards those of now; counters and other integers are those of
    now."""

    def leaf(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return ((1 - rate) * old + rate * new).astype(new.dtype)

    return jax.tree.map(leaf, averaged, now)
