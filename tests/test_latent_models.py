"""Models that draw latents: their losses pull where they should, and a toy world is learned and dreamt."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sizes

from reverie.envs.core import ArraySpec
from reverie.models.build import build_model
from reverie.models.core import Sequence
from reverie.models.rssm import RSSMConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.nn.optimiser import OptimiserConfig, optimiser

KEY = jax.random.key(11)
SERVERS = 3
SPEC = {
    "servers": ArraySpec((SERVERS, 1), "servers"),
    "clock": ArraySpec((1,)),
    "mask": ArraySpec((SERVERS,), "mask"),
}


SMALL = SetRSSMConfig(units=32, deter=32, stoch=4, world_deter=32, world_stoch=4, classes=4, free_nats=0.0)
DISCRETE = {"rssm": dataclasses.replace(sizes.RSSM, free_nats=0.0), "set_rssm": SMALL}
GAUSSIAN = {f"{name}-gaussian": dataclasses.replace(config, latent="gaussian") for name, config in DISCRETE.items()}
STATE_SPACE = {
    "s3m": dataclasses.replace(sizes.S3M, free_nats=0.0),
    "s3m_ring_recurrent": dataclasses.replace(
        sizes.S3M, free_nats=0.0, modes="ring", posterior="recurrent", product=True
    ),
}
MODELS = DISCRETE | GAUSSIAN | STATE_SPACE | {"set_ssm": dataclasses.replace(SMALL, cell="ssm")}


def build(config):
    """Without free nats, both KL losses have a gradient."""
    return eqx.filter_jit(build_model)(config, SPEC, SERVERS, key=KEY)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), x.dtype), build(MODELS[request.param])
    )


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
        flags, task = (first, last, last, first), np.zeros(batch, int)
        rows.append(Sequence(observation, done.astype(np.float32), reward.astype(np.float32), *flags, task))
    return jax.tree.map(lambda *x: jnp.stack(x, 1), *rows)


def part(tree, start: int, stop: int):
    """Steps `start` to `stop` of leaves [B, T, ...]."""
    return jax.tree.map(lambda x: x[:, start:stop], tree)


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


@pytest.mark.parametrize("name", MODELS)
def test_a_toy_world_is_learned_and_dreamt(name):
    """The losses fall, and after four steps seen, four steps dreamt foretell the rewards of games never played."""
    model = build(dataclasses.replace(MODELS[name], free_nats=1.0))
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
        last, _ = model.observe(model.initial(64), seen, key)

        def dream(state, now):
            state = model.imagine(state, *now)
            return state, model.reward(state)

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
        eqx.filter_eval_shape(build_model, config, SPEC, SERVERS, key=KEY)
        for config in (DISCRETE[name], GAUSSIAN[f"{name}-gaussian"])
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
    config = dataclasses.replace(sizes.RSSM, precision="bfloat16")
    model = build(config)
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
    config = dataclasses.replace(sizes.RSSM, free_nats=1e3)
    model = build(config)
    sequence = toy_sequence(batch=2, length=3, episode=5)

    @jax.jit
    @jax.value_and_grad
    def pull(model):
        _, (_, metrics) = model.loss(model.initial(2), sequence, KEY)
        return metrics["model/dyn"] + metrics["model/rep"]

    value, gradient = pull(model)
    assert value == 2e3
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
