"""Replay: every stored field carries the id of its transition, so any misalignment shows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.train import replay as replays

STREAMS = 3


class Rows(NamedTuple):
    a: jax.Array
    b: jax.Array


def rows(first: int, steps: int) -> Rows:
    """Rows whose every field is the id 1000 * stream + time."""
    ids = first + jnp.arange(steps)[:, None] + 1000 * jnp.arange(STREAMS)
    return Rows(ids, jnp.stack([ids, -ids], -1).astype(jnp.float32))


def ring(capacity: int, written: int, chunk: int = 4) -> replays.Replay:
    state = replays.empty(jax.tree.map(lambda x: x[0], rows(0, 1)), capacity)
    for first in range(0, written, chunk):
        state = replays.add(state, rows(first, chunk))
    return state


@pytest.mark.parametrize("written", [8, 20, 24, 52])
def test_sequences_are_contiguous_and_never_cross_the_write_head(written):
    state, length = ring(20, written), 5
    place = replays.sample(state, 400, length, jnp.arange(0), jax.random.key(0))
    ids = np.asarray(replays.read(state, place).a)
    assert (np.diff(ids, axis=1) == 1).all()
    time = ids % 1000
    assert time.min() == max(0, written - 20), "the oldest row is never drawn, or an overwritten one is"
    assert time.max() == written - 1
    assert set(ids[:, 0] // 1000) == set(range(STREAMS))


def test_every_start_is_equally_likely():
    state = ring(20, 52)
    place = replays.sample(state, 20_000, 5, jnp.arange(0), jax.random.key(1))
    starts = np.asarray(replays.read(state, place).a)[:, 0]
    _, counts = np.unique(starts, return_counts=True)
    assert len(counts) == 16 * STREAMS
    expected = 20_000 / len(counts)
    assert (((counts - expected) ** 2) / expected).sum() < 90, "chi-square of 47 degrees of freedom, p < 1e-4"


def test_all_fields_of_a_row_stay_together():
    state = ring(20, 52)
    read = replays.read(state, replays.sample(state, 50, 5, jnp.arange(0), jax.random.key(2)))
    np.testing.assert_array_equal(read.b[..., 0], read.a)
    np.testing.assert_array_equal(read.b[..., 1], -read.a)


def test_fresh_sequences_are_the_newest_of_their_stream():
    state = ring(20, 52)
    place = replays.sample(state, 4, 5, jnp.array([2, 0]), jax.random.key(3))
    ids = np.asarray(replays.read(state, place).a)
    np.testing.assert_array_equal(ids[0], 2000 + np.arange(47, 52))
    np.testing.assert_array_equal(ids[1], np.arange(47, 52))


def test_writing_back_changes_the_named_field_at_that_place_only():
    state = ring(20, 52)
    place = replays.sample(state, 1, 5, jnp.arange(0), jax.random.key(4))
    after = replays.write(state, place, a=jnp.full((1, 5), -7))
    np.testing.assert_array_equal(replays.read(after, place).a, -7)
    assert (np.asarray(after.rows.a) == -7).sum() == 5
    np.testing.assert_array_equal(after.rows.b, state.rows.b)


def test_more_rows_than_the_ring_holds_is_an_error():
    state = replays.empty(jax.tree.map(lambda x: x[0], rows(0, 1)), 3)
    with pytest.raises(ValueError, match="4 steps at once do not fit into a capacity of 3"):
        replays.add(state, rows(0, 4))


class Told(NamedTuple):
    a: jax.Array
    task: jax.Array


def told_ring() -> replays.Replay:
    """A full ring of 20 steps, overwritten: 2 of 3 streams play task 0 all the time, the last 1 and, at times, 3."""
    ids = rows(0, 52).a
    task = jnp.where(jnp.arange(STREAMS) < 2, 0, jnp.where(jnp.arange(52)[:, None] % 20 < 5, 3, 1))
    told = Told(ids, task)
    state = replays.empty(jax.tree.map(lambda x: x[0], told), 20)
    for first in range(0, 52, 4):
        state = replays.add(state, jax.tree.map(lambda x, first=first: x[first : first + 4], told))
    return state


def test_each_task_is_drawn_as_often_as_any_other_and_none_that_was_not_played():
    state = told_ring()
    place = replays.sample(state, 6_000, 5, jnp.arange(0), jax.random.key(1), by=(state.rows.task, 5))
    read = replays.read(state, place)
    assert (np.diff(np.asarray(read.a), axis=1) == 1).all(), "a sequence crosses the write head"
    found = np.bincount(np.asarray(read.task)[:, 0], minlength=5)
    assert found[[2, 4]].sum() == 0
    np.testing.assert_allclose(found[[0, 1, 3]], 2_000, atol=150)  # 4 standard deviations
    within = np.asarray(read.a)[np.asarray(read.task)[:, 0] == 0, 0]
    assert len(np.unique(within)) == 2 * 16, "not all of a task's sequences are drawn"


def test_the_newest_is_drawn_as_much_more_often_than_the_oldest_as_was_asked_for():
    state = told_ring()
    place = replays.sample(state, 40_000, 5, jnp.arange(0), jax.random.key(2), recency=np.log(8.0))
    times = np.asarray(replays.read(state, place).a)[:, 0] % 1000
    found = np.bincount(times - times.min(), minlength=16)
    expected = 8.0 ** (np.arange(16) / 15)
    np.testing.assert_allclose(found, 40_000 * expected / expected.sum(), rtol=0.15)
