"""Twins of the layers in `nn/layers.py`, without JAX: functions made of stored weights, for one decision at a time.

A decision takes tens of microseconds, in which each call of numpy costs one. So weights that meet the same input are
laid side by side when they are read, and vectors have no batch axis.
"""

from collections.abc import Callable, Mapping

import numpy as np

type Array = np.ndarray
type Layer = Callable[[Array], Array]


class Weights:
    """Stored arrays by the path of their module, such as `.model.gru`."""

    def __init__(self, arrays: Mapping[str, Array], prefix: str = ""):
        self._arrays, self._prefix = arrays, prefix

    def of(self, path: str) -> "Weights":
        """Those within a module."""
        return Weights(self._arrays, self._prefix + path)

    def __contains__(self, path: str) -> bool:
        return any(name.startswith(self._prefix + path) for name in self._arrays)

    def __getitem__(self, path: str) -> Array:
        return self._arrays[self._prefix + path]


def symlog(x: Array) -> Array:
    """`sign(x) log(1 + |x|)`."""
    return np.sign(x) * np.log1p(np.abs(x))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rms_norm(x: Array, scale: Array) -> Array:
    """Over the last axis, epsilon 1e-4."""
    if x.ndim == 1:
        return x * (scale / np.sqrt(x.dot(x) / x.size + 1e-4))
    return x / np.sqrt(np.einsum("nd,nd->n", x, x)[:, None] / x.shape[-1] + 1e-4) * scale


def linear(weights: Weights) -> Layer:
    weight, bias = weights[".weight"], weights[".bias"]
    return lambda x: x @ weight + bias


def dense(weights: Weights) -> Layer:
    """A hidden layer: linear, norm, SiLU."""
    apply, scale = linear(weights.of(".linear")), weights[".norm.scale"]
    return lambda x: silu(rms_norm(apply(x), scale))


def mlp(weights: Weights) -> Layer:
    layers: list[Layer] = []
    while f".layers[{len(layers)}]" in weights:
        layers.append(dense(weights.of(f".layers[{len(layers)}]")))

    def apply(x: Array) -> Array:
        for layer in layers:
            x = layer(x)
        return x

    return apply


def head(weights: Weights) -> Layer:
    hidden, output = mlp(weights.of(".mlp")), linear(weights.of(".output"))
    return lambda x: output(hidden(x))


def gru(weights: Weights) -> Callable[[Array, Array], Array]:
    """The cell of `nn/layers.py`: `(h, x) -> h'`, of one memory [U] or of a row of them [N, U]."""
    weight = np.concatenate([weights[".inputs.weight"], weights[".recurrent.weight"]])
    bias = weights[".inputs.bias"] + weights[".recurrent.bias"]
    scale, units = weights[".norm.scale"], weight.shape[1] // 3

    def step(h: Array, x: Array) -> Array:
        gates = rms_norm(np.concatenate([x, h], -1) @ weight + bias, scale)
        reset, candidate, update = gates[..., :units], gates[..., units : 2 * units], gates[..., 2 * units :]
        kept = sigmoid(update - 1)
        return h + kept * (silu(sigmoid(reset) * candidate) - h)

    return step


def shared_rows(weights: Weights) -> Callable[[Array, Array], Array]:
    """Hidden layers that every row [N, G] passes together with the same context [D]."""
    of_rows, of_context, scale = weights[".rows.weight"], linear(weights.of(".context")), weights[".norm.scale"]
    bias = weights[".rows.bias"]
    deeper = mlp(weights.of(".deeper"))

    def apply(rows: Array, context: Array) -> Array:
        return deeper(silu(rms_norm(rows @ of_rows + (of_context(context) + bias), scale)))

    return apply


def masked_pool(rows: Array, mask: Array) -> Array:
    """Mean and maximum over the rows that count, side by side."""
    there = rows[mask]
    if not len(there):
        return np.zeros(2 * rows.shape[-1], rows.dtype)
    return np.concatenate([there.mean(0), there.max(0)])
