"""State-space layers against matrices and loops in double precision, and what is S3M's own as a world model."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from reverie.agents.dreamer import Dreamer, DreamerConfig
from reverie.agents.optimisers import SSM_PARAMETERS, GroupsConfig
from reverie.agents.optimisers import optimiser as agent_optimiser
from reverie.envs.core import ArraySpec, Discrete
from reverie.models.core import Sequence
from reverie.models.s3m import PRESETS, S3M, S3MConfig
from reverie.nn.layers import Linear
from reverie.nn.optimiser import AdamConfig, OptimiserConfig, adam, in_groups, optimiser
from reverie.nn.ssm import MIMO, SISO, legs, legs_modes, parallel_scan, sequential_scan
from reverie.runs.config_json import config_from_json, config_to_json

KEY = jax.random.key(5)
SPEC = {"vector": ArraySpec((3,))}
ACTIONS = 2
TINY = PRESETS["tiny"]
SCANS = {"sequential": sequential_scan, "parallel": parallel_scan}
LAYERS = {"mimo": MIMO, "siso": SISO}


def moved(tree, scale=0.05):
    """Parameters off their start, where some are zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype), tree)


# --- initial values ------------------------------------------------------------------------------------------------


def test_legs_is_the_closed_form_of_the_paper():
    a, b = legs(6)
    for n in range(6):
        assert b[n] == pytest.approx((2 * n + 1) ** 0.5)
        for k in range(6):
            form = -((2 * n + 1) ** 0.5) * (2 * k + 1) ** 0.5 if n > k else -(n + 1) if n == k else 0
            assert a[n, k] == pytest.approx(form)


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_modes_are_those_of_the_normal_part_of_legs(size):
    values, vectors = legs_modes(size)
    p = np.sqrt(np.arange(size) + 0.5)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.conj().T - np.outer(p, p), legs(size)[0], atol=1e-9)
    np.testing.assert_allclose(values.real, -0.5)
    np.testing.assert_allclose(values.imag, -values.imag[::-1], atol=1e-9)
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(size), atol=1e-12)


def test_a_fresh_layer_has_the_modes_of_legs_and_memories_of_20_to_2000_steps():
    layer = MIMO(8, 32, blocks=2, key=KEY)
    values, _ = legs_modes(16)
    np.testing.assert_allclose(layer.eigenvalues(), np.tile(values[8:], 2), rtol=1e-5)
    transition, _ = MIMO(8, 512, blocks=8, discretisation="zoh", key=KEY).discrete()
    memory = -1 / np.log(np.abs(transition))
    assert 19.9 < memory.min() < 22
    assert 1800 < memory.max() < 2001


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("discretisation", ["bilinear", "zoh"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_ring_has_all_frequencies_and_states_and_outputs_as_large_as_its_inputs(kind, discretisation, symmetric):
    layer = LAYERS[kind](64, 32, 1, symmetric, discretisation, modes="ring", key=KEY)
    factors = layer.discrete()[0].reshape(-1, 16 if symmetric else 32)[0]
    expected = np.pi * (np.arange(16) + 0.5) / 16
    expected = expected if symmetric else np.concatenate([expected, -expected])
    np.testing.assert_allclose(np.angle(factors), expected, atol=1e-4)
    memory = -1 / np.log(np.abs(factors))
    assert 19.9 < memory.min() < memory.max() < 400.1
    layer = eqx.tree_at(lambda layer: layer.D, layer, jnp.zeros(64))
    noise = jax.random.normal(KEY, (2000, 4, 64))
    y, x = layer(noise, jnp.zeros((4, *layer.start.shape)), jnp.zeros((2000, 4), bool))
    assert (x[1000:] ** 2).sum(-1).mean() == pytest.approx(1.0, rel=0.25)
    assert (y[1000:] ** 2).mean() == pytest.approx(1.0, rel=0.35)


def test_a_ring_is_for_a_diagonal_transition():
    with pytest.raises(ValueError, match="transition 'dplr' corrects modes 'legs' and no others, got 'ring'"):
        S3MConfig(transition="dplr", modes="ring")


@pytest.mark.parametrize(
    ("size", "blocks", "symmetric", "message"),
    [
        (12, 8, True, "multiple of 2 x blocks = 16, got 12"),
        (12, 8, False, "of blocks = 8, got 12"),
        (4, 0, True, "got 4"),
    ],
)
def test_a_state_that_cannot_be_cut_is_refused(size, blocks, symmetric, message):
    with pytest.raises(ValueError, match=message):
        MIMO(4, size, blocks, symmetric, key=KEY)


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


def dense_system(layer, channel=None):
    """The real matrices of a layer (of one of its channels): A, B [N, I], C [O, N], from its modes."""
    size = layer.decay.shape[-1] * 2
    _, vectors = legs_modes(size)
    kept = vectors[:, size // 2 :]
    values = np.asarray(layer.eigenvalues() if channel is None else layer.eigenvalues()[channel])
    a = 2 * (kept @ np.diag(values) @ kept.conj().T).real
    if layer.Q is not None:
        q = np.asarray(layer.Q[0] + 1j * layer.Q[1]).reshape(-1, size // 2)[channel or 0]
        p = 2 * (kept @ q).real
        a -= np.outer(p, p)
    b, c = (np.asarray(x[0] + 1j * x[1]) for x in (layer.B, layer.C))
    if channel is None:
        b, c = b.T, c.T
    else:
        b, c = b[channel][:, None], c[channel][None]
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


@pytest.mark.parametrize(
    ("transition", "discretisation"), [("diagonal", "bilinear"), ("diagonal", "zoh"), ("dplr", "bilinear")]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_the_real_system_that_its_modes_stand_for(kind, transition, discretisation):
    layer = LAYERS[kind](3, 8, discretisation=discretisation, transition=transition, key=KEY)
    if transition == "dplr":
        np.testing.assert_allclose(dense_system(layer, 2 if kind == "siso" else None)[0], legs(8)[0], atol=1e-4)
        layer = eqx.tree_at(lambda m: m.Q, layer, layer.Q * 1.3)
    step = 0.07
    layer = eqx.tree_at(lambda m: m.log_step, layer, jnp.full_like(layer.log_step, np.log(step)))
    u = np.asarray(jax.random.normal(KEY, (30, 3)))
    y, _ = layer(jnp.asarray(u)[:, None], jnp.zeros((1, *layer.start.shape)), jnp.zeros((30, 1), bool))
    direct = np.asarray(layer.D) * u
    if kind == "mimo":
        expected = dense_outputs(*dense_system(layer), u, step, discretisation) + direct
    else:
        channels = [
            dense_outputs(*dense_system(layer, i), u[:, i : i + 1], step, discretisation)[:, 0] for i in range(3)
        ]
        expected = np.stack(channels, 1) + direct
        np.testing.assert_allclose(dense_system(layer, 1)[1][:, 0], legs(8)[1], rtol=1e-5)
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-5, atol=5e-5)
    assert np.abs(expected - direct).max() > 0.1


@pytest.mark.parametrize(("transition", "blocks"), [("diagonal", 2), ("dplr", 1)])
@pytest.mark.parametrize("kind", LAYERS)
def test_half_of_the_modes_give_what_all_give(kind, transition, blocks):
    half = moved(LAYERS[kind](3, 8, blocks, transition=transition, key=KEY))
    full = LAYERS[kind](3, 8, blocks, symmetric=False, transition=transition, key=KEY)
    per_mode = 1 if kind == "siso" else 0
    matrices = {"mimo": ((2, 1), (1, 0)), "siso": ((2, 1), (2, 1))}[kind]  # axes of the modes in B, C

    def both(x, axis):
        """Modes of positive frequency, then their conjugates."""
        return np.concatenate([x, x * np.array([1, -1]).reshape(2, *[1] * (x.ndim - 1))], axis)

    def start(x):
        pairs = x.reshape(*half.decay.shape, 2)
        return np.concatenate([pairs, pairs * np.array([1, -1])], -2).reshape(-1, 2)

    steps = half.log_step if kind == "siso" else np.tile(half.log_step, 2)
    parts = {
        "decay": np.concatenate([half.decay, half.decay], per_mode),
        "frequency": np.concatenate([half.frequency, -half.frequency], per_mode),
        "log_step": steps,
        "B": both(np.asarray(half.B), matrices[0][0]),
        "C": both(np.asarray(half.C), matrices[1][0]),
        "D": half.D,
        "start": start(np.asarray(half.start)),
    }
    if half.Q is not None:
        q = np.asarray(half.Q).reshape(2, *half.decay.shape)
        parts["Q"] = both(q, q.ndim - 1).reshape(2, -1)
    assert parts.keys() | {"Q"} == set(SSM_PARAMETERS)
    for name, value in parts.items():
        assert getattr(full, name).shape == value.shape, name
        full = eqx.tree_at(lambda m, name=name: getattr(m, name), full, jnp.asarray(value))
    u = jax.random.normal(KEY, (30, 4, 3))
    is_first = jax.random.bernoulli(KEY, 0.2, (30, 4))
    state = jax.random.normal(KEY, (4, *half.start.shape))
    y, _ = half(u, state, is_first)
    all_y, _ = full(u, jnp.stack([jnp.asarray(start(np.asarray(s))) for s in state]), is_first)
    np.testing.assert_allclose(y, all_y, rtol=1e-5, atol=5e-5)


def test_blocks_are_corrected_each_by_itself():
    """A layer of two blocks moves as two layers of one block that share inputs and outputs."""
    two = moved(MIMO(3, 16, 2, transition="dplr", key=KEY))
    u, state = jax.random.normal(KEY, (20, 2, 3)), jax.random.normal(KEY, (2, 8, 2))
    no = jnp.zeros((20, 2), bool)
    _, both = two(u, state, no)
    for half in (slice(0, 4), slice(4, 8)):
        one = MIMO(3, 8, 1, transition="dplr", key=KEY)
        for name in ("decay", "frequency", "log_step", "start"):
            one = eqx.tree_at(lambda m, name=name: getattr(m, name), one, getattr(two, name)[half])
        where = (lambda m: m.B, lambda m: m.C, lambda m: m.Q)
        for pick, part in zip(where, (two.B[..., half], two.C[:, half], two.Q[:, half]), strict=True):
            one = eqx.tree_at(pick, one, part)
        _, alone = one(u, state[:, half], no)
        np.testing.assert_allclose(both[:, :, half], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_convolution_gives_the_outputs_of_the_scan(symmetric):
    layer = moved(SISO(3, 8, 2, symmetric, key=KEY))
    u = jax.random.normal(KEY, (50, 2, 3))
    y, _ = layer(u, jnp.ones((2, *layer.start.shape)), jnp.zeros((50, 2), bool).at[0].set(True))
    np.testing.assert_allclose(layer.convolve(u), y, rtol=1e-4, atol=1e-4)


def test_what_a_corrected_transition_cannot_is_said():
    with pytest.raises(ValueError, match="'dplr' needs the discretisation 'bilinear', got 'zoh'"):
        SISO(3, 8, discretisation="zoh", transition="dplr", key=KEY)
    with pytest.raises(ValueError, match="no convolution here: scan it"):
        SISO(3, 8, transition="dplr", key=KEY).convolve(jnp.zeros((4, 1, 3)))
    with pytest.raises(ValueError, match="'dplr' has no parallel scan"):
        S3MConfig(transition="dplr", scan="parallel")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("config", [OptimiserConfig(learning_rate=0.1, warmup=0), AdamConfig(learning_rate=0.1)])
def test_no_mode_becomes_unstable_however_hard_it_is_pushed(kind, config):
    layer = LAYERS[kind](3, 8, key=KEY)
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
    y, _ = layer(jnp.ones((200, 1, 3)), jnp.zeros((1, *layer.start.shape)), jnp.zeros((200, 1), bool))
    assert jnp.isfinite(y).all()


# --- the world model -----------------------------------------------------------------------------------------------


def world_model(**options) -> S3M:
    return moved(eqx.filter_jit(S3M)(dataclasses.replace(TINY, **options), SPEC, ACTIONS, key=KEY))


def sequence(batch=3, steps=24):
    rng = np.random.default_rng(1)
    observation = {"vector": jnp.asarray(rng.normal(size=(batch, steps, 3)), jnp.float32)}
    action = jnp.asarray(np.eye(ACTIONS)[rng.integers(ACTIONS, size=(batch, steps))], jnp.float32)
    return observation, action, jnp.asarray(rng.random((batch, steps)) < 0.15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": "parallel"},
        {"ssm": "siso", "state": 8},
        {"symmetric": False, "discretisation": "zoh"},
        {"transition": "dplr"},
        {"modes": "ring"},
        {"posterior": "recurrent"},
        {"product": True},
    ],
    ids=["mimo", "parallel", "siso", "full-zoh", "dplr", "ring", "recurrent", "product"],
)
def test_states_in_training_are_those_in_acting_across_resets(options):
    model, (observation, action, is_first) = world_model(**options), sequence()
    noise = model._noise((3, 24), KEY)
    observe = jax.jit(lambda *x: model._observe(*x)[0])
    together = observe(model.initial(3), observation, action, is_first, noise)
    state = model.initial(3)
    for t in range(24):
        now = slice(t, t + 1)
        one = jax.tree.map(lambda x: x[:, now], (observation, action, is_first, noise))  # noqa: B023
        state = jax.tree.map(lambda x: x[:, 0], observe(state, *one))
        for acting, training in zip(state, jax.tree.map(lambda x: x[:, t], together), strict=True):  # noqa: B023
            np.testing.assert_allclose(acting, training, atol=1e-4)


def test_both_scans_give_one_loss_and_one_gradient():
    observation, action, is_first = sequence()
    zero = jnp.zeros(is_first.shape)
    results = []
    for scan in SCANS:
        model = world_model(scan=scan)

        @jax.jit
        def loss(model):
            rows = observation, action, zero + 0.5, is_first, zero > 1, zero > 1
            return model.loss(model.initial(3), Sequence(*rows), KEY)[0]

        results.append(jax.tree.leaves(jax.value_and_grad(loss)(model)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_posterior_has_seen_one_observation_and_nothing_else():
    model, (observation, action, is_first) = world_model(), sequence()
    noise = model._noise((3, 24), KEY)
    one = model._observe(model.initial(3), observation, action, is_first & False, noise)
    past = {"vector": observation["vector"].at[:, :9].add(2.0)}
    other = model._observe(model.initial(3), past, -action, is_first & False, noise)
    np.testing.assert_array_equal(one[1][:, 9:], other[1][:, 9:])
    np.testing.assert_array_equal(one[0].stoch[:, 9:], other[0].stoch[:, 9:])
    assert (one[0].deter[:, 9:] != other[0].deter[:, 9:]).any(-1).all()


def test_h_has_seen_what_came_before_and_not_the_observation_of_its_step():
    model, (observation, action, is_first) = world_model(), sequence()
    noise, t = model._noise((3, 24), KEY), 11
    is_first = is_first & False

    def deter(shift, at):
        moved = {"vector": observation["vector"].at[:, at].add(shift)}
        return model._observe(model.initial(3), moved, action, is_first, noise)[0].deter

    np.testing.assert_array_equal(deter(0.0, t)[:, : t + 1], deter(3.0, t)[:, : t + 1])
    assert (deter(0.0, t)[:, t + 1] != deter(3.0, t)[:, t + 1]).any()


@pytest.mark.parametrize(
    ("policy", "parts"), [("output", ["deter", "stoch"]), ("hidden", ["stoch", "hidden"]), ("full", None)]
)
def test_actor_and_critic_see_what_policy_says_and_the_heads_see_h_and_z(policy, parts):
    parts = parts or ["deter", "stoch", "hidden"]
    model = world_model(policy=policy)
    state = model._observe(model.initial(3), *sequence(), model._noise((3, 24), KEY))[0]
    features = model.features(state)
    shown = [np.asarray(getattr(state, part)).reshape(3, 24, -1) for part in parts]
    np.testing.assert_array_equal(features.context, np.concatenate(shown, -1))
    said = model.reward(features), model.continues(features)
    for part in ("deter", "stoch", "hidden"):
        other = model.features(state._replace(**{part: getattr(state, part) + 1.0}))
        changed = [(model.reward(other) != said[0]).any(), (model.continues(other) != said[1]).any()]
        assert changed == [part != "hidden"] * 2, part


def test_recall_is_of_the_same_episode_alone():
    """Its loss feels what was seen before in the episode, up to R steps back, and nothing of an episode before."""
    model = world_model(recall=3)
    observation, _, _ = sequence()
    is_first = jnp.zeros((3, 24), bool).at[:, 10].set(True)
    deter = jax.random.normal(KEY, (3, 24, TINY.deter))

    def recalled(vector):  # [B, T, seeds], over many draws of how far back
        keys = jax.random.split(KEY, 64)
        losses = jax.vmap(lambda key: model._recall(model.rec, deter, {"vector": vector}, is_first, key))(keys)
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
    model, (observation, action, is_first) = world_model(recall=4), sequence()
    zero = jnp.zeros(is_first.shape)
    given = Sequence(observation, action, zero, is_first, zero > 0, zero > 0)

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
    model, (observation, action, is_first) = world_model(), sequence()
    state = jax.tree.map(jax.lax.stop_gradient, model.initial(3))

    @jax.jit
    @jax.grad
    def pull(model, is_first):
        return model.observe(state, observation, action, is_first, KEY).deter.sum()

    for begins in (is_first, is_first & False):
        starts = [block.ssm.start for block in pull(model, begins).dyn.layers]
        assert [bool((start != 0).any()) for start in starts] == [bool(begins.any())] * 2


def test_a_fresh_model_has_no_steep_gradients():
    """A norm of nothing is steep: with z = 0 at the start of an episode the gradient's norm was beyond 1e4."""
    model = eqx.filter_jit(S3M)(TINY, SPEC, ACTIONS, key=KEY)
    observation, action, is_first = sequence()
    zero = jnp.zeros(is_first.shape)

    @jax.jit
    @jax.grad
    def gradient(model):
        rows = observation, action, zero + 0.5, is_first, zero > 1, zero > 1
        return model.loss(model.initial(3), Sequence(*rows), KEY)[0]

    assert float(optax.tree.norm(gradient(model))) < 100


def test_half_precision_leaves_the_recurrence_in_single():
    model, (observation, action, is_first) = world_model(precision="bfloat16"), sequence()
    states = model.observe(model.initial(3), observation, action, is_first, KEY)
    assert [x.dtype for x in states] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    assert model.features(states).context.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": 24}, r"state of an SSM must be a multiple of 2 x blocks = 16, got 24"),
        ({"state": 20, "symmetric": False}, r"state of an SSM must be a multiple of blocks = 8, got 20"),
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


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", [MIMO, SISO])
def test_a_ring_has_no_blocks(kind, symmetric):
    layer = kind(4, 10, 8, symmetric, modes="ring", key=KEY)
    assert layer.decay.shape[-1] == (5 if symmetric else 10)


def test_what_has_no_weights_is_not_asked_to_decay_them():
    with pytest.raises(ValueError, match=r"ssm.weight_decay must be 0, got 0.1"):
        GroupsConfig(ssm=AdamConfig(weight_decay=0.1))


def test_the_world_model_for_popgym_has_as_many_parameters_as_published_but_for_conjugates():
    """The authors' has 9.07M, both conjugates kept, h made without a norm, and LayerNorms with offsets."""
    spec = {"suit": ArraySpec((1,), categories=4)}
    config = dataclasses.replace(PRESETS["popgym"], symmetric=False)
    model = eqx.filter_eval_shape(S3M, config, spec, 4, key=KEY)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(model))
    assert count == pytest.approx(9.07e6, rel=0.01)


# --- by configuration alone ----------------------------------------------------------------------------------------


def agent(**options) -> Dreamer:
    small = {"memory": 4, "units": 8, "layers": 1, "horizon": 3, "starts": 4}
    config = DreamerConfig(model=TINY, optimiser=GroupsConfig(), **(small | options))
    return Dreamer(config, SPEC, Discrete(ACTIONS))


def test_groups_cover_all_networks_and_each_moves_at_its_own_rate():
    networks = jax.eval_shape(agent().init, KEY).networks
    assert set(SSM_PARAMETERS) == {f.name for f in dataclasses.fields(MIMO) if not f.metadata.get("static")}
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
