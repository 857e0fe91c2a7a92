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
from reverie.models.s3m import PRESETS as S3M_PRESETS
from reverie.models.s3m import S3M, S3MConfig
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
    config: RSSMConfig | SetRSSMConfig | S3MConfig


SMALL = SetRSSMConfig(units=32, deter=32, stoch=4, world_deter=32, world_stoch=4, classes=4, free_nats=0.0)
DISCRETE = {"rssm": Case(RSSM, dataclasses.replace(PRESETS["tiny"], free_nats=0.0)), "set_rssm": Case(SetRSSM, SMALL)}
GAUSSIAN = {
    f"{name}-gaussian": Case(case.build, dataclasses.replace(case.config, latent="gaussian"))
    for name, case in DISCRETE.items()
}
STATE_SPACE = {
    "s3m": Case(S3M, dataclasses.replace(S3M_PRESETS["tiny"], free_nats=0.0)),
    "s3m_siso_parallel": Case(
        S3M,
        dataclasses.replace(S3M_PRESETS["tiny"], free_nats=0.0, ssm="siso", state=4, policy="full", scan="parallel"),
    ),
    "s3m_ring_recurrent": Case(
        S3M, dataclasses.replace(S3M_PRESETS["tiny"], free_nats=0.0, modes="ring", posterior="recurrent", product=True)
    ),
}
MODELS = DISCRETE | GAUSSIAN | STATE_SPACE | {"set_ssm": Case(SetRSSM, dataclasses.replace(SMALL, cell="ssm"))}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    case, rng = MODELS[request.param], np.random.default_rng(0)
    model = eqx.filter_jit(case.build)(case.config, SPEC, SERVERS, key=KEY)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), x.dtype), model)


class Toy(NamedTuple):
    """A deterministic world: the chosen server gets 2 units of work (it holds up to 3), then all work off 1."""

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


def assert_trees_close(left, right, atol: float, rtol: float = 1e-5):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol, rtol=rtol)


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
    again = model.expand(stored)
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, states)
    for back, was in zip(jax.tree.leaves(again), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(np.asarray(back, np.float32), np.asarray(was, np.float32), rtol=2.0**-8, atol=2e-8)
    numbers = [x for x in jax.tree.leaves(states) if x.dtype != bool]
    smaller = sum(x.nbytes for x in jax.tree.leaves(stored) if x.dtype != bool) / sum(x.nbytes for x in numbers)
    if getattr(model.config, "latent", "discrete") == "discrete":
        assert (again.stoch == states.stoch).all()
        assert smaller <= 0.5
    else:
        assert smaller == 0.5


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
    """The losses fall, and after four steps seen, four steps dreamt foretell the rewards of games never played."""
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

    model, metrics = train(model, jax.random.split(KEY, 1000))
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
    assert error < 0.6 * spread


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_and_gaussian_models_differ_in_what_ends_in_latents_alone(name):
    """The ablation compares models of equal size: everything that reads z is the same."""
    discrete, gaussian = (
        eqx.filter_eval_shape(case.build, case.config, SPEC, SERVERS, key=KEY)
        for case in (DISCRETE[name], GAUSSIAN[f"{name}-gaussian"])
    )
    states = [eqx.filter_eval_shape(lambda model: model.initial(4), model) for model in (discrete, gaussian)]
    assert states[0] == states[1]
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
        for model in (discrete, gaussian)
    ]
    changed = {path for path, shape in shapes[0].items() if shapes[1][path] != shape}
    assert all("prior" in path or "posterior" in path for path in changed)
    for path in changed:
        assert shapes[1][path] == (*shapes[0][path][:-1], 2 * shapes[0][path][-1])


# --- what only the RSSM has ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 16}, "classes must be at least 2, got 1.*units=16"),
        ({"deter": 100}, "deter must be a positive multiple of blocks=8, got 100"),
        ({"unimix": 1.0}, "unimix.*1.0"),
        ({"horizon": 1.0}, "horizon.*1.0"),
        ({"rep_scale": -0.1}, "rep_scale.*-0.1"),
        ({"reward_layers": 0}, "reward_layers must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RSSMConfig(**options)


def test_half_precision_computes_in_half_and_learns_in_single():
    config = dataclasses.replace(PRESETS["tiny"], precision="bfloat16")
    model = eqx.filter_jit(RSSM)(config, SPEC, SERVERS, key=KEY)
    sequence = toy_sequence(batch=2, length=3, episode=5)

    @jax.jit
    @jax.grad
    def gradient(model):
        loss, (states, metrics) = model.loss(model.initial(2), sequence, KEY)
        assert {x.dtype for x in jax.tree.leaves(states)} == {jnp.dtype(jnp.bfloat16)}
        assert model.features(states).context.dtype == jnp.bfloat16
        assert {x.dtype for x in jax.tree.leaves((loss, metrics))} == {jnp.dtype(jnp.float32)}
        return loss

    for leaf in jax.tree.leaves(gradient(model)):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()


def test_free_nats_silence_both_kl_losses():
    config = dataclasses.replace(PRESETS["tiny"], free_nats=1e3)
    model = eqx.filter_jit(RSSM)(config, SPEC, SERVERS, key=KEY)
    sequence = toy_sequence(batch=2, length=3, episode=5)

    @jax.jit
    @jax.value_and_grad
    def pull(model):
        _, (_, metrics) = model.loss(model.initial(2), sequence, KEY)
        return metrics["model/dyn"] + metrics["model/rep"]

    value, gradient = pull(model)
    assert value == 2e3
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


# --- encoders ------------------------------------------------------------------------------------------------------

MIXED = {
    "number": ArraySpec((2,)),
    "symbol": ArraySpec((3,), categories=5),
    "servers": ArraySpec((4, 2), "servers"),
    "front": ArraySpec((48, 64, 3), "image"),
    "back": ArraySpec((48, 64, 1), "image"),
    "mask": ArraySpec((4,), "mask"),
}


def mixed_observation() -> dict:
    rng = np.random.default_rng(2)
    return {
        "number": jnp.asarray(rng.normal(size=(2, 2)), jnp.float32),
        "symbol": jnp.asarray(rng.integers(5, size=(2, 3)), jnp.int32),
        "servers": jnp.asarray(rng.normal(size=(2, 4, 2)), jnp.float32),
        "front": jnp.asarray(rng.integers(256, size=(2, 48, 64, 3)), jnp.uint8),
        "back": jnp.asarray(rng.integers(256, size=(2, 48, 64, 1)), jnp.uint8),
        "mask": jnp.asarray([[1, 1, 0, 1], [1, 0, 0, 0]], bool),
    }


@pytest.fixture(scope="module", params=["flat", "set"])
def encoder(request):
    return eqx.filter_jit(Encoder)(MIXED, 8, 2, 2, request.param, key=KEY)


@pytest.fixture(scope="module")
def decoder():
    return eqx.filter_jit(Decoder)(MIXED, 16, 12, 4, 8, 2, 2, key=KEY)


encode = jax.jit(lambda encoder, observation: encoder(observation))
features = jax.random.normal(KEY, (2, 28))


def test_every_entry_is_read_and_the_mask_is_not(encoder):
    observation = mixed_observation()
    tokens = encode(encoder, observation)
    assert tokens.shape == (2, encoder.size)
    for name, x in observation.items():
        changed = encode(encoder, observation | {name: x.at[0].set(~x[0] if x.dtype == bool else 1 + x[0])})
        assert (changed[0] != tokens[0]).any(), name
        assert (changed[1] == tokens[1]).all(), name
    without_servers = {name: entry for name, entry in MIXED.items() if name != "servers"}
    encoder = Encoder(without_servers, 8, 2, 2, "flat", key=KEY)
    flipped = observation | {"mask": ~observation["mask"]}
    assert (encode(encoder, observation) == encode(encoder, flipped)).all()


def test_absent_servers_are_neither_read_nor_reconstructed(encoder, decoder):
    observation = mixed_observation()
    junk = observation | {"servers": jnp.where(observation["mask"][..., None], observation["servers"], jnp.nan)}
    assert (encode(encoder, observation) == encode(encoder, junk)).all()
    loss, gradient = jax.jit(jax.value_and_grad(lambda x, o: decoder.loss(x, o).sum()))(features, junk)
    assert loss == pytest.approx(float(decoder.loss(features, observation).sum()), rel=1e-6)
    assert jnp.isfinite(gradient).all()


def test_servers_are_read_as_a_set_only_where_asked(encoder):
    observation = mixed_observation()
    order = jnp.array([3, 1, 0, 2])
    shuffled = observation | {name: observation[name][:, order] for name in ("servers", "mask")}
    same = np.allclose(encode(encoder, observation), encode(encoder, shuffled), atol=1e-5)
    assert same == bool(encoder.sets)


def test_reconstruction_sums_the_errors_of_all_entries(decoder):
    observation = mixed_observation()
    prediction = decoder(features)
    symbols = np.take_along_axis(
        np.asarray(prediction["symbol"].log_probs), np.asarray(observation["symbol"])[..., None], -1
    )
    symlog = {k: np.sign(observation[k]) * np.log1p(np.abs(observation[k])) for k in ("number", "servers")}
    servers = (np.asarray(prediction["servers"].value).reshape(2, 4, 2) - symlog["servers"]) ** 2
    expected = (
        ((prediction["number"].value - symlog["number"]) ** 2).sum(-1)
        - symbols.sum((-2, -1))
        + (servers * np.asarray(observation["mask"])[..., None]).sum((-2, -1))
    )
    for name in ("front", "back"):
        image = np.asarray(prediction[name].mode())
        assert image.shape == observation[name].shape
        assert ((image > 0) & (image < 1)).all()
        expected += ((image - np.asarray(observation[name]) / 255) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(decoder.loss(features, observation), expected, rtol=1e-4)


def test_images_have_the_channels_of_the_official_nets():
    encoder = eqx.filter_eval_shape(Encoder, {"image": ArraySpec((64, 64, 3), "image")}, 64, 3, 4, "flat", key=KEY)
    assert [conv.weight.shape for conv, _ in encoder.cnn] == [
        (5, 5, 3, 8),
        (5, 5, 8, 12),
        (5, 5, 12, 16),
        (5, 5, 16, 16),
    ]
    assert encoder.size == 4 * 4 * 16
    decoder = eqx.filter_eval_shape(Decoder, {"image": ArraySpec((64, 64, 3), "image")}, 512, 128, 8, 64, 3, 4, key=KEY)
    shapes = [conv.weight.shape for conv, _ in decoder.cnn.stages] + [decoder.cnn.output.weight.shape]
    assert shapes == [(5, 5, 16, 16), (5, 5, 16, 12), (5, 5, 12, 8), (5, 5, 8, 3)]
    assert decoder.cnn.from_deter.weight.shape == (8, 64, 32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"x": ArraySpec((2, 3))}, "'x' of kind 'vector' has shape .2, 3., expected .D."),
        ({"x": ArraySpec((3,), "mask")}, "nothing to encode"),
        ({"x": ArraySpec((60, 64, 3), "image")}, "'x'.*60, 64.*multiples of 16 from 48 to 256"),
        ({"x": ArraySpec((64, 64, 3), "image"), "y": ArraySpec((48, 48, 3), "image")}, "'y'.*48.*one size"),
        ({"x": ArraySpec((4, 2), "servers"), "m": ArraySpec((5,), "mask")}, "'x' has 4 servers but the mask has 5"),
        ({"x": ArraySpec((4,)), "m": ArraySpec((5,), "mask"), "n": ArraySpec((5,), "mask")}, "at most one mask"),
    ],
)
def test_observations_that_cannot_be_encoded_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        RSSM(PRESETS["tiny"], spec, 2, key=KEY)


def test_an_image_decoder_that_cannot_be_cut_says_how_to_mend_it():
    config = dataclasses.replace(PRESETS["tiny"], blocks=8)
    with pytest.raises(ValueError, match=r"4 channels into 8 blocks.*CNN depth"):
        eqx.filter_eval_shape(RSSM, config, {"image": ArraySpec((64, 64, 3), "image")}, 2, key=KEY)
