"""State-space layers against matrices and loops in double precision, and what is S3M's own as a world model."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import sizes

from reverie.agents.dreamer import Dreamer, DreamerConfig
from reverie.agents.optimisers import SSM_PARAMETERS, GroupsConfig
from reverie.agents.optimisers import optimiser as agent_optimiser
from reverie.envs.core import ArraySpec, Discrete
from reverie.models.build import build_model
from reverie.models.core import Sequence
from reverie.models.latent import LatentModel
from reverie.models.s3m import PRESETS, S3MConfig
from reverie.nn.layers import Linear
from reverie.nn.optimiser import AdamConfig, OptimiserConfig, adam, in_groups, optimiser
from reverie.nn.ssm import SSM, legs, legs_modes, parallel_scan, sequential_scan
from reverie.runs.config_json import config_from_json, config_to_json

KEY = jax.random.key(5)
SPEC = {"vector": ArraySpec((3,))}
ACTIONS = 2
TINY = sizes.S3M
SCANS = {"sequential": sequential_scan, "parallel": parallel_scan}


def moved(tree, scale=0.05):
    """Parameters off their start, where some are zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype), tree)


# --- initial values ------------------------------------------------------------------------------------------------


def test_legs_is_the_closed_form_of_the_paper():
    a = legs(6)
    for n in range(6):
        for k in range(6):
            form = -((2 * n + 1) ** 0.5) * (2 * k + 1) ** 0.5 if n > k else -(n + 1) if n == k else 0
            assert a[n, k] == pytest.approx(form)


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_modes_are_those_of_the_normal_part_of_legs(size):
    values, vectors = legs_modes(size)
    p = np.sqrt(np.arange(size) + 0.5)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.conj().T - np.outer(p, p), legs(size), atol=1e-9)
    np.testing.assert_allclose(values.real, -0.5)
    np.testing.assert_allclose(values.imag, -values.imag[::-1], atol=1e-9)
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(size), atol=1e-12)


def test_a_fresh_layer_has_the_modes_of_legs_and_memories_of_20_to_2000_steps():
    layer = SSM(8, 32, blocks=2, key=KEY)
    values, _ = legs_modes(16)
    np.testing.assert_allclose(layer.eigenvalues(), np.tile(values[8:], 2), rtol=1e-5)
    transition, _ = SSM(8, 512, blocks=8, discretisation="zoh", key=KEY).discrete()
    memory = -1 / np.log(np.abs(transition))
    assert 19.9 < memory.min() < 22
    assert 1800 < memory.max() < 2001


@pytest.mark.parametrize("discretisation", ["bilinear", "zoh"])
def test_a_ring_has_all_frequencies_and_states_and_outputs_as_large_as_its_inputs(discretisation):
    layer = SSM(64, 32, 1, discretisation, modes="ring", key=KEY)
    factors = layer.discrete()[0]
    np.testing.assert_allclose(np.angle(factors), np.pi * (np.arange(16) + 0.5) / 16, atol=1e-4)
    memory = -1 / np.log(np.abs(factors))
    assert 19.9 < memory.min() < memory.max() < 400.1
    layer = eqx.tree_at(lambda layer: layer.D, layer, jnp.zeros(64))
    noise = jax.random.normal(KEY, (2000, 4, 64))
    y, x = layer(noise, jnp.zeros((4, *layer.x0.shape)), jnp.zeros((2000, 4), bool))
    assert (x[1000:] ** 2).sum(-1).mean() == pytest.approx(1.0, rel=0.25)
    assert (y[1000:] ** 2).mean() == pytest.approx(1.0, rel=0.35)


def test_a_ring_has_no_blocks():
    assert SSM(4, 10, 8, modes="ring", key=KEY).decay.shape == (5,)


@pytest.mark.parametrize(("size", "blocks"), [(12, 8), (4, 0)])
def test_a_state_that_cannot_be_cut_is_refused(size, blocks):
    with pytest.raises(ValueError, match=f"multiple of 2 x blocks = {2 * blocks}, got {size}"):
        SSM(4, size, blocks, key=KEY)


# --- the recurrence ------------------------------------------------------------------------------------------------


def example(steps=40, batch=3, states=5):
    """A stable recurrence with random resets, a state before it and a start, none of them zero."""
    rng = np.random.default_rng(3)

    def noise(*shape):
        return jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)

    radius, angle = rng.uniform(0.5, 0.999, states), rng.uniform(-3, 3, states)
    transition = jnp.asarray(radius * np.exp(1j * angle), jnp.complex64)
    is_first = jnp.asarray(rng.random((steps, batch)) < 0.15)
    return (transition, noise(steps, batch, states), noise(batch, states)), is_first, noise(states)


def loop(transition, inputs, state, is_first, start):
    rows = []
    for t in range(inputs.shape[0]):
        before = jnp.where(is_first[t][:, None], start, state)
        state = transition * before + inputs[t]
        rows.append(state)
    return jnp.stack(rows)


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_is_the_loop_across_resets(scan):
    (transition, inputs, state), is_first, start = example()
    assert 3 < is_first.sum() < 60
    x = jax.jit(SCANS[scan])(transition, inputs, state, is_first, start)
    exact = np.asarray(state, np.complex128)
    for t in range(len(inputs)):
        exact = np.where(is_first[t][:, None], start, exact)
        exact = np.asarray(transition, np.complex128) * exact + np.asarray(inputs[t])
        np.testing.assert_allclose(x[t], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", SCANS)
def test_gradients_of_a_scan_are_those_of_the_loop(scan):
    leaves, is_first, start = example()
    weight = example()[0][1].conj() ** 2

    def gradient(run):
        def loss(leaves, start):
            return (weight * run(*leaves, is_first, start)).real.sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(leaves, start))

    for ours, theirs in zip(gradient(SCANS[scan]), gradient(loop), strict=True):
        assert jnp.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("scan", SCANS)
def test_nothing_passes_a_reset_not_even_infinity(scan):
    """Bit for bit; the sequential scan survives numbers that overflowed before the reset."""
    (transition, inputs, state), is_first, start = example()
    is_first = is_first.at[20].set(True)
    run = jax.jit(SCANS[scan])
    clean = run(transition, inputs, state, is_first, start)
    dirty = run(transition, inputs.at[:20].add(7), state + 1e6, is_first, start)
    np.testing.assert_array_equal(clean[20:], dirty[20:])
    assert (clean[:20] != dirty[:20]).any()
    if scan == "sequential":
        broken = run(transition, inputs.at[19].set(jnp.inf), state, is_first, start)
        np.testing.assert_array_equal(clean[20:], broken[20:])


def dense_system(layer):
    """The real matrices of a layer: A, B [N, I], C [O, N], from its modes."""
    size = layer.decay.shape[-1] * 2
    _, vectors = legs_modes(size)
    kept = vectors[:, size // 2 :]
    a = 2 * (kept @ np.diag(np.asarray(layer.eigenvalues())) @ kept.conj().T).real
    b, c = (np.asarray(x[0] + 1j * x[1]).T for x in (layer.B, layer.C))
    return a, 2 * (kept @ b).real, 2 * (c @ kept.conj().T).real


def dense_outputs(a, b, c, u, step, discretisation):
    """The real system, stepped with matrix exponentials or linear solves."""
    one = np.eye(len(a))
    if discretisation == "zoh":
        transition = scipy.linalg.expm(a * step)
        gain = np.linalg.solve(a, (transition - one) @ b)
    else:
        left = np.linalg.inv(one - a * step / 2)
        transition, gain = left @ (one + a * step / 2), step * left @ b
    x, rows = np.zeros(len(a)), []
    for now in u:
        x = transition @ x + gain @ now
        rows.append(c @ x)
    return np.stack(rows)


@pytest.mark.parametrize("discretisation", ["bilinear", "zoh"])
def test_a_layer_is_the_real_system_that_its_modes_stand_for(discretisation):
    step = 0.07
    layer = SSM(3, 8, discretisation=discretisation, key=KEY)
    layer = eqx.tree_at(lambda m: m.log_step, layer, jnp.full_like(layer.log_step, np.log(step)))
    u = np.asarray(jax.random.normal(KEY, (30, 3)))
    y, _ = layer(jnp.asarray(u)[:, None], jnp.zeros((1, *layer.x0.shape)), jnp.zeros((30, 1), bool))
    direct = np.asarray(layer.D) * u
    expected = dense_outputs(*dense_system(layer), u, step, discretisation) + direct
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-5, atol=5e-5)
    assert np.abs(expected - direct).max() > 0.1


@pytest.mark.parametrize("config", [OptimiserConfig(learning_rate=0.1, warmup=0), AdamConfig(learning_rate=0.1)])
def test_no_mode_becomes_unstable_however_hard_it_is_pushed(config):
    layer = SSM(3, 8, key=KEY)
    chain = optimiser(config) if isinstance(config, OptimiserConfig) else adam(config)

    @jax.jit
    def push(carry, _):
        layer, state = carry
        gradient = jax.grad(lambda layer: -jnp.log(jnp.abs(layer.discrete()[0])).sum())(layer)
        step, state = chain.update(gradient, state, layer)
        return (optax.apply_updates(layer, step), state), None

    (layer, _), _ = jax.lax.scan(push, (layer, chain.init(layer)), length=400)
    assert (layer.eigenvalues().real <= -1e-4).all()
    assert layer.eigenvalues().real.max() > -0.1, "it was pushed, from -0.5"
    assert (jnp.abs(layer.discrete()[0]) <= 1).all()
    y, _ = layer(jnp.ones((200, 1, 3)), jnp.zeros((1, *layer.x0.shape)), jnp.zeros((200, 1), bool))
    assert jnp.isfinite(y).all()


# --- the world model -----------------------------------------------------------------------------------------------


def world_model(**options) -> LatentModel:
    return moved(eqx.filter_jit(build_model)(dataclasses.replace(TINY, **options), SPEC, ACTIONS, key=KEY))


def sequence(batch=3, steps=24, reward=0.0) -> Sequence:
    rng = np.random.default_rng(1)
    observation = {"vector": jnp.asarray(rng.normal(size=(batch, steps, 3)), jnp.float32)}
    action = jnp.asarray(np.eye(ACTIONS)[rng.integers(ACTIONS, size=(batch, steps))], jnp.float32)
    first, no = jnp.asarray(rng.random((batch, steps)) < 0.15), jnp.zeros((batch, steps), bool)
    return Sequence(observation, action, no + reward, first, no, no, no, jnp.zeros((batch, steps), int))


def test_both_scans_give_one_loss_and_one_gradient():
    given, results = sequence(reward=0.5), []
    for scan in SCANS:
        model = world_model(scan=scan)

        @jax.jit
        def loss(model):
            return model.loss(model.initial(3), given, KEY)[0]

        results.append(jax.tree.leaves(jax.value_and_grad(loss)(model)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_posterior_has_seen_one_observation_and_nothing_else():
    model, given = world_model(), sequence()
    given = given._replace(is_first=given.is_last)
    _, one = model._observe(model.initial(3), given, KEY)
    past = {"vector": given.observation["vector"].at[:, :9].add(2.0)}
    _, other = model._observe(model.initial(3), given._replace(observation=past, action=-given.action), KEY)
    np.testing.assert_array_equal(one[1][:, 9:], other[1][:, 9:])
    np.testing.assert_array_equal(one[0].stoch[:, 9:], other[0].stoch[:, 9:])
    assert (one[0].deter[:, 9:] != other[0].deter[:, 9:]).any(-1).all()


def test_h_has_seen_what_came_before_and_not_the_observation_of_its_step():
    model, given, t = world_model(), sequence(), 11
    given = given._replace(is_first=given.is_last)

    def deter(shift, at):
        moved = {"vector": given.observation["vector"].at[:, at].add(shift)}
        return model.observe(model.initial(3), given._replace(observation=moved), KEY)[1].deter

    np.testing.assert_array_equal(deter(0.0, t)[:, : t + 1], deter(3.0, t)[:, : t + 1])
    assert (deter(0.0, t)[:, t + 1] != deter(3.0, t)[:, t + 1]).any()


@pytest.mark.parametrize(
    ("policy", "parts"), [("output", ["deter", "stoch"]), ("hidden", ["stoch", "carried"]), ("full", None)]
)
def test_actor_and_critic_see_what_policy_says_and_the_heads_see_h_and_z(policy, parts):
    parts = parts or ["deter", "stoch", "carried"]
    model = world_model(policy=policy)
    _, state = model.observe(model.initial(3), sequence(), KEY)
    features = model.features(state)
    shown = [np.asarray(getattr(state, part)).reshape(3, 24, -1) for part in parts]
    np.testing.assert_array_equal(features.context, np.concatenate(shown, -1))
    said = model.reward(state), model.continues(state)
    for part in ("deter", "stoch", "carried"):
        other = state._replace(**{part: getattr(state, part) + 1.0})
        changed = [(model.reward(other) != said[0]).any(), (model.continues(other) != said[1]).any()]
        assert changed == [part != "carried"] * 2, part


def test_recall_is_of_the_same_episode_alone():
    """Its loss feels what was seen before in the episode, up to R steps back, and nothing of an episode before."""
    model = world_model(recall=3)
    observation = sequence().observation
    is_first = jnp.zeros((3, 24), bool).at[:, 10].set(True)
    deter = jax.random.normal(KEY, (3, 24, TINY.deter))

    def recalled(vector):  # [B, T, seeds], over many draws of how far back
        keys = jax.random.split(KEY, 64)
        seen = {"vector": vector}, is_first, jnp.ones((3, 24))
        losses = jax.vmap(lambda key: model.rec.loss(deter, *seen, key))(keys)
        return losses.sum((0, 1))  # [T]

    felt = jax.jit(jax.jacrev(recalled))(observation["vector"])  # [T, B, T, 3]
    felt = jnp.abs(felt).sum((1, 3)) > 0
    expected = np.zeros((24, 24), bool)
    for t in range(24):
        begun = 10 if t >= 10 else 0
        expected[t, max(begun, t - 3) : t] = True
    np.testing.assert_array_equal(felt, expected)
    assert recalled(observation["vector"])[10] == 0


def test_recall_teaches_h_and_not_what_is_recalled():
    model, given = world_model(recall=4), sequence()

    def term(model):
        return model.loss(model.initial(3), given, KEY)[1][1]["model/recall"]

    gradient = jax.jit(jax.grad(term))(model)
    strength = {
        name: optax.tree.norm(eqx.filter(getattr(gradient, name), eqx.is_inexact_array))
        for name in ("rec", "dyn", "enc")
    }
    assert all(value > 0 for value in strength.values()), strength
    assert optax.tree.norm(eqx.filter(gradient.dec, eqx.is_inexact_array)) == 0
    assert world_model().rec is None


def test_the_start_learns_where_episodes_begin_and_only_there():
    model, given = world_model(), sequence()
    state = jax.tree.map(jax.lax.stop_gradient, model.initial(3))

    @jax.jit
    @jax.grad
    def pull(model, is_first):
        return model.observe(state, given._replace(is_first=is_first), KEY)[1].deter.sum()

    for begins in (given.is_first, given.is_last):
        starts = [block.ssm.x0 for block in pull(model, begins).dyn.layers]
        assert [bool((start != 0).any()) for start in starts] == [bool(begins.any())] * 2


def test_a_fresh_model_has_no_steep_gradients():
    """A norm of nothing is steep: with z = 0 at the start of an episode the gradient's norm was beyond 1e4."""
    model = eqx.filter_jit(build_model)(TINY, SPEC, ACTIONS, key=KEY)
    given = sequence(reward=0.5)

    @jax.jit
    @jax.grad
    def gradient(model):
        return model.loss(model.initial(3), given, KEY)[0]

    assert float(optax.tree.norm(gradient(model))) < 100


def test_half_precision_leaves_the_recurrence_in_single():
    model = world_model(precision="bfloat16")
    _, states = model.observe(model.initial(3), sequence(), KEY)
    assert [x.dtype for x in states] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    assert model.features(states).context.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": 24}, r"state of an SSM must be a multiple of 2 x blocks = 16, got 24"),
        ({"state": 9, "modes": "ring"}, r"state of an SSM must be a multiple of 2, got 9"),
        ({"posterior": "recurrent", "scan": "parallel"}, "S3M with posterior 'recurrent' has no parallel scan"),
        ({"layers": 0}, "S3MConfig: layers must be at least 1, got 0"),
        ({"recall": -1}, "S3MConfig: recall must be at least 0, got -1"),
        ({"classes": 1}, r"S3MConfig: classes must lie in \[2, 256\], got 1"),
        ({"unimix": 1.0}, "S3MConfig: unimix.*1.0"),
        ({"horizon": 1.0}, "S3MConfig: horizon.*1.0"),
    ],
)
def test_impossible_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        S3MConfig(**options)


def test_what_has_no_weights_is_not_asked_to_decay_them():
    with pytest.raises(ValueError, match=r"ssm.weight_decay must be 0, got 0.1"):
        GroupsConfig(ssm=AdamConfig(weight_decay=0.1))


def test_the_world_model_for_popgym_has_as_many_parameters_as_published_but_for_conjugates():
    """The authors' has 9.07M, both conjugates counted, h made without a norm, and LayerNorms with offsets."""
    spec = {"suit": ArraySpec((1,), categories=4)}
    model = eqx.filter_eval_shape(build_model, PRESETS["popgym"], spec, 4, key=KEY)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(model))
    pairs = (block.ssm for block in model.dyn.layers)
    count += sum(np.prod(getattr(ssm, x).shape) for ssm in pairs for x in SSM_PARAMETERS if x != "D")
    assert count == pytest.approx(9.07e6, rel=0.01)


# --- by configuration alone ----------------------------------------------------------------------------------------


def agent(**options) -> Dreamer:
    small = {"memory": 4, "units": 8, "layers": 1, "dream_length": 3, "starts": 4}
    config = DreamerConfig(model=TINY, optimiser=GroupsConfig(), **(small | options))
    return Dreamer(config, SPEC, Discrete(ACTIONS))


def test_groups_cover_all_networks_and_each_moves_at_its_own_rate():
    networks = jax.eval_shape(agent().init, KEY).networks
    assert SSM_PARAMETERS == ("decay", "frequency", "log_step", "B", "C", "D", "x0")
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), networks)
    rates = {"model": 1e-3, "ssm": 1e-4, "actor": 2e-4, "critic": 3e-4}
    groups = GroupsConfig(**{name: AdamConfig(rate, clip=1e9, epsilon=1e-30) for name, rate in rates.items()})
    chain = agent_optimiser(groups)
    step, _ = chain.update(ones, chain.init(ones), ones)
    for path, leaf in jax.tree_util.tree_leaves_with_path(step):
        names = [key.name for key in path if hasattr(key, "name")]
        group = {"memory": "actor"}.get(names[0], names[0])
        group = "ssm" if "ssm" in names else group
        np.testing.assert_allclose(leaf, -rates[group], rtol=1e-5, err_msg=str(names))


class Pair(eqx.Module):
    left: jax.Array
    right: jax.Array


def test_a_groups_gradient_is_clipped_as_a_whole_and_apart_from_others():
    tree = Pair(jnp.full(4, 30.0), jnp.full(4, 0.3))
    chain = in_groups({"left": AdamConfig(clip=6.0), "right": AdamConfig(clip=6.0)})
    _, state = chain.update(tree, chain.init(tree), tree)
    means = [x for x in jax.tree.leaves(optax.tree.get(state.inner_states["left"], "mu")) if x.size == 4]
    np.testing.assert_allclose(means[0], 0.1 * 3.0, rtol=1e-5)
    means = [x for x in jax.tree.leaves(optax.tree.get(state.inner_states["right"], "mu")) if x.size == 4]
    np.testing.assert_allclose(means[0], 0.1 * 0.3, rtol=1e-5)


def test_a_parameter_without_a_group_is_named():
    tree = Pair(jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="parameter right is in none of the groups left"):
        in_groups({"left": AdamConfig()}).init(tree)


def test_weight_decay_takes_from_weights_alone():
    layer = jax.tree.map(jnp.ones_like, Linear(2, 3, key=KEY))
    chain = adam(AdamConfig(learning_rate=0.1, weight_decay=0.5))
    step, _ = chain.update(jax.tree.map(jnp.zeros_like, layer), chain.init(layer), layer)
    np.testing.assert_allclose(step.weight, -0.05, rtol=1e-6)
    assert (step.bias == 0).all()


def test_the_configuration_comes_back_from_json():
    config = agent().config
    assert config_from_json(DreamerConfig, config_to_json(config)) == config
