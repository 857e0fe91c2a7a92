"""Rows that pass different modules of one kind, in one batched program whose cost grows with the rows alone.

The modules are stacked, leaves [E, ...]. Rows are laid side by side by module, in blocks of rows of one module each; a
block is padded where its module has no more rows. So M rows take at most M / block + E blocks, however many modules
there are that few rows or none pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

LEAST, MOST = 8, 64
"""Rows of a block: so many that reading the weights of a module costs little beside multiplying by them,
as long as there are as many for each module."""


class Groups(NamedTuple):
    """How M rows are laid into blocks."""

    source: Int[Array, "b m"]
    """The row at each place, M where there is none."""
    place: Int[Array, " M"]
    """The place of each row."""
    module: Int[Array, " b"]
    """The module of each block."""


def groups(index: Int[Array, " M"], modules: int) -> Groups:
    """The plan for rows that pass the modules `index`, below `modules` (E)."""
    rows = index.shape[0]
    block = min(rows, max(LEAST, min(MOST, rows // modules)))
    order = jnp.argsort(index, stable=True)
    counts = jnp.zeros((modules,), jnp.int32).at[index].add(1)
    blocks = -(-counts // block)
    begins = (jnp.cumsum(blocks) - blocks) * block  # place of each module's first row
    rank = jnp.arange(rows) - (jnp.cumsum(counts) - counts)[index[order]]
    place = jnp.zeros((rows,), jnp.int32).at[order].set(begins[index[order]] + rank)
    most = -(-rows // block) + min(modules, rows) - 1
    source = jnp.full((most * block,), rows).at[place].set(jnp.arange(rows)).reshape(most, block)
    module = jnp.searchsorted(jnp.cumsum(blocks), jnp.arange(most), side="right")
    return Groups(source, place, jnp.minimum(module, modules - 1))


def each(call: Callable[..., Any], modules: eqx.Module, index: Int[Array, "*B"], *rows: PyTree[Array]) -> PyTree[Array]:
    """`call(module, *rows)` for rows [*B, ...], each with that of the stacked `modules` that `index` says."""
    arrays, rest = eqx.partition(modules, eqx.is_array)
    count, axes = jax.tree.leaves(arrays)[0].shape[0], index.shape
    if count == 1:
        return call(one(modules, 0), *rows)
    plan = groups(index.reshape(-1), count)

    def lay(x: Array) -> Array:
        x = x.reshape(index.size, *x.shape[len(axes) :])
        return jnp.concatenate([x, jnp.zeros_like(x[:1])])[plan.source]

    def run(arrays: PyTree[Array], *rows: PyTree[Array]) -> PyTree[Array]:
        return call(eqx.combine(arrays, rest), *rows)

    done = jax.vmap(run)(jax.tree.map(lambda x: x[plan.module], arrays), *jax.tree.map(lay, rows))
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[plan.place].reshape(*axes, *y.shape[2:]), done)


def one(modules: eqx.Module, index: int | Array) -> Any:
    """One of stacked modules."""
    arrays, rest = eqx.partition(modules, eqx.is_array)
    return eqx.combine(jax.tree.map(lambda x: x[index], arrays), rest)


def stacked(make: Callable[..., Any], count: int, key: Key[Array, ""]) -> Any:
    """So many modules as one; the first and only one is that which `make(key)` would be."""
    return eqx.filter_vmap(make)(key[None] if count == 1 else jax.random.split(key, count))
