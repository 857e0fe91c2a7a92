"""Dividing arrays among devices by JAX's own sharding: one program, written as for one device, run by all of them.

The one mesh axis has a name here, and arrays are told where to lie. What is divided, the agents and `train/devices.py`
decide.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

AXIS = "devices"
"""The only axis of every mesh."""


def copied(mesh: Mesh) -> NamedSharding:
    """All of it on each device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """An equal part along `axis` on each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def divide[T: PyTree[Array]](tree: T, mesh: Mesh | None, axis: int = 0) -> T:
    """Within a program: go on with the arrays of `tree` divided along `axis`; without a mesh, as they are.

    The compiler finds by itself how to divide what follows from divided arrays. It has to be told where rows were
    picked from all devices: else each device would go on with all of the rows.
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, divided(mesh, axis))
