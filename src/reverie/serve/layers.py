"""Twins of the layers in `nn/layers.py`, without JAX: functions made of stored weights, for one decision at a time.

A decision takes tens of microseconds, of which a call of numpy takes 0.3, and three times that where arrays differ in
shape or do not lie in one piece. So there is no batch axis, units lead and servers trail ([U], or [U, N] where each
server has its own), and what is laid one below the other lies in one piece. A layer writes to memory of its own: it is
for one stream of decisions, and so is what is made of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

type Array = np.ndarray
type Layer = Callable[[Array], Array]
type Part = Array | Sequence[float]


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


ZERO, HALF, ONE = (np.array(x, np.float32) for x in (0, 1 / 2, 1))
"""As arrays: numbers of Python cost numpy twice as much."""


def symlog(x: Array) -> Array:
    """`sign(x) log(1 + |x|)`."""
    return np.copysign(np.log1p(np.abs(x)), x)


def silu_of_twice(x: Array) -> Array:
    """SiLU of 2 x: x + x tanh x, by three calls where the usual form takes four. Norms before it are halved."""
    y = np.tanh(x)
    y *= x
    y += x
    return y


class Affine:
    """`weight.T x + bias` of an x [I] or [I, N] that comes in parts, laid one below the other with a 1 for the bias."""

    def __init__(self, weight: Array, bias: Array, *servers: int):
        self._weight = np.asfortranarray(np.vstack([weight, bias]).T)
        self.bias = self._weight[:, -1]
        self._x = np.ones((len(weight) + 1, *servers), np.float32)

    def __call__(self, *parts: Part, out: Array | None = None) -> Array:
        end = 0
        for part in parts:
            self._x[end : (end := end + len(part))] = part
        return self._weight.dot(self._x, out)


def linear(weights: Weights, *servers: int) -> Affine:
    return Affine(weights[".weight"], weights[".bias"], *servers)


def norm(scale: Array, *servers: int) -> Layer:
    """RMS norm over units, epsilon 1e-4, in place."""
    units, root, epsilon = len(scale), np.empty(servers, np.float32), np.array(1e-4, np.float32)
    scale = np.repeat(scale, math.prod(servers)).reshape(units, *servers)
    mean = np.full(units, 1 / units, np.float32)

    def apply(x: Array) -> Array:
        if servers:
            squares = mean.dot(x * x)
            squares += epsilon
            np.sqrt(squares, root)
        else:
            root[()] = math.sqrt(x.dot(x) / units + 1e-4)
        x /= root
        x *= scale
        return x

    return apply


def dense(weights: Weights, *servers: int) -> Callable[..., Array]:
    """A hidden layer: linear, norm, SiLU."""
    affine, normed = linear(weights.of(".linear"), *servers), norm(weights[".norm.scale"] / 2, *servers)
    return lambda *parts: silu_of_twice(normed(affine(*parts)))


def gru(weights: Weights, *servers: int) -> Callable[..., Array]:
    """The cell of `nn/layers.py`: `(h, *inputs) -> h'`."""
    units = len(weights[".norm.scale"]) // 3
    reset, candidate, update = np.split(np.arange(3 * units), 3)
    order = np.concatenate([reset, update, candidate])  # both gates pass one tanh
    halves = np.repeat(np.array([1 / 2, 1 / 2, 1 / 4], np.float32), units)  # sigmoid 2 x = (1 + tanh x) / 2
    normed = norm(weights[".norm.scale"][order] * halves, *servers)
    weight = np.vstack([weights[".inputs.weight"], weights[".recurrent.weight"]])[:, order]
    affine = Affine(weight, (weights[".inputs.bias"] + weights[".recurrent.bias"])[order], *servers)
    parts = np.empty((3 * units, *servers), np.float32)
    (reset, update, candidate), gates = np.split(parts, 3), parts[: 2 * units]

    def step(h: Array, *inputs: Part) -> Array:
        normed(affine(*inputs, h, out=parts))
        np.subtract(update, HALF, update)  # it leans to keeping
        np.tanh(gates, gates)
        np.add(gates, ONE, gates)  # twice the sigmoid
        np.multiply(candidate, reset, candidate)
        new = silu_of_twice(candidate)
        new -= h
        new *= update
        new *= HALF
        new += h
        return new

    return step


def shared_rows(weights: Weights, servers: int) -> Callable[[Sequence[Array], Sequence[Part]], Array]:
    """Hidden layers that each server passes, its numbers in parts [G, N], together with the same context in parts [D]:
    to each, the context's share is a bias."""
    of_context = Affine(weights[".context.weight"], weights[".context.bias"] + weights[".rows.bias"])
    of_rows, normed = linear(weights.of(".rows"), servers), norm(weights[".norm.scale"] / 2, servers)
    deeper = []
    while (path := f".deeper.layers[{len(deeper)}]") in weights:
        deeper.append(dense(weights.of(path), servers))

    def apply(rows: Sequence[Array], context: Sequence[Part]) -> Array:
        of_context(*context, out=of_rows.bias)
        x = silu_of_twice(normed(of_rows(*rows)))
        for layer in deeper:
            x = layer(x)
        return x

    return apply


def masked_pool(rows: Array, mask: Array | None) -> Array:
    """Mean and maximum [2 U] over the servers of [U, N] that count, one below the other."""
    there = rows if mask is None else rows[:, mask]
    if not there.size:
        return np.zeros(2 * len(rows), rows.dtype)
    return np.concatenate([there.mean(1), there.max(1)])
