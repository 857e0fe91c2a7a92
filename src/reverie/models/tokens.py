"""Sizes and gaps as discrete tokens on a logarithmic scale: any law of jobs is a categorical distribution over them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.nn.layers import Head

BINS = 64
"""Classes (K) of a token: 0 is exactly 0, the others divide [unit / e^8, unit e^8] evenly on a logarithmic scale."""
_HIGHEST = 8.0
_WIDTH = 2 * _HIGHEST / (BINS - 1)


def token(x: Float[Array, "*B"], unit: float) -> Int[Array, "*B"]:
    """The class of a size or gap; `unit` is a usual one."""
    place = (jnp.log(jnp.maximum(x, 1e-30) / unit) + _HIGHEST) / _WIDTH
    return jnp.where(x > 0, 1 + jnp.clip(jnp.floor(place), 0, BINS - 2), 0).astype(jnp.int32)


def draw(logits: Float[Array, "*B K"], noise: Float[Array, "2 *B"], unit: float) -> Float[Array, "*B"]:
    """A size or gap, by two uniform numbers: one decides the class, one the place in it."""
    drawn = inverse(logits, noise[0])
    return jnp.where(drawn == 0, 0.0, unit * jnp.exp((drawn - 1 + noise[1]) * _WIDTH - _HIGHEST))


def inverse(logits: Float[Array, "*B K"], noise: Float[Array, "*B"]) -> Int[Array, "*B"]:
    """The class that a uniform number stands for: the larger the one, the larger the other."""
    ends = jnp.cumsum(jax.nn.softmax(logits), -1)[..., :-1]
    return (noise[..., None] >= ends).sum(-1)


def token_head(inputs: int, units: int, *, key: Key[Array, ""]) -> Head:
    """A head over tokens that begins near a lognormal around `unit`: from even odds, dreams would be full of jobs a
    thousand times too large until the first ones are seen."""
    head = Head(inputs, BINS, units, 1, scale=0.01, key=key)
    centre = (jnp.arange(BINS) - 0.5) * _WIDTH - _HIGHEST  # of exact zeros too, which begin as unlikely
    return eqx.tree_at(lambda head: head.output.bias, head, -0.5 * jnp.square(centre / 1.5))
