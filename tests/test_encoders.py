"""Encoders and decoders: what they make of every kind of observation."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes

from reverie.envs.core import ArraySpec
from reverie.models.build import build_model
from reverie.models.encoders import Decoder, Encoder

KEY = jax.random.key(11)

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
        build_model(sizes.RSSM, spec, 2, key=KEY)


def test_an_image_decoder_that_cannot_be_cut_says_how_to_mend_it():
    config = dataclasses.replace(sizes.RSSM, blocks=8)
    with pytest.raises(ValueError, match=r"4 channels into 8 blocks.*CNN depth"):
        eqx.filter_eval_shape(build_model, config, {"image": ArraySpec((64, 64, 3), "image")}, 2, key=KEY)
