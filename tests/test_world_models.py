"""The contract of world models, for each of them, and what the encoders make of every kind of observation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reverie.envs.core import ArraySpec
from reverie.models.core import Sequence
from reverie.models.encoders import Decoder, Encoder
from reverie.models.rssm import PRESETS, RSSM, RSSMConfig
from reverie.models.set_rssm import SetRSSM, SetRSSMConfig
from reverie.nn.optimiser import OptimiserConfig, optimiser

KEY = jax.random.key(11)
SERVERS = 3
SPEC = {
    "servers": ArraySpec((SERVERS, 1), "servers"),
    "clock": ArraySpec((1,)),
    "mask": ArraySpec((SERVERS,), "mask"),
}


class Case(NamedTuple):
    """A model under test. Without free nats, so that both KL losses have a gradient."""

    build: Callable
    config: object


MODELS = {
    "rssm": Case(RSSM, dataclasses.replace(PRESETS["tiny"], free_nats=0.0)),
    "set_rssm": Case(
        SetRSSM,
        SetRSSMConfig(units=32, deter=32, stoch=4, world_deter=32, world_stoch=4, classes=4, free_nats=0.0),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    case, rng = MODELS[request.param], np.random.default_rng(0)
    model = eqx.filter_jit(case.build)(case.config, SPEC, SERVERS, key=KEY)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), x.dtype), model)


class Toy(NamedTuple):
    """A deterministic world: the chosen server gets a job of size 2, then every server works off 1; it holds up to 3."""

    backlog: np.ndarray

    def step(self, action: np.ndarray) -> "Toy":
        return Toy(np.clip(self.backlog + 2 * np.eye(SERVERS)[action] - 1, 0, 3))

    @property
    def reward(self) -> np.ndarray:
        return -self.backlog.sum(-1)


def toy_sequence(batch: int, length: int, episode: int, seed: int = 0, stagger: int = 5) -> Sequence:
    """Random play of `Toy` in episodes of `episode` steps; stream b begins `stagger * b` steps into its first."""
    rng = np.random.default_rng(seed)
    world, rows = Toy(rng.integers(4, size=(batch, SERVERS))), []
    for t in range(length):
        clock = (np.arange(batch) * stagger + t) % episode
        first, last = clock == 0, clock == episode - 1
        action = rng.integers(SERVERS, size=batch)
        world = Toy(np.where(first[:, None], rng.integers(4, size=(batch, SERVERS)), world.step(action).backlog))
        done = np.where(first[:, None], 0, np.eye(SERVERS)[action])
        observation = {
            "servers": world.backlog[..., None].astype(np.float32),
            "clock": clock[:, None].astype(np.float32),
            "mask": np.ones((batch, SERVERS), bool),
        }
        reward = np.where(first, 0, world.reward)
        rows.append(Sequence(observation, done.astype(np.float32), reward.astype(np.float32), first, last, last))
    return jax.tree.map(lambda *x: jnp.stack(x, 1), *rows)


def part(tree, start: int, stop: int):
    """Steps `start` to `stop` of leaves [B, T, ...]."""
    return jax.tree.map(lambda x: x[:, start:stop], tree)


def assert_trees_close(left, right, atol: float):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol)


# Compiled once for each model: the tests below share their shapes.
@jax.jit
def observe(model, state, sequence: Sequence, noise):
    return model._observe(state, sequence.observation, sequence.action, sequence.is_first, noise)[0]


@jax.jit
def imagine(model, state, action, key):
    state = model.imagine(state, action, key)
    features = model.features(state)
    return state, features.context, model.reward(features), model.continues(features)


# --- the contract --------------------------------------------------------------------------------------------------


def test_a_sequence_equals_its_steps_across_resets(model):
    sequence, noise = toy_sequence(batch=4, length=12, episode=5), model._noise((4, 12), KEY)
    together = observe(model, model.initial(4), sequence, noise)
    state, alone = model.initial(4), []
    for t in range(12):
        now = observe(model, state, *part((sequence, noise), t, t + 1))
        state = jax.tree.map(lambda x: x[:, 0], now)
        alone.append(state)
    assert_trees_close(together, jax.tree.map(lambda *x: jnp.stack(x, 1), *alone), atol=2e-5)


def test_observing_with_a_key_is_observing_with_its_noise(model):
    sequence = toy_sequence(batch=4, length=1, episode=5)
    seen = sequence.observation, sequence.action, sequence.is_first
    by_key = jax.jit(lambda *inputs: model.observe(*inputs))(model.initial(4), *seen, KEY)
    assert_trees_close(by_key, observe(model, model.initial(4), sequence, model._noise((4, 1), KEY)), atol=1e-6)


def test_nothing_leaks_past_a_reset(model):
    clean, other = (toy_sequence(batch=4, length=12, episode=20, seed=seed) for seed in (0, 9))
    reset, noise = 7, model._noise((4, 12), KEY)
    clean = clean._replace(is_first=clean.is_first.at[:, reset].set(True))
    before = jax.tree.map(lambda a, b: jnp.concatenate([b[:, :reset], a[:, reset:]], 1), clean, other)
    ending = clean.action.at[:, : reset + 1].set(other.action[:, : reset + 1] + 7)  # the action into the reset as well
    dirty = before._replace(action=ending, is_first=clean.is_first)
    start = jax.tree.map(lambda x: x if x.dtype == bool else x + 1e3, model.initial(4))
    pairs = zip(
        jax.tree.leaves(observe(model, model.initial(4), clean, noise)),
        jax.tree.leaves(observe(model, start, dirty, noise)),
        strict=True,
    )
    changed = []
    for a, b in pairs:
        np.testing.assert_array_equal(a[:, reset:], b[:, reset:])
        changed.append((a[:, :reset] != b[:, :reset]).any())
    assert any(changed)


def test_a_state_remembers_within_an_episode(model):
    sequence, noise = toy_sequence(batch=4, length=12, episode=100), model._noise((4, 12), KEY)
    sequence = sequence._replace(is_first=sequence.is_first & False)
    contexts = []
    for server in range(2):
        action = sequence.action.at[:, 2].set(jnp.eye(SERVERS)[server])
        states = observe(model, model.initial(4), sequence._replace(action=action), noise)
        contexts.append(model.features(states).context)
    assert (contexts[0][:, :2] == contexts[1][:, :2]).all()
    assert (contexts[0][:, 9] != contexts[1][:, 9]).any(-1).all()


def test_dreams_have_the_shape_of_states_and_depend_on_the_action(model):
    sequence = toy_sequence(batch=4, length=12, episode=100)
    states = observe(model, model.initial(4), sequence, model._noise((4, 12), KEY))
    state = jax.tree.map(lambda x: x[:, -1], states)
    (dream, context, reward, continues), (_, other, _, _) = (
        imagine(model, state, jnp.tile(jnp.eye(SERVERS)[server], (4, 1)), KEY) for server in range(2)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), dream) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert (context != other).any(-1).all()
    assert reward.shape == (4,)
    assert ((continues > 0) & (continues < 1)).all()
    assert model.discount == pytest.approx(1 - 1 / 333)


def test_replayed_states_are_what_was_stored(model):
    sequence = toy_sequence(batch=4, length=12, episode=20)
    states = observe(model, model.initial(4), sequence, model._noise((4, 12), KEY))
    stored = model.compress(states)
    assert sum(x.nbytes for x in jax.tree.leaves(stored)) < sum(x.nbytes for x in jax.tree.leaves(states)) / 2
    again = model.expand(stored)
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, states)
    assert_trees_close(again, states, atol=2.0**-8)
    assert (again.stoch == states.stoch).all()


def test_losses_pull_where_they_should(model):
    """Everything but the dynamics loss is felt by what sees the observation of the same step."""
    sequence = toy_sequence(batch=4, length=1, episode=20)
    names = ["model/dyn", "model/rep", "model/reconstruction", "model/reward", "model/continue"]
    seen = {name: sequence.observation[name] for name in ("servers", "clock")}

    @jax.jit
    @jax.jacrev
    def felt(seen):
        given = sequence._replace(observation=sequence.observation | seen)
        loss, (_, metrics) = model.loss(model.initial(4), given, KEY)
        return {name: metrics[name] for name in names} | {"loss": loss}

    gradients = felt(seen)
    strength = {name: sum(jnp.abs(x).sum() for x in gradient.values()) for name, gradient in gradients.items()}
    assert all(np.isfinite(value) for value in strength.values())
    assert (gradients["model/dyn"]["servers"] == 0).all()
    assert all(strength[name] > 0 for name in names[1:])
    total = sum(gradients[name]["servers"] for name in names) - 0.9 * gradients["model/rep"]["servers"]
    np.testing.assert_allclose(gradients["loss"]["servers"], total, rtol=1e-3, atol=1e-5)


def test_models_batch_under_vmap(model):
    """Seeds and experts are a `vmap` over models."""
    inputs = model.initial(4), jnp.zeros((4, SERVERS)), KEY
    models = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), model)
    together = jax.vmap(lambda model: imagine(model, *inputs))(models)
    assert_trees_close(jax.tree.map(lambda x: x[0], together), imagine(model, *inputs), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_toy_world_is_learned_and_dreamt(name):
    """One batch, overfitted: the losses fall, and dreams foretell the rewards of other games."""
    case = MODELS[name]
    config = dataclasses.replace(case.config, free_nats=1.0)
    model = eqx.filter_jit(case.build)(config, SPEC, SERVERS, key=KEY)
    chain = optimiser(OptimiserConfig(learning_rate=4e-3, warmup=20))
    games = toy_sequence(batch=512, length=12, episode=9, stagger=2)

    @jax.jit
    def train(model, keys):
        def update(carry, key):
            model, state = carry
            batch = jax.tree.map(lambda x: x[jax.random.choice(key, 512, (16,))], games)

            def loss(model):
                return model.loss(model.initial(16), batch, key)

            gradient, (_, metrics) = jax.grad(loss, has_aux=True)(model)
            step, state = chain.update(gradient, state, model)
            return (optax.apply_updates(model, step), state), metrics

        (model, _), metrics = jax.lax.scan(update, (model, chain.init(model)), keys)
        return model, metrics

    model, metrics = train(model, jax.random.split(KEY, UPDATES))
    for metric in ("model/reconstruction", "model/reward", "model/continue"):
        assert metrics[metric][-20:].mean() < 0.5 * metrics[metric][:20].mean(), metric

    @jax.jit
    def foretell(seen, actions, key):
        states = model.observe(model.initial(64), seen.observation, seen.action, seen.is_first, key)
        last = jax.tree.map(lambda x: x[:, -1], states)

        def dream(state, now):
            state = model.imagine(state, *now)
            return state, model.reward(model.features(state))

        inputs = jnp.swapaxes(actions, 0, 1), jax.random.split(key, actions.shape[1])
        return jnp.swapaxes(jax.lax.scan(dream, last, inputs)[1], 0, 1)

    game = toy_sequence(batch=64, length=8, episode=9, seed=5, stagger=0)
    foretold = foretell(part(game, 0, 4), game.action[:, 4:], KEY)
    real = game.reward[:, 4:]
    error, spread = jnp.abs(foretold - real).mean(), jnp.abs(real - real.mean()).mean()
    print(name, error, spread, {k: (float(v[:20].mean()), float(v[-20:].mean())) for k, v in metrics.items()})
    assert error < 0.5 * spread
