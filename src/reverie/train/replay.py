"""Replay on the device: a ring of the most recent experience of B streams, sampled as sequences.

Any pytree of rows can be stored. Sequences may cross the borders of episodes (models are told by `is_first`), never the
place where the ring is being overwritten.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree


class Replay(NamedTuple):
    """`rows` has leaves [C, B, ...]: capacity in time steps, streams."""

    rows: PyTree
    position: Int[Array, ""]
    """Where the next row is written."""
    filled: Int[Array, ""]
    """How many rows hold experience."""


class Place(NamedTuple):
    """Where sampled sequences lie in the ring, so that what is learned about them can be written back."""

    time: Int[Array, "*S L"]
    stream: Int[Array, "*S L"]


def empty(row: PyTree, capacity: int) -> Replay:
    """A ring for rows like `row` (leaves [B, ...]) with room for `capacity` (C) time steps."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)
    return Replay(rows, jnp.int32(0), jnp.int32(0))


def add(replay: Replay, rows: PyTree) -> Replay:
    """Append rows [T, B, ...], T at most the capacity, over the oldest ones."""
    steps, capacity = _length(rows), _length(replay.rows)
    if steps > capacity:
        raise ValueError(f"replay: {steps} steps at once do not fit into a capacity of {capacity}")
    time = (replay.position + jnp.arange(steps)) % capacity
    return Replay(
        jax.tree.map(lambda ring, new: ring.at[time].set(new.astype(ring.dtype)), replay.rows, rows),
        (replay.position + steps) % capacity,
        jnp.minimum(replay.filled + steps, capacity),
    )


def sample(
    replay: Replay,
    sequences: int,
    length: int,
    fresh: Int[Array, " R"],
    key: Key[Array, ""],
    by: tuple[Int[Array, "C B"], int] | None = None,
    recency: float = 0.0,
) -> Place:
    """Places of `sequences` (S) stretches of `length` (L) steps, equally likely unless told otherwise.

    The first R are not drawn: they are the newest stretches of the streams `fresh`, so that new experience is learned
    from at once and at least once. The ring must hold `length` rows or more.

    Arguments: `by`, the task of each row and how many there are (K): draw a task first, all that stretches begin in
    alike, and then one of its stretches. `recency`, the newest stretch is drawn e^recency times as often as the
    oldest (of a task), and those between accordingly.
    """
    capacity, streams = jax.tree.leaves(replay.rows)[0].shape[:2]
    time_key, stream_key = jax.random.split(key)
    newest = replay.filled - length
    oldest = replay.position - replay.filled
    drawn = sequences - fresh.shape[0]
    if by is not None or recency:
        place = jnp.arange(capacity)  # from the oldest row on
        weight = jnp.where(place <= newest, jnp.exp(recency * (place / jnp.maximum(1, newest) - 1)), 0.0)
        weight = jnp.broadcast_to(weight[:, None], (capacity, streams))
        if by is not None:
            task, tasks = by[0][(oldest + place) % capacity], by[1]
            total = jax.ops.segment_sum(weight.ravel(), task.ravel(), tasks)
            weight = weight / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[task]
        ends = jnp.cumsum(weight.ravel())
        chosen = jnp.searchsorted(ends, jax.random.uniform(time_key, (drawn,)) * ends[-1], side="right")
        start, stream = chosen // streams, chosen % streams
    else:
        start = jax.random.randint(time_key, (drawn,), 0, newest + 1)
        stream = jax.random.randint(stream_key, (drawn,), 0, streams)
    start, stream = jnp.concatenate([jnp.full(fresh.shape, newest), start]), jnp.concatenate([fresh, stream])
    time = (oldest + start[:, None] + jnp.arange(length)) % capacity
    return Place(time, jnp.broadcast_to(stream[:, None], time.shape))


def sample_of(
    replay: Replay,
    streams: Int[Array, " M"],
    count: int,
    length: int,
    key: Key[Array, ""],
    serves: Bool[Array, "C B"] | None = None,
    recent: int = 0,
) -> Place:
    """Places [M, S, L] of `count` (S) stretches of `length` (L) steps of each of the given streams.

    Arguments: `serves`, which rows a stretch may begin in, of which the newest `recent` do; all equally without. Where
    none does, it is the oldest.
    """
    capacity, newest = jax.tree.leaves(replay.rows)[0].shape[0], replay.filled - length
    oldest, shape = replay.position - replay.filled, (streams.shape[0], count)
    if serves is None:
        start = jax.random.randint(key, shape, 0, newest + 1)
    else:
        place = jnp.arange(capacity)  # from the oldest row on
        may = serves[(oldest + place) % capacity][:, streams].T & (place <= newest)  # [M, C]
        so_far = jnp.cumsum(may, 1)  # how many that may, up to each
        found = so_far[:, -1:]
        among = jnp.minimum(found, recent)
        rank = found - 1 - (jax.random.uniform(key, shape) * among).astype(jnp.int32)  # [M, S], among those that may
        start = jax.vmap(partial(jnp.searchsorted, side="right"))(so_far, rank)
        start = jnp.where(found > 0, start, 0)
    time = (oldest + start[..., None] + jnp.arange(length)) % capacity
    return Place(time, jnp.broadcast_to(streams[:, None, None], time.shape))


def read(replay: Replay, place: Place) -> PyTree:
    """The rows [*S, L, ...] at a place."""
    return jax.tree.map(lambda ring: ring[place.time, place.stream], replay.rows)


def write(replay: Replay, place: Place, **fields: PyTree) -> Replay:
    """Overwrite the named fields [S, L, ...] of the rows (a NamedTuple) at a place; the others stay."""

    def column(ring: Array, new: Array) -> Array:
        return ring.at[place.time, place.stream].set(new.astype(ring.dtype))

    changed = {name: jax.tree.map(column, getattr(replay.rows, name), new) for name, new in fields.items()}
    return replay._replace(rows=replay.rows._replace(**changed))


def _length(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]
