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
    "rssm_reading_sets": Case(RSSM, dataclasses.replace(PRESETS["tiny"], free_nats=0.0, servers="set")),
    "set_rssm": Case(
        SetRSSM,
        SetRSSMConfig(units=32, deter=32, stoch=4, world_deter=32, world_stoch=4, classes=4, free_nats=0.0),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    case = MODELS[request.param]

    @eqx.filter_jit
    def build(key):
        leaves, tree = jax.tree.flatten(case.build(case.config, SPEC, SERVERS, key=key))
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])

    return build(KEY)


class Toy(NamedTuple):
    """A deterministic world: the chosen server gets a job of size 1, and all work off 0.4 per step."""

    backlog: np.ndarray

    def step(self, action: np.ndarray) -> "Toy":
        return Toy(np.maximum(0, self.backlog + np.eye(SERVERS)[action] - 0.4))

    @property
    def reward(self) -> np.ndarray:
        return -self.backlog.sum(-1)


def toy_sequence(batch: int, length: int, episode: int, seed: int = 0, stagger: int = 5) -> Sequence:
    """Random play of `Toy` in episodes of `episode` steps; stream b begins `stagger * b` steps into its first."""
    rng = np.random.default_rng(seed)
    world, rows = Toy(rng.random((batch, SERVERS)) * 2), []
    for t in range(length):
        clock = (np.arange(batch) * stagger + t) % episode
        first, last = clock == 0, clock == episode - 1
        action = rng.integers(SERVERS, size=batch)
        world = Toy(np.where(first[:, None], rng.random((batch, SERVERS)) * 2, world.step(action).backlog))
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


# --- the contract --------------------------------------------------------------------------------------------------


def test_a_sequence_equals_its_steps_across_resets(model):
    sequence = toy_sequence(batch=4, length=14, episode=6)
    noise = model._noise((4, 14), KEY)
    observe = jax.jit(lambda state, s, noise: model._observe(state, s.observation, s.action, s.is_first, noise)[0])
    together = observe(model.initial(4), sequence, noise)
    state, alone = model.initial(4), []
    for t in range(14):
        now = observe(state, *part((sequence, noise), t, t + 1))
        state = jax.tree.map(lambda x: x[:, 0], now)
        alone.append(state)
    assert_trees_close(together, jax.tree.map(lambda *x: jnp.stack(x, 1), *alone), atol=2e-5)


def test_nothing_leaks_past_a_reset(model):
    sequence = toy_sequence(batch=4, length=12, episode=20)
    reset = 7
    sequence = sequence._replace(is_first=sequence.is_first.at[:, reset].set(True))
    other = toy_sequence(batch=4, length=12, episode=20, seed=9)
    observation = jax.tree.map(
        lambda a, b: jnp.concatenate([b[:, :reset], a[:, reset:]], 1), sequence.observation, other.observation
    )
    action = sequence.action.at[:, : reset + 1].set(other.action[:, : reset + 1] + 7)  # what ended the episode as well
    start = jax.tree.map(lambda x: x if x.dtype == bool else x + 1e3, model.initial(4))
    observe = jax.jit(lambda *inputs: model.observe(*inputs))
    clean = observe(model.initial(4), sequence.observation, sequence.action, sequence.is_first, KEY)
    dirty = observe(start, observation, action, sequence.is_first, KEY)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a[:, reset:], b[:, reset:])
    assert any((a[:, :reset] != b[:, :reset]).any() for a, b in zip(*map(jax.tree.leaves, (clean, dirty)), strict=True))


def test_a_state_remembers_within_an_episode(model):
    sequence = toy_sequence(batch=4, length=6, episode=100)
    first, calm = sequence.is_first.at[:, 0].set(True), sequence.is_first & False
    states = [
        model.observe(model.initial(4), sequence.observation, sequence.action.at[:, 2].set(a), first | calm, KEY)
        for a in (jnp.eye(SERVERS)[0], jnp.eye(SERVERS)[1])
    ]
    context = [model.features(state).context for state in states]
    assert (context[0][:, :2] == context[1][:, :2]).all()
    assert (context[0][:, 5] != context[1][:, 5]).any(-1).all()


def test_dreams_have_the_shape_of_states_and_depend_on_the_action(model):
    state = model.initial(4)
    dreams = [model.imagine(state, jnp.tile(jnp.eye(SERVERS)[a], (4, 1)), KEY) for a in range(2)]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), dreams[0]) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    features = [model.features(dream) for dream in dreams]
    assert (features[0].context != features[1].context).any(-1).all()
    assert model.reward(features[0]).shape == (4,)
    continues = model.continues(features[0])
    assert ((continues > 0) & (continues < 1)).all()
    assert model.discount == pytest.approx(1 - 1 / 333)


def test_replayed_states_are_what_was_stored(model):
    sequence = toy_sequence(batch=4, length=3, episode=20)
    states = model.observe(model.initial(4), sequence.observation, sequence.action, sequence.is_first, KEY)
    stored = model.compress(states)
    assert sum(x.nbytes for x in jax.tree.leaves(stored)) < sum(x.nbytes for x in jax.tree.leaves(states)) / 2
    again = model.expand(stored)
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, states)
    assert_trees_close(again, states, atol=2.0**-8)
    assert (again.stoch == states.stoch).all()


def gradient_by_observation(model, metric: str):
    """How a metric of one step feels what is seen in it."""
    sequence = toy_sequence(batch=4, length=1, episode=20)

    def value(servers):
        seen = sequence._replace(observation=sequence.observation | {"servers": servers})
        return model.loss(model.initial(4), seen, KEY)[1][1][metric]

    return jax.grad(value)(sequence.observation["servers"])


@pytest.mark.parametrize("metric", ["model/rep", "model/reward", "model/continue", "model/reconstruction"])
def test_representation_feels(model, metric):
    gradient = gradient_by_observation(model, metric)
    assert jnp.isfinite(gradient).all()
    assert (gradient != 0).any()


def test_representation_does_not_feel_the_dynamics_loss_of_its_own_step(model):
    assert (gradient_by_observation(model, "model/dyn") == 0).all()


def test_the_loss_is_the_weighted_sum_of_its_metrics(model):
    loss, (states, metrics) = model.loss(model.initial(4), toy_sequence(4, 5, 20), KEY)
    terms = {name: metrics[f"model/{name}"] for name in ("dyn", "rep", "reconstruction", "reward", "continue")}
    np.testing.assert_allclose(loss, sum(terms.values()) - 0.9 * terms["rep"], rtol=1e-5)
    assert all(leaf.shape[:2] == (4, 5) for leaf in jax.tree.leaves(states))
    assert metrics["model/kl"] > 0


def test_models_batch_under_vmap(model):
    """Seeds and experts are a `vmap` over models."""
    models = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), model)
    states = jax.vmap(lambda model, key: model.imagine(model.initial(4), jnp.zeros((4, SERVERS)), key))(
        models, jnp.stack([KEY, KEY])
    )
    alone = model.imagine(model.initial(4), jnp.zeros((4, SERVERS)), KEY)
    assert_trees_close(jax.tree.map(lambda x: x[0], states), alone, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_toy_world_is_learned_and_dreamt(name):
    """One batch, overfitted: the losses fall, and dreams foretell the rewards of other games."""
    case = MODELS[name]
    config = dataclasses.replace(case.config, free_nats=1.0)
    model = eqx.filter_jit(case.build)(config, SPEC, SERVERS, key=KEY)
    chain = optimiser(OptimiserConfig(learning_rate=2e-3, warmup=20))
    sequence = toy_sequence(batch=16, length=16, episode=12)

    @jax.jit
    def train(model, keys):
        def update(carry, key):
            model, state = carry
            gradient, (_, metrics) = jax.grad(lambda model: model.loss(model.initial(16), sequence, key), has_aux=True)(
                model
            )
            step, state = chain.update(gradient, state, model)
            return (optax.apply_updates(model, step), state), metrics

        (model, _), metrics = jax.lax.scan(update, (model, chain.init(model)), keys)
        return model, metrics

    model, metrics = train(model, jax.random.split(KEY, 300))
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

    game = toy_sequence(batch=64, length=10, episode=12, seed=5, stagger=0)
    foretold = foretell(part(game, 0, 6), game.action[:, 6:], KEY)
    real = game.reward[:, 6:]
    error, spread = jnp.abs(foretold - real).mean(), jnp.abs(real - real.mean()).mean()
    print(name, error, spread, {k: (float(v[:20].mean()), float(v[-20:].mean())) for k, v in metrics.items()})
    assert error < 0.5 * spread
