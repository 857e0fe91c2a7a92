"""The RSSM against DreamerV3: its published parameter counts, and its step written out in NumPy."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from scipy.special import expit, softmax

from reverie.envs.core import ArraySpec
from reverie.models.build import build_model
from reverie.models.core import Sequence
from reverie.models.latent import LatentModel
from reverie.models.rssm import PRESETS, RSSMConfig
from reverie.nn.distributions import TwoHot
from reverie.nn.layers import Head

SPEC = {"vector": ArraySpec((4,))}
ACTIONS = 2
KEY = jax.random.key(0)


def parameters(module) -> int:
    """Count numbers without making them."""
    return sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(module) if eqx.is_array(leaf) or hasattr(leaf, "shape")
    )


def shapes(config: RSSMConfig) -> LatentModel:
    return eqx.filter_eval_shape(build_model, config, SPEC, ACTIONS, key=KEY)


def head(config: RSSMConfig, outputs: int) -> Head:
    features = config.deter_size + config.stoch_size
    return eqx.filter_eval_shape(Head, features, outputs, config.units, 3, key=KEY)


def test_parameters_of_size1m_are_those_of_the_official_code():
    model = shapes(PRESETS["size1m"])
    counts = {name: parameters(getattr(model, name)) for name in ("enc", "dyn", "dec", "rew", "con")}
    assert counts == {"enc": 8_832, "dyn": 364_160, "dec": 49_796, "rew": 57_663, "con": 41_153}
    assert parameters(head(PRESETS["size1m"], TwoHot.BINS)) == 66_111  # the critic
    assert parameters(head(PRESETS["size1m"], ACTIONS)) == 49_666  # the actor


@pytest.mark.parametrize(
    ("size", "total"),
    [
        ("size1m", 637_381),
        ("size12m", 9_724_165),
        ("size25m", 21_762_181),
        ("size50m", 38_584_325),
        ("size100m", 86_580_997),
        ("size200m", 153_714_181),
        ("size400m", 345_390_085),
    ],
)
def test_parameters_of_every_preset_with_actor_and_critic(size, total):
    config = PRESETS[size]
    assert (
        parameters(shapes(config)) + parameters(head(config, TwoHot.BINS)) + parameters(head(config, ACTIONS)) == total
    )


def test_gaussian_latents_cost_the_outputs_that_the_docs_name():
    config = dataclasses.replace(PRESETS["size1m"], latent="gaussian")
    total = parameters(shapes(config)) + parameters(head(config, TwoHot.BINS)) + parameters(head(config, ACTIONS))
    assert total == 654_021


# --- the step, written out -----------------------------------------------------------------------------------------


def dense(layer, x):
    y = x @ np.asarray(layer.linear.weight, np.float64) + np.asarray(layer.linear.bias)
    return silu(norm(y, layer.norm.scale))


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * np.asarray(scale)


def silu(x):
    return x * expit(x)


def step_by_hand(model: LatentModel, h, z, action, is_first, observation, noise):
    """Sections 1.2 and 1.3 of the algorithm, with every block's input assembled as in the official code."""
    dyn, config = model.dyn, model.config
    h, z, action = (np.where(is_first[:, None], 0, x) for x in (h, z, action))
    action = action / np.maximum(1, np.abs(action))
    hidden = [dense(layer, x) for layer, x in ((dyn.deter_in, h), (dyn.stoch_in, z), (dyn.action_in, action))]
    width = config.deter_size // config.blocks
    mixed = []
    for g in range(config.blocks):
        x = np.concatenate([h[:, g * width : (g + 1) * width], *hidden], -1)
        mixed.append(x @ np.asarray(dyn.mix.weight[g]) + np.asarray(dyn.mix.bias[g]))
    y = silu(norm(np.concatenate(mixed, -1), dyn.mix_norm.scale))
    gates = []
    for g in range(config.blocks):
        x = y[:, g * width : (g + 1) * width]
        gates.append(np.split(x @ np.asarray(dyn.gates.weight[g]) + np.asarray(dyn.gates.bias[g]), 3, -1))
    reset, candidate, update = (np.concatenate(parts, -1) for parts in zip(*gates, strict=True))
    h = expit(update - 1) * np.tanh(expit(reset) * candidate) + (1 - expit(update - 1)) * h

    token = np.sign(observation) * np.log1p(np.abs(observation))
    for layer in model.enc.mlp.layers:
        token = dense(layer, token)
    posterior = dense(dyn.posterior_in, np.concatenate([h, token], -1))
    posterior = posterior @ np.asarray(dyn.posterior_out.weight) + np.asarray(dyn.posterior_out.bias)
    prior = h
    for layer in dyn.prior_head.mlp.layers:
        prior = dense(layer, prior)
    prior = prior @ np.asarray(dyn.prior_head.output.weight) + np.asarray(dyn.prior_head.output.bias)
    posterior, prior = (
        0.99 * softmax(x.reshape(-1, config.stoch, config.class_count), -1) + 0.01 / config.class_count
        for x in (posterior, prior)
    )
    drawn = (noise[..., None] >= posterior.cumsum(-1)).sum(-1)
    return h, np.eye(config.class_count)[drawn].reshape(len(h), -1), posterior, prior


@pytest.fixture(scope="module")
def example():
    """All parameters are moved, so that biases, norms and layers that start at zero count as well."""
    rng = np.random.default_rng(0)
    model = eqx.filter_jit(build_model)(sizes.RSSM, SPEC, ACTIONS, key=KEY)
    model = jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), model)
    sequence = Sequence(
        observation={"vector": jnp.asarray(5 * rng.normal(size=(3, 6, 4)), jnp.float32)},
        action=jnp.asarray(2 * rng.normal(size=(3, 6, 2)), jnp.float32),
        reward=jnp.asarray(3 * rng.normal(size=(3, 6)), jnp.float32),
        is_first=jnp.asarray(rng.random((3, 6)) < 0.3),
        is_last=jnp.zeros((3, 6), bool),
        is_terminal=jnp.asarray(rng.random((3, 6)) < 0.3),
        is_trial_first=jnp.zeros((3, 6), bool),
        task=jnp.zeros((3, 6), int),
    )
    start = model.initial(3)
    noise = model.config.latents.noise((3,), jax.random.key(2))
    start = start._replace(deter=start.deter + 0.3, stoch=jax.nn.one_hot((noise * 4).astype(int), 4))
    return model, start, sequence


def by_hand(model, start, sequence, noise):
    h, z = np.asarray(start.deter, np.float64), np.asarray(start.stoch, np.float64).reshape(3, -1)
    rows = []
    for t in range(sequence.reward.shape[1]):
        now = (np.asarray(x[:, t]) for x in (sequence.action, sequence.is_first, sequence.observation["vector"], noise))
        h, z, posterior, prior = step_by_hand(model, h, z, *now)
        rows.append((h, z, posterior, prior))
    return (np.stack(x, 1) for x in zip(*rows, strict=True))


def test_states_follow_the_equations(example):
    model, start, sequence = example
    key = jax.random.key(3)
    _, states = jax.jit(lambda *x: model.observe(*x))(start, sequence, key)
    h, z, _, _ = by_hand(model, start, sequence, model.config.latents.noise((3, 6), key))
    np.testing.assert_allclose(states.deter, h, atol=2e-5)
    np.testing.assert_array_equal(states.stoch.reshape(z.shape), z)
    np.testing.assert_allclose(model.features(states).context, np.concatenate([h, z], -1), atol=2e-5)


def test_losses_follow_the_equations(example):
    model, start, sequence = example
    key = jax.random.key(3)
    loss, (_, metrics) = jax.jit(lambda *x: model.loss(*x))(start, sequence, key)
    h, z, post, prior = by_hand(model, start, sequence, model.config.latents.noise((3, 6), key))
    x = np.concatenate([h, z], -1)
    kl = (post * np.log(post / prior)).sum((-2, -1))
    hidden = x
    for layer in model.dec.mlp.layers:
        hidden = dense(layer, hidden)
    output = model.dec.outputs["vector"]
    vector = np.asarray(sequence.observation["vector"])
    target = np.sign(vector) * np.log1p(np.abs(vector))
    error = hidden @ np.asarray(output.weight) + np.asarray(output.bias) - target
    logit = dense(model.con.mlp.layers[0], x) @ np.asarray(model.con.output.weight) + np.asarray(model.con.output.bias)
    goes_on = (1 - np.asarray(sequence.is_terminal)) * (1 - 1 / 333)
    p = expit(logit[..., 0])
    bins = dense(model.rew.mlp.layers[0], x) @ np.asarray(model.rew.output.weight) + np.asarray(model.rew.output.bias)
    lower, share = (np.asarray(x) for x in TwoHot.between(sequence.reward, 255))
    weights = (1 - share)[..., None] * np.eye(255)[lower] + share[..., None] * np.eye(255)[lower + 1]
    expected = {
        "model/kl": kl.mean(),
        "model/dyn": np.maximum(1, kl).mean(),
        "model/rep": np.maximum(1, kl).mean(),
        "model/reconstruction": (error**2).sum(-1).mean(),
        "model/reward": -(weights * np.log(softmax(bins, -1))).sum(-1).mean(),
        "model/continue": -(goes_on * np.log(p) + (1 - goes_on) * np.log(1 - p)).mean(),
        "model/entropy_posterior": -(post * np.log(post)).sum((-2, -1)).mean(),
        "model/entropy_prior": -(prior * np.log(prior)).sum((-2, -1)).mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
    terms = ("model/reconstruction", "model/reward", "model/continue", "model/dyn")
    np.testing.assert_allclose(loss, sum(expected[n] for n in terms) + 0.1 * expected["model/rep"], rtol=2e-4)


def test_imagination_draws_from_the_prior_at_the_next_h(example):
    model, start, sequence = example
    key = jax.random.key(4)
    dreamt = jax.jit(lambda *x: model.imagine(*x))(start, sequence.action[:, 0], key)
    h, z = np.asarray(start.deter), np.asarray(start.stoch).reshape(3, -1)
    unseen = np.zeros((3, 4)), np.zeros((3, 8))
    h, _, _, prior = step_by_hand(model, h, z, np.asarray(sequence.action[:, 0]), np.zeros(3, bool), *unseen)
    np.testing.assert_allclose(dreamt.deter, h, atol=2e-5)
    drawn = (np.asarray(model.config.latents.noise((3,), key))[..., None] >= prior.cumsum(-1)).sum(-1)
    np.testing.assert_array_equal(dreamt.stoch.argmax(-1), drawn)
