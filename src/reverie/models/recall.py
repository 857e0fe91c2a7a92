"""The recall loss: earlier observations of the episode are to be reconstructed from h. It is ours (docs/r2i.md).

What has to be remembered is otherwise learned from the few rewards that depend on it.
"""

from collections.abc import Mapping
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.encoders import Decoder
from reverie.nn.layers import Dense

DRAWS = 8
"""Earlier observations that are recalled at each step."""
RECALLED_ANYWAY = 0.1
"""Weight of what does not surprise at all, in units of the mean surprise."""


class Recall(eqx.Module):
    """Reconstructs an earlier observation from h and how many steps ago that was.

    The two are multiplied, so that each lag has a reading of its own: read side by side, 22 % of the last 32 cards
    were still misnamed after as many updates as this way took to name all.
    """

    read: Dense
    ago: Float[Array, "R U"]
    decoder: Decoder

    def __init__(
        self,
        observation_spec: Mapping[str, ArraySpec],
        furthest: int,
        deter: int,
        units: int,
        layers: int,
        depth: int,
        *,
        key: Key[Array, ""],
    ):
        """`furthest` is the most steps back (R); the others are sizes of h and of the decoder."""
        read_key, ago_key, decoder_key = jax.random.split(key, 3)
        self.read = Dense(deter, units, key=read_key)
        self.ago = jax.random.normal(ago_key, (furthest, units))
        self.decoder = Decoder(observation_spec, units, furthest, 1, units, layers, depth, key=decoder_key)

    def loss(
        self,
        deter: Float[Array, "B T D"],
        observation: dict[str, Array],
        begins: Bool[Array, "B T"],
        surprise: Float[Array, "B T"],
        key: Key[Array, ""],
    ) -> Float[Array, "B T"]:
        """How badly earlier observations since the last border are reconstructed from h: at each step `DRAWS` of the
        last R, drawn anew. 0 where there is none.

        What surprised most is asked for most: one is drawn in proportion to how badly the prior foretold it.
        """
        furthest, steps = self.ago.shape[0], jnp.arange(begins.shape[1])
        begun = jax.lax.cummax(jnp.where(begins, steps, 0), 1)
        earliest = jnp.maximum(begun, steps - furthest)  # [B, T]
        weight = surprise + RECALLED_ANYWAY * surprise.mean() + jnp.finfo(jnp.float32).tiny
        before = jnp.cumsum(weight, 1) - weight  # [B, T] sum of the weights of all earlier steps
        low = jnp.take_along_axis(before, earliest, 1)
        place = low + (before - low) * jax.random.uniform(key, (DRAWS, *low.shape))  # [n, B, T]
        find = jax.vmap(partial(jnp.searchsorted, side="right"), (0, 1), 1)
        then = jnp.clip(find(before, place) - 1, earliest, jnp.maximum(steps - 1, 0))
        earlier = jax.tree.map(lambda leaf: leaf[jnp.arange(len(leaf))[:, None], then], observation)  # [n, B, T, ...]
        lag = jnp.maximum(steps - then, 1)
        asked = self.read(deter) * self.ago[lag - 1].astype(deter.dtype)
        told = jnp.concatenate([asked, jax.nn.one_hot(lag - 1, furthest, dtype=deter.dtype)], -1)
        return jnp.where(steps > begun, self.decoder.loss(told, earlier).mean(0), 0.0)
