"""The memory worlds, step by step and to the last bit against recordings of popgym and bsuite (`golden/`)."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import batch_reset, batch_step
from reverie.envs.memory import autoencode, concentration, memory_chain, repeat_previous
from reverie.envs.memory.autoencode import Autoencode
from reverie.envs.memory.concentration import Concentration
from reverie.envs.memory.discounting_chain import DiscountingChain
from reverie.envs.memory.memory_chain import MemoryChain
from reverie.envs.memory.repeat_previous import RepeatPrevious

GOLDEN = Path(__file__).parent / "golden" / "memory.npz"
FIELDS = ("chance", "actions", "observation", "reward", "terminated", "truncated")
CARD_GAMES = {"repeat_previous": repeat_previous, "autoencode": autoencode, "concentration": concentration}
KEY = jax.random.key(2)

with np.load(GOLDEN) as _arrays:
    EPISODES = sorted({name.rpartition("/")[0] for name in _arrays})
WORLDS = sorted({name.rpartition("/")[0] for name in EPISODES})


@cache
def recorded(name):
    with np.load(GOLDEN) as arrays:
        return {field: arrays[f"{name}/{field}"] for field in FIELDS}


def chain(length, bits):
    """A chain of that length, as one of two in the same world."""
    return MemoryChain((length, 2), bits)


def world(name):
    kind, variant = name.split("/")
    if kind in CARD_GAMES:
        return CARD_GAMES[kind].LEVELS[variant]
    return DiscountingChain() if kind == "discounting_chain" else chain(*map(int, variant.split("-")))


def opening(env, chance):
    """The episode that begins as chance decided."""
    if isinstance(env, DiscountingChain):
        return env.reset(jnp.asarray(chance, jnp.int32), KEY)
    chance = jnp.asarray(chance, jnp.int32)
    return env.deal(chance[:-1], chance[-1], jnp.int32(0)) if isinstance(env, MemoryChain) else env.deal(chance)


def replayed(env, chance, actions):
    """The timesteps of an episode played with `actions`, the opening one included."""

    @jax.jit
    def play(chance, actions):
        task = jnp.asarray(chance, jnp.int32) if isinstance(env, DiscountingChain) else jnp.zeros(())
        state, timestep = opening(env, chance)
        _, later = jax.lax.scan(lambda state, action: env.step(task, state, action, KEY), state, actions)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), timestep, later)

    return play(jnp.asarray(chance), jnp.asarray(actions, jnp.int32))


@pytest.mark.parametrize("name", WORLDS)
def test_every_step_is_that_of_the_package(name):
    env = world(name)
    for episode in (recorded(e) for e in EPISODES if e.rpartition("/")[0] == name):
        timesteps = replayed(env, episode["chance"], episode["actions"])
        entries = [np.asarray(timesteps.observation[entry]) for entry in env.observation_spec]
        np.testing.assert_array_equal(np.concatenate(entries, -1), episode["observation"])
        np.testing.assert_array_equal(timesteps.reward, episode["reward"].astype(np.float32))
        np.testing.assert_array_equal(timesteps.is_terminal, episode["terminated"])
        np.testing.assert_array_equal(timesteps.is_last, episode["terminated"] | episode["truncated"])
        np.testing.assert_array_equal(timesteps.is_first, np.arange(len(timesteps.reward)) == 0)


def test_the_recordings_hold_all_that_can_happen():
    returns = {name: recorded(name)["reward"].sum() for name in EPISODES}
    for game in ("repeat_previous", "autoencode"):
        for level in ("easy", "medium", "hard"):
            assert returns[f"{game}/{level}/0"] == pytest.approx(1)
            assert -0.9 < returns[f"{game}/{level}/2"] < 0
    ends = {name: recorded(name)["terminated"][-1] for name in EPISODES if name.startswith("concentration")}
    assert set(ends.values()) == {True, False}, "games are won and cut"
    paid = {round(float(r) * 104) for r in recorded("concentration/easy/2")["reward"]}
    assert {-2, -1, 0, 4} <= paid, "pairs are missed, found, and cards turned again"
    assert {returns[f"memory_chain/100-1/{i}"] for i in range(4)} == {-1.0, 1.0}
    assert {returns[name] for name in EPISODES if name.startswith("discounting")} == {1.0, 1.1}


@pytest.mark.parametrize(
    ("env", "values"),
    [
        (RepeatPrevious(), [13] * 4),
        (Autoencode(decks=2), [26] * 4),
        (Concentration(decks=2), [52] * 2),
        (Concentration(match="ranks"), [4] * 13),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, list) else "",
)
def test_decks_are_complete_and_shuffled_anew(env, values):
    states, _ = batch_reset(env, jnp.zeros(64), KEY)
    cards = np.asarray(states[0])
    for row in cards:
        np.testing.assert_array_equal(np.bincount(row), values)
    assert len({tuple(row) for row in cards}) == 64
    deviation = cards.mean(0) - (len(values) - 1) / 2  # of the mean of 64 draws at each place
    assert np.abs(deviation).max() < 5 * cards.std() / 8


def test_bits_and_queries_of_the_memory_chain_are_fair():
    states, _ = batch_reset(MemoryChain((2,), bits=4), jnp.zeros(2000), KEY)
    np.testing.assert_allclose(states.context.mean(0), 0.5, atol=0.05)
    np.testing.assert_allclose(np.bincount(states.query) / 2000, 0.25, atol=0.05)
    assert abs(np.corrcoef(states.context[:, 0], states.query)[0, 1]) < 0.1


@pytest.mark.parametrize(
    "env",
    [RepeatPrevious(), Autoencode(), Concentration(), MemoryChain((3,), 2), DiscountingChain()],
    ids=lambda x: type(x).__name__,
)
def test_episodes_run_in_a_batch_and_begin_again(env):
    tasks = jnp.zeros(2, jnp.int32)
    states, timesteps = batch_reset(env, tasks, KEY)

    @jax.jit
    def play(states, timesteps):
        def step(carry, key):
            carry = batch_step(env, tasks, *carry, jnp.zeros(2, jnp.int32), key)
            return carry, carry[1]

        return jax.lax.scan(step, (states, timesteps), jax.random.split(KEY, 120))[1]

    seen = play(states, timesteps)
    for name, spec in env.observation_spec.items():
        assert seen.observation[name].shape == (120, 2, *spec.shape)
        if spec.categories is not None:
            assert 0 <= seen.observation[name].min() <= seen.observation[name].max() < spec.categories
    assert seen.is_last[:-1].any()
    np.testing.assert_array_equal(seen.is_first[1:], seen.is_last[:-1])


def test_the_first_cards_of_a_deck_are_named_as_the_whole_deck_is():
    env = Autoencode(parts=(1, 4, 52))
    suits = jax.random.randint(KEY, (52,), 0, 4)
    for task, part in enumerate(env.parts):
        answers = np.concatenate([np.zeros(part - 1, int), suits[:part][::-1]])  # nothing to name while one watches
        state, opened = env.deal(suits, jnp.int32(task))
        _, later = jax.lax.scan(lambda s, a, task=task: env.step(jnp.int32(task), s, a, KEY), state, answers)
        timesteps = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), opened, later)
        np.testing.assert_array_equal(np.flatnonzero(timesteps.is_last), [2 * part - 1])
        np.testing.assert_array_equal(timesteps.observation["mode"][:, 0], np.arange(2 * part) < part - 1)
        np.testing.assert_array_equal(timesteps.observation["suit"][:part, 0], suits[:part])
        np.testing.assert_allclose(timesteps.reward, np.where(np.arange(2 * part) < part, 0, 1 / 52))
    assert env.optimal_return == pytest.approx((1 + 4 + 52) / (3 * 52))
    assert Autoencode().optimal_return == 1


def test_sweeps_are_those_of_bsuite():
    assert len(memory_chain.LENGTHS) == 23
    assert len(memory_chain.SIZES) == 17
    assert (memory_chain.LENGTHS[-1], memory_chain.SIZES[-1]) == (100, 40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepeatPrevious(k=52), "k must lie in 1 .. 51, got 52"),
        (lambda: Autoencode(decks=0), "decks must be at least 1, got 0"),
        (lambda: Autoencode(parts=(1, 53)), r"parts must lie in 1 .. 52 \(all cards\), got \(1, 53\)"),
        (lambda: Concentration(decks=0), "decks must be at least 1, got 0"),
        (lambda: MemoryChain(lengths=(3, 0)), r"lengths must have items that are at least 1, got \(3, 0\)"),
        (lambda: MemoryChain(bits=0), "bits must be at least 1, got 0"),
    ],
)
def test_impossible_worlds_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
