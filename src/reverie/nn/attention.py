"""A causal Transformer that takes a sequence at once or step by step, to the same numbers.

Each token attends to itself and to the tokens of the last steps, as many as the window (W) has. So what has to be
remembered while acting is a cache of W - 1 steps, which slides, however long the past is; and a sequence may begin in
the middle of one. Positions count backwards from the token that attends. Nothing here knows of RL.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.nn.layers import Linear, truncated_normal


class KeyValue(NamedTuple):
    """What later tokens read of earlier ones in one layer, for leading axes and steps."""

    key: Float[Array, "*B S D"]
    value: Float[Array, "*B S D"]


class Past(NamedTuple):
    """What is remembered of the last S = W - 1 steps [B, S, D], the newest last; or of each step [B, T, D] of a
    sequence."""

    layers: tuple[KeyValue, ...]
    known: Bool[Array, "*B S"]
    """Which of the last S steps there were since the past last began anew, before the next [B, S], or before the one
    after each [B, T, S]. What stands for the others is zeros."""


class LayerNorm(eqx.Module):
    """Mean 0 and variance 1 over the last axis (float32), then a learned scale and offset (Ba et al. 2016)."""

    scale: Float[Array, " D"]
    offset: Float[Array, " D"]

    def __init__(self, size: int):
        self.scale, self.offset = jnp.ones(size), jnp.zeros(size)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
        return (wide * self.scale + self.offset).astype(x.dtype)


Kept = tuple[Array | None, Array | None]
"""What the two sums of a block are multiplied by in training, or nothing."""


class Dropout(NamedTuple):
    """Sets a share of numbers to 0 and scales up the others; without a key it does nothing."""

    rate: float = 0.0
    key: Key[Array, ""] | None = None

    def factors(self, like: Float[Array, "*B"], place: int) -> Float[Array, "*B"] | None:
        """`place` tells the places of a network apart, so that each draws for itself."""
        if self.key is None or not self.rate:
            return None
        kept = jax.random.bernoulli(jax.random.fold_in(self.key, place), 1 - self.rate, like.shape)
        return (kept / (1 - self.rate)).astype(like.dtype)


def _times(x: Float[Array, "*B"], factors: Float[Array, "*B"] | None) -> Float[Array, "*B"]:
    return x if factors is None else x * factors


class Block(eqx.Module):
    """Attention and a perceptron, each added to its input and normed afterwards (Vaswani et al. 2017)."""

    query: Float[Array, "D D"]
    key: Float[Array, "D D"]
    value: Float[Array, "D D"]
    out: Float[Array, "D D"]
    attention_norm: LayerNorm
    wide: Linear
    narrow: Linear
    norm: LayerNorm

    def __init__(self, width: int, hidden: int, *, key: Key[Array, ""]):
        *keys, wide_key, narrow_key = jax.random.split(key, 6)
        self.query, self.key, self.value, self.out = (truncated_normal(k, (width, width), width) for k in keys)
        self.attention_norm, self.norm = LayerNorm(width), LayerNorm(width)
        self.wide, self.narrow = Linear(width, hidden, key=wide_key), Linear(hidden, width, key=narrow_key)

    def ask(self, x: Float[Array, "*B D"]) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"], Float[Array, "*B D"]]:
        """Query, key and value of tokens."""
        query, key, value = (x @ matrix.astype(x.dtype) for matrix in (self.query, self.key, self.value))
        return query, key, value

    def add(self, x: Float[Array, "*B D"], read: Float[Array, "*B D"], kept: "Kept") -> Float[Array, "*B D"]:
        """Tokens, after what each has read of others."""
        x = self.attention_norm(x + _times(read @ self.out.astype(x.dtype), kept[0]))
        return self.norm(x + _times(self.narrow(jax.nn.relu(self.wide(x))), kept[1]))


class Transformer(eqx.Module):
    """Blocks over a window. Positions are those of Transformer-XL (Dai et al. 2019, arXiv 1901.02860), with a learned
    vector for each distance in place of sines: a score is (q + u) k + (q + v) p, where p is that of the distance."""

    blocks: tuple[Block, ...]
    distance: Float[Array, "W D"]
    """Of each distance, the farthest first, the token itself last."""
    content_bias: Float[Array, " D"]
    """u"""
    distance_bias: Float[Array, " D"]
    """v"""
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self, width: int, hidden: int, layers: int, heads: int, window: int, dropout: float, *, key: Key[Array, ""]
    ):
        """Arguments: `hidden`, width of the perceptrons; `dropout`, the share that training drops."""
        *keys, distance_key = jax.random.split(key, layers + 1)
        self.blocks = tuple(Block(width, hidden, key=k) for k in keys)
        self.distance = truncated_normal(distance_key, (window, width), width)
        self.content_bias, self.distance_bias = jnp.zeros(width), jnp.zeros(width)
        self.heads, self.dropout = heads, dropout

    @property
    def window(self) -> int:
        """Tokens that are attended to, the one that attends included (W)."""
        return self.distance.shape[0]

    def nothing(self, batch: int, dtype: str, copies: int = 1) -> Past:
        """The past of sequences that begin."""
        steps, width = self.window - 1, copies * self.distance.shape[1]
        zeros = jnp.zeros((batch, steps, width), dtype)
        return Past(tuple(KeyValue(zeros, zeros) for _ in self.blocks), jnp.zeros((batch, steps), bool))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        past: Past,
        begins: Bool[Array, "B T"],
        key: Key[Array, ""] | None = None,
        through: Callable[..., Any] = lambda call, block, *x: call(block, *x),
    ) -> tuple[Float[Array, "B T D"], Past]:
        """The outputs for tokens `x` right after `past`, and what is to be remembered of each of them.

        Nothing is known across a step that `begins`. `key` is for dropout; without it nothing is dropped. A token may
        be several, side by side, which see their own past alone; `through` then says which block each of them passes.
        """
        allowed = self.allowed(past.known, begins)
        layers = []
        for i, (block, before) in enumerate(zip(self.blocks, past.layers, strict=True)):
            dropout = Dropout(self.dropout, None if key is None else jax.random.fold_in(key, i))
            query, *now = through(Block.ask, block, x)
            read = self.attend(query, follow(before, KeyValue(*now)), allowed, dropout)
            x = through(Block.add, block, x, read, (dropout.factors(x, 1), dropout.factors(x, 2)))
            layers.append(KeyValue(*now))
        return x, Past(tuple(layers), windows(allowed, self.window)[..., 1:])

    def attend(
        self, query: Float[Array, "B T D"], read: KeyValue, allowed: Bool[Array, "B T R"], dropout: Dropout
    ) -> Float[Array, "B T D"]:
        """Values of the tokens that are allowed, weighted by how well their keys and distances answer."""
        dtype, copies = query.dtype, query.shape[-1] // self.distance.shape[1]
        content_bias, distance_bias, distance = (
            jnp.tile(x.astype(dtype), copies) for x in (self.content_bias, self.distance_bias, self.distance)
        )
        by_content, by_distance = self.split(query + content_bias), self.split(query + distance_bias)  # [B, T, h, d]
        scores = jnp.einsum("bthd,brhd->bhtr", by_content, self.split(read.key))
        placed = jnp.einsum("bthd,whd->bhtw", by_distance, self.split(distance))
        scores = (scores + banded(placed)).astype(jnp.float32) / math.sqrt(by_content.shape[-1])
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e30)).astype(dtype)
        values = jnp.einsum("bhtr,brhd->bthd", _times(weights, dropout.factors(weights, 0)), self.split(read.value))
        return values.reshape(query.shape)

    def allowed(self, known: Bool[Array, "B S"], begins: Bool[Array, "B T"]) -> Bool[Array, "B T R"]:
        """Which of the R = S + T tokens, those of the past first, each step may attend to."""
        steps, before = begins.shape[1], known.shape[1]
        place, at = jnp.arange(before + steps), before + jnp.arange(steps)[:, None]
        in_window = (place <= at) & (place > at - self.window)
        since = jnp.cumsum(begins, 1)  # how often it began anew
        same = since[:, :, None] == jnp.concatenate([jnp.zeros_like(known, int), since], 1)[:, None]
        there = jnp.concatenate([known, jnp.ones_like(begins)], 1)[:, None]
        return in_window & same & there

    def split(self, x: Float[Array, "*B D"]) -> Float[Array, "*B h d"]:
        return x.reshape(*x.shape[:-1], -1, self.distance.shape[1] // self.heads)


def follow(before: KeyValue, now: KeyValue) -> KeyValue:
    """Steps after steps."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], 1), before, now)


def banded(x: Float[Array, "*B T W"]) -> Float[Array, "*B T R"]:
    """Rows laid along a diagonal: row t begins at column t of R = T + W - 1, zeros elsewhere."""
    *batch, steps, window = x.shape
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, steps)]).reshape(*batch, -1)
    return wide[..., : steps * (steps + window - 1)].reshape(*batch, steps, -1)


def windows(x: Bool[Array, "B T R"], window: int) -> Bool[Array, "B T W"]:
    """Undo `banded`."""
    batch, steps, _ = x.shape
    return jnp.pad(x.reshape(batch, -1), [(0, 0), (0, steps)]).reshape(batch, steps, -1)[..., :window]


def slide(before: Past, now: Past) -> Past:
    """The past [B, S, ...] after a sequence: from the one before it, and what is remembered of its steps."""
    known = now.known[:, -1]

    def last(x: Float[Array, "B R D"]) -> Float[Array, "B S D"]:
        return jnp.where(known[..., None], x[:, x.shape[1] - known.shape[1] :], 0)

    return Past(tuple(jax.tree.map(last, layer) for layer in joined(before, now)), known)


def slides(before: Past, now: Past, index: Int[Array, " n"]) -> Past:
    """The pasts [n, S, ...] after some of its steps: `index` is into the B x T steps, laid flat."""
    known = now.known.reshape(-1, now.known.shape[-1])[index]
    row, time = index // now.known.shape[1], 1 + index % now.known.shape[1]
    place = row[:, None], time[:, None] + jnp.arange(known.shape[1])

    def last(x: Float[Array, "B R D"]) -> Float[Array, "n S D"]:
        return jnp.where(known[..., None], x[place], 0)

    return Past(tuple(jax.tree.map(last, layer) for layer in joined(before, now)), known)


def joined(before: Past, now: Past) -> list[KeyValue]:
    """Of each layer, the steps of the past and those after it."""
    return [follow(*layers) for layers in zip(before.layers, now.layers, strict=True)]
