"""Twins of the layers in `nn/layers.py`, without JAX: functions made of stored weights, for one decision at a time.

A decision takes tens of microseconds, in which each call of numpy costs one. So weights that meet the same input are
laid side by side when they are read, and vectors have no batch axis.
"""

import math
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


def normed(x: Array, scale: Array) -> Array:
    """RMS norm over the last axis, epsilon 1e-4, in place."""
    if x.ndim == 1:
        x *= 1 / math.sqrt(float(x.dot(x)) / len(x) + 1e-4)
    else:
        x /= np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + 1e-4)
    x *= scale
    return x


def silu_of_twice(x: Array) -> Array:
    """SiLU of 2 x: x + x tanh x, by three calls where the usual form takes four. Norms before it are halved."""
    y = np.tanh(x)
    y *= x
    y += x
    return y


def linear(weights: Weights) -> Layer:
    weight, bias = weights[".weight"], weights[".bias"]

    def apply(x: Array) -> Array:
        y = x @ weight
        y += bias
        return y

    return apply


def dense(weights: Weights) -> Layer:
    """A hidden layer: linear, norm, SiLU."""
    apply, half = linear(weights.of(".linear")), weights[".norm.scale"] / 2
    return lambda x: silu_of_twice(normed(apply(x), half))


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
    units = len(weights[".norm.scale"]) // 3
    reset, candidate, update = np.split(np.arange(3 * units), 3)
    order = np.concatenate([reset, update, candidate])  # both gates pass one tanh
    weight = np.concatenate([weights[".inputs.weight"], weights[".recurrent.weight"]]).take(order, -1)
    bias = (weights[".inputs.bias"] + weights[".recurrent.bias"])[order]
    halves = np.repeat(np.array([1 / 2, 1 / 2, 1 / 4], np.float32), units)  # sigmoid 2 x = (1 + tanh x) / 2
    scale = weights[".norm.scale"][order] * halves
    shift = np.repeat(np.array([0, -1 / 2], np.float32), units)  # the update gate leans to keeping

    def step(h: Array, x: Array) -> Array:
        parts = np.concatenate([x, h], -1) @ weight
        parts += bias
        normed(parts, scale)
        gates, new = parts[..., : 2 * units], parts[..., 2 * units :]
        gates += shift
        np.tanh(gates, gates)
        gates += 1  # twice the sigmoid
        new *= gates[..., :units]
        new = silu_of_twice(new)
        new -= h
        new *= gates[..., units:]
        new *= 0.5
        new += h
        return new

    return step


def shared_rows(weights: Weights) -> Callable[[Array, Array], Array]:
    """Hidden layers that every row [N, G] passes together with the same context [D]."""
    of_rows, of_context, half = weights[".rows.weight"], linear(weights.of(".context")), weights[".norm.scale"] / 2
    bias = weights[".rows.bias"]
    deeper = mlp(weights.of(".deeper"))

    def apply(rows: Array, context: Array) -> Array:
        y = rows @ of_rows
        y += of_context(context) + bias
        return deeper(silu_of_twice(normed(y, half)))

    return apply


def masked_pool(rows: Array, mask: Array | None) -> Array:
    """Mean and maximum over the rows that count, side by side."""
    there = rows if mask is None else rows[mask]
    if not len(there):
        return np.zeros(2 * rows.shape[-1], rows.dtype)
    return np.concatenate([there.mean(0), there.max(0)])
