"""The mean of a loss over many rows and its gradient, taken a part of the rows at a time.

What networks make of thousands of rows does not fit into a CPU's cache, and to fill fresh memory takes longer there
than most arithmetic. So each part goes forward and back before the next one begins, and of all that stands between
nothing is held. Accelerators take all rows at once.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

ROWS = 1024
"""At most so many at a time on a CPU (of each seed, where several train at once), unless one step alone has more.
DreamerV3's actor and critic at size1m take as long for 256 or 512, and a third longer for 15,360."""


def map_in_parts(function: Callable[[PyTree], Array], rows: PyTree) -> Array:
    """What `function` makes of rows [H, n, ...]."""
    return whole(jax.lax.map(function, in_parts(rows, at_a_time(rows))))


@eqx.filter_custom_vjp
def mean_in_parts(
    learned: tuple[PyTree, PyTree], loss: Callable[..., tuple[Array, Any]], fixed: PyTree, rows: PyTree
) -> tuple[Float[Array, ""], Any]:
    """The mean over rows [H, n, ...] of `loss`, and of what it returns beside it.

    Arguments:
        learned: networks, and rows [H, n, ...] that have gradients too.
        loss: of (networks, fixed, rows that have gradients, rows), with a few of the H steps: the mean over these, and
            other means, whose gradients are not asked for. It must not close over arrays.
        fixed: arrays without gradients, such as networks that are not learned here.
        rows: those without gradients.
    """
    networks, inputs = learned
    steps = at_a_time(rows)
    given = in_parts(inputs, steps), in_parts(rows, steps)
    return mean(jax.lax.map(lambda part: loss(networks, fixed, *part), given))


@mean_in_parts.def_fwd
def _forward(perturbed, learned, loss, fixed, rows):
    networks, inputs = learned
    steps = at_a_time(rows)

    def part(total, given):
        inputs, rows = given
        both = eqx.filter_value_and_grad(lambda learned: loss(learned[0], fixed, learned[1], rows), has_aux=True)
        said, (gradient, of_inputs) = both((networks, inputs))
        return jax.tree.map(jnp.add, total, gradient), (said, of_inputs)

    none = jax.tree.map(jnp.zeros_like, eqx.filter(networks, eqx.is_inexact_array))
    total, (said, of_inputs) = jax.lax.scan(part, none, (in_parts(inputs, steps), in_parts(rows, steps)))
    parts = len(said[0])
    return mean(said), jax.tree.map(lambda x: x / parts, (total, whole(of_inputs)))


@mean_in_parts.def_bwd
def _backward(gradient, of_output, perturbed, learned, loss, fixed, rows):
    return jax.tree.map(lambda x: of_output[0] * x, gradient)


def at_a_time(rows: PyTree) -> int:
    """How many of the H steps, a divisor of H."""
    steps, width = jax.tree.leaves(rows)[0].shape[:2]
    if jax.default_backend() != "cpu":
        return steps
    return max(k for k in range(1, steps + 1) if steps % k == 0 and (k == 1 or k * width <= ROWS))


def in_parts(rows: PyTree, steps: int) -> PyTree:
    """[H, n, ...] as [P, steps, n, ...]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // steps, steps, *x.shape[1:]), rows)


def whole(parts: PyTree) -> PyTree:
    """[P, steps, n, ...] as [H, n, ...]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), parts)


def mean(parts: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.mean(0), parts)
