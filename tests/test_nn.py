"""Layers, distributions and the optimiser against direct statements in NumPy and SciPy."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from reverie.nn import parts
from reverie.nn.distributions import Bernoulli, BoundedNormal, Categorical, Normal, SquaredError, TwoHot, symexp, symlog
from reverie.nn.layers import (
    GRU,
    MLP,
    BlockLinear,
    Conv,
    Head,
    Linear,
    RMSNorm,
    SetEncoder,
    masked_pool,
    merge_blocks,
    split_blocks,
)
from reverie.nn.optimiser import OptimiserConfig, clip_by_tensor, optimiser

KEY = jax.random.key(7)


# --- layers --------------------------------------------------------------------------------------------------------


def test_linear_acts_on_the_last_axis_whatever_leads():
    layer = Linear(3, 2, key=KEY)
    x = jax.random.normal(KEY, (5, 4, 3))
    np.testing.assert_allclose(layer(x), np.asarray(x) @ np.asarray(layer.weight), rtol=1e-5)
    np.testing.assert_allclose(layer(x[0, 0]), layer(x)[0, 0], rtol=1e-5)


def test_initial_weights_have_variance_of_one_over_fan_in_and_no_far_tail():
    linear, conv = Linear(400, 300, key=KEY).weight, Conv(16, 128, 5, key=KEY).weight
    for weight, fan_in in ((linear, 400), (conv, 400)):
        np.testing.assert_allclose(weight.std() * fan_in**0.5, 1.0, rtol=0.02)
        assert jnp.abs(weight).max() * fan_in**0.5 <= 2 * 1.1368


def test_block_linear_starts_with_the_fan_in_of_all_blocks():
    weight = BlockLinear(800, 800, 8, key=KEY).weight
    np.testing.assert_allclose(weight.std() * 800**0.5, 1.0, rtol=0.02)


def test_scale_shrinks_initial_output_weights():
    np.testing.assert_allclose(Linear(9, 9, scale=0.01, key=KEY).weight, 0.01 * Linear(9, 9, key=KEY).weight, rtol=1e-6)


def test_block_linear_is_a_block_diagonal_matrix():
    layer = BlockLinear(12, 6, 3, key=KEY)
    x = jax.random.normal(KEY, (2, 5, 12))
    dense = scipy.linalg.block_diag(*np.asarray(layer.weight))
    np.testing.assert_allclose(merge_blocks(layer(split_blocks(x, 3))), np.asarray(x) @ dense, rtol=1e-4, atol=1e-6)


def test_blocks_are_neighbouring_features_and_merge_back():
    x = jnp.arange(24.0).reshape(2, 12)
    assert (split_blocks(x, 3)[1] == x[:, 4:8]).all()
    assert (merge_blocks(split_blocks(x, 3)) == x).all()


def test_block_linear_refuses_widths_that_do_not_divide():
    with pytest.raises(ValueError, match="10 -> 9 into 3"):
        BlockLinear(10, 9, 3, key=KEY)


def test_rms_norm_by_hand():
    norm = RMSNorm(2)
    np.testing.assert_allclose(norm(jnp.array([3.0, 4.0])), np.array([3.0, 4.0]) / np.sqrt(12.5 + 1e-4), rtol=1e-6)


def test_rms_norm_computes_in_float32_and_keeps_the_type():
    x = jax.random.normal(KEY, (4, 256)).astype(jnp.bfloat16)
    y = RMSNorm(256)(x)
    assert y.dtype == jnp.bfloat16
    assert (y == RMSNorm(256)(x.astype(jnp.float32)).astype(jnp.bfloat16)).all()


def test_convolution_keeps_the_size_and_batch_axes():
    conv = Conv(1, 1, 5, key=KEY)
    image = jnp.zeros((2, 3, 8, 6, 1)).at[1, 2, 4, 3, 0].set(1.0)
    y = conv(image)
    assert y.shape == image.shape
    np.testing.assert_allclose(y[1, 2, 2:7, 1:6, 0], conv.weight[::-1, ::-1, 0, 0], rtol=1e-6)
    assert (y[0] == 0).all()


def test_mlp_refuses_no_layers():
    with pytest.raises(ValueError, match="layers=0"):
        MLP(3, 4, 0, key=KEY)


def test_gru_matches_its_equations():
    cell = GRU(3, 4, key=KEY)
    h, x = jax.random.normal(KEY, (5, 4)), jax.random.normal(jax.random.key(1), (5, 3))
    pre = np.asarray(x @ cell.inputs.weight + h @ cell.recurrent.weight, np.float64)
    pre /= np.sqrt((pre**2).mean(-1, keepdims=True) + 1e-4)
    reset, candidate, update = np.split(pre, 3, -1)
    sigmoid = scipy.special.expit
    candidate = sigmoid(reset) * candidate
    u = sigmoid(update - 1)
    expected = u * candidate * sigmoid(candidate) + (1 - u) * np.asarray(h)
    np.testing.assert_allclose(cell(h, x), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cell.step(h, cell.project(x)), cell(h, x))


def test_gru_state_stays_bounded_whatever_the_weights():
    cell = jax.tree.map(lambda leaf: 100 * leaf + 3, GRU(3, 8, key=KEY))
    inputs = 1e3 * jax.random.normal(KEY, (2000, 3))
    _, norms = jax.lax.scan(lambda h, x: (cell(h, x), jnp.abs(h).max()), jnp.zeros(8), inputs)
    assert norms.max() <= 103 * np.sqrt(24)  # scale * sqrt(3 U)


def test_sets_are_read_without_order_and_without_padding():
    encode = SetEncoder(2, 8, 2, key=KEY)
    rows, mask = jax.random.normal(KEY, (3, 5, 2)), jnp.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
    order = jnp.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(encode(rows, mask), encode(rows[:, order], mask[:, order]), rtol=1e-5)
    np.testing.assert_allclose(encode(rows, mask), encode(jnp.where(mask[..., None], rows, 1e6), mask), rtol=1e-5)
    np.testing.assert_allclose(encode(rows, mask)[0], encode(rows[0, :3], mask[0, :3]), rtol=1e-5)


def test_pool_is_mean_and_maximum_and_zero_for_an_empty_set():
    rows, mask = jnp.array([[[1.0], [-3.0], [8.0]]] * 2), jnp.array([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(masked_pool(rows, mask), [[-1.0, 1.0], [0.0, 0.0]])
    gradient = jax.grad(lambda rows: masked_pool(rows, mask).sum())(rows)
    np.testing.assert_array_equal(gradient[..., 0], [[1.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


# --- distributions -------------------------------------------------------------------------------------------------


def test_symexp_undoes_symlog():
    x = np.concatenate([-np.geomspace(1e-6, 1e6, 50), [0.0], np.geomspace(1e-6, 1e6, 50)])
    np.testing.assert_allclose(symlog(jnp.asarray(x)), np.sign(x) * np.log1p(abs(x)), rtol=1e-5)
    np.testing.assert_allclose(symexp(symlog(jnp.asarray(x))), x, rtol=2e-5)


def test_unimix_is_in_probabilities_entropy_and_kl():
    logits = np.random.default_rng(0).normal(0, 4, (6, 5))
    p, q = (0.9 * scipy.special.softmax(x, -1) + 0.1 / 5 for x in (logits, 2 * logits[::-1]))
    left, right = (Categorical.from_logits(jnp.asarray(x), 0.1) for x in (logits, 2 * logits[::-1]))
    np.testing.assert_allclose(left.probs, p, rtol=1e-5)
    np.testing.assert_allclose(left.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(left.kl(right), scipy.stats.entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(left.log_prob(jnp.arange(6) % 5), np.log(p[np.arange(6), np.arange(6) % 5]), rtol=1e-5)
    assert (left.mode() == p.argmax(-1)).all()


@pytest.mark.parametrize("unimix", [0.0, 0.05])
def test_forbidden_classes_are_never_drawn_and_break_no_gradient(unimix):
    mask = jnp.array([True, False, True, False])

    def build(logits):
        return Categorical.from_logits(logits, unimix, mask)

    logits = jnp.array([0.0, 9.0, 1.0, 500.0])
    distribution = build(logits)
    p = (1 - unimix) * scipy.special.softmax([0.0, 1.0]) + unimix / 2
    np.testing.assert_allclose(distribution.probs, [p[0], 0, p[1], 0], rtol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(p), rtol=1e-5)
    drawn = jax.vmap(distribution.sample)(jax.random.split(KEY, 500))
    assert set(np.unique(drawn)) == {0, 2}
    gradient = jax.grad(lambda x: build(x).entropy() + build(x).log_prob(jnp.int32(2)) + build(x).kl(build(2 * x)))(
        logits
    )
    assert jnp.isfinite(gradient).all()
    assert (gradient[jnp.array([1, 3])] == 0).all()
    assert (jnp.abs(gradient[jnp.array([0, 2])]) > 0).all()


def test_straight_through_samples_are_one_hot_and_follow_the_probabilities():
    distribution = Categorical.from_logits(jnp.array([[0.0, 2.0, 1.0]]), 0.01)
    noise = (jnp.arange(10_000) + 0.5) / 10_000
    samples = Categorical(*(jnp.repeat(x, 10_000, 0) for x in (distribution.probs, distribution.log_probs)))
    samples = samples.straight_through(noise)
    assert (jnp.sort(samples, -1) == jnp.array([0.0, 0.0, 1.0])).all()
    np.testing.assert_allclose(samples.mean(0), distribution.probs[0], atol=2e-4)


def test_straight_through_gradient_is_that_of_the_mixed_probabilities():
    logits, weight, noise = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, -2.0, 0.5]), jnp.float32(0.5)

    def of_sample(logits):
        return Categorical.from_logits(logits, 0.2).straight_through(noise) @ weight

    def of_probs(logits):
        return (0.8 * jax.nn.softmax(logits) + 0.2 / 3) @ weight

    np.testing.assert_allclose(jax.grad(of_sample)(logits), jax.grad(of_probs)(logits), rtol=1e-5)


def test_bernoulli_with_a_soft_target():
    logit, target = jnp.array([-2.0, 0.0, 3.0]), jnp.array([0.1, 0.997, 1.0])
    p = scipy.special.expit(np.asarray(logit, np.float64))
    loss = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    np.testing.assert_allclose(Bernoulli(logit).loss(target), loss, rtol=1e-5)
    np.testing.assert_allclose(Bernoulli(logit).log_prob(logit > 0), np.log(np.maximum(p, 1 - p)), rtol=1e-5)
    np.testing.assert_allclose(Bernoulli(logit).entropy(), scipy.stats.bernoulli(p).entropy(), rtol=1e-5)
    assert (Bernoulli(logit).mode() == jnp.array([False, False, True])).all()
    drawn = jax.vmap(Bernoulli(logit).sample)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(drawn.mean(0), p, atol=0.04)


def two_hot_by_hand(target: float) -> np.ndarray:
    """The definition: find the two neighbours, share the weight by distance."""
    half = [np.sign(x) * np.expm1(abs(x)) for x in np.linspace(-20, 0, 128)]
    bins = np.array(half + [-x for x in half[-2::-1]])
    weights = np.zeros(255)
    target = min(max(target, bins[0]), bins[-1])
    above = int(np.searchsorted(bins, target))
    if bins[above] == target:
        weights[above] = 1
    else:
        gap = bins[above] - bins[above - 1]
        weights[above] = (target - bins[above - 1]) / gap
        weights[above - 1] = (bins[above] - target) / gap
    return weights


@pytest.mark.parametrize("target", [0.0, 0.05, -0.05, 1.0, -17.3, 999.9, 3e5, -4e8, 4.85e8, 1e12, -1e12])
def test_two_hot_weights_and_loss_against_the_definition(target):
    weights = two_hot_by_hand(target)
    lower, share = TwoHot.between(jnp.float32(target), 255)
    np.testing.assert_allclose((1 - share) * np.eye(255)[lower] + share * np.eye(255)[lower + 1], weights, atol=2e-5)
    logits = np.random.default_rng(1).normal(size=255)
    loss = -(weights * scipy.special.log_softmax(logits)).sum()
    np.testing.assert_allclose(TwoHot(jnp.asarray(logits)).loss(jnp.float32(target)), loss, rtol=1e-5)


def test_two_hot_bins_are_mirrored_around_an_exact_zero():
    bins = TwoHot.bins(TwoHot.BINS)
    assert bins.shape == (255,)
    assert bins[127] == 0
    assert (bins == -bins[::-1]).all()
    np.testing.assert_allclose(bins[-1], np.expm1(20.0), rtol=1e-6)
    assert (np.diff(bins) > 0).all()
    with pytest.raises(ValueError, match="got 254"):
        TwoHot.bins(254)


@pytest.mark.parametrize("logit", [0.0, -3.7, 11.1])
def test_a_uniform_two_hot_expects_exactly_zero(logit):
    assert TwoHot(jnp.full(255, logit)).mean() == 0


def test_equal_tails_of_a_two_hot_cancel():
    logits = jnp.zeros(255).at[128].set(3.0).at[100].set(-2.0)  # a bin that was pushed down, below the tails
    bins, probs = TwoHot.bins(255).astype(np.float64), scipy.special.softmax(np.asarray(logits, np.float64))
    np.testing.assert_allclose(TwoHot(logits).mean(), (bins * probs).sum(), rtol=1e-5)


@pytest.mark.parametrize(("steps", "width", "at_once"), [(6, 400, 2), (5, 300, 1), (3, 2000, 1), (64, 16, 64)])
def test_a_mean_in_parts_and_its_gradient_are_those_of_all_rows(steps, width, at_once):
    keys = iter(jax.random.split(KEY, 4))
    net, fixed = (Head(7, 2, 8, layers=1, key=next(keys)) for _ in range(2))
    rows, inputs = (jax.random.normal(next(keys), (steps, width, n)) for n in (4, 3))

    def loss(net, fixed, inputs, rows):
        x = jnp.concatenate([inputs, rows], -1)
        return jnp.square(net(x) - fixed(x)).mean(), {"mean": net(x).mean()}

    assert parts.at_a_time(rows) == at_once
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    of_all = eqx.filter_value_and_grad(lambda given: 2 * loss(given[0], fixed, given[1], rows)[0])
    of_parts = eqx.filter_value_and_grad(lambda given: 2 * parts.mean_in_parts(given, loss, fixed, rows)[0])
    jax.tree.map(close, of_all((net, inputs)), of_parts((net, inputs)))
    said = parts.mean_in_parts((net, inputs), loss, fixed, rows)
    jax.tree.map(close, said, loss(net, fixed, inputs, rows))
    close(parts.map_in_parts(lambda rows: rows.sum(-1), rows), rows.sum(-1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_two_hot_is_exact_where_little_is_left_of_it(dtype):
    """Near the optimum probabilities and weights differ by little, which rounding must not swallow."""
    weights = two_hot_by_hand(1.7)
    logits = jnp.asarray(np.log(weights + 1e-6) + np.random.default_rng(0).normal(scale=0.02, size=255) + 9, dtype)
    found = jax.grad(lambda x: TwoHot(x).loss(jnp.float32(1.7)))(logits)
    wanted = scipy.special.softmax(np.asarray(logits, np.float64)) - weights
    large = np.abs(wanted) > 1e-4
    np.testing.assert_allclose(np.asarray(found, np.float64)[large], wanted[large], rtol=0.01)


@pytest.mark.parametrize("target", [-3e4, -2.5, 0.001, 7.0, 123456.0])
def test_a_two_hot_expects_what_it_was_taught(target):
    logits = jnp.log(jnp.float32(two_hot_by_hand(target)) + 1e-30)
    np.testing.assert_allclose(TwoHot(logits).mean(), target, rtol=1e-4)


def test_bounded_normal_against_scipy():
    center, width, value = (jax.random.normal(k, (4, 3)) * 3 for k in jax.random.split(KEY, 3))
    distribution = BoundedNormal(center, width)
    reference = scipy.stats.norm(np.tanh(center), 0.9 * scipy.special.expit(np.asarray(width) + 2) + 0.1)
    np.testing.assert_allclose(distribution.log_prob(value), reference.logpdf(value).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(distribution.entropy(), reference.entropy().sum(-1), rtol=1e-4)
    drawn = jax.vmap(distribution.sample)(jax.random.split(KEY, 5000))
    np.testing.assert_allclose(drawn.mean(0), reference.mean(), atol=0.08)
    np.testing.assert_allclose(drawn.std(0), reference.std(), atol=0.05)


def test_normal_against_scipy():
    center, width, value = (jax.random.normal(k, (4, 3)) * 3 for k in jax.random.split(KEY, 3))
    distribution = Normal.from_outputs(center, width)
    reference = scipy.stats.norm(np.asarray(center), np.log1p(np.exp(np.asarray(width, np.float64))) + 0.1)
    np.testing.assert_allclose(distribution.log_prob(value), reference.logpdf(value).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(distribution.entropy(), reference.entropy().sum(-1), rtol=1e-4)
    drawn = jax.vmap(distribution.sample)(jax.random.split(KEY, 5000))
    np.testing.assert_allclose(drawn.mean(0), reference.mean(), atol=0.25)
    np.testing.assert_allclose(drawn.std(0), reference.std(), rtol=0.05)
    assert (distribution.mode() == center).all()


def test_kl_of_normals_is_the_closed_form_and_what_samples_say():
    (center, width), (other_center, other_width) = np.random.default_rng(3).normal(size=(2, 2, 4, 3))
    left, right = (Normal.from_outputs(*map(jnp.asarray, x)) for x in ((center, width), (other_center, other_width)))
    s, t = (np.log1p(np.exp(x)) + 0.1 for x in (width, other_width))
    closed = (np.log(t / s) + (s**2 + (center - other_center) ** 2) / (2 * t**2) - 0.5).sum(-1)
    np.testing.assert_allclose(left.kl(right), closed, rtol=1e-5)
    drawn = jax.vmap(left.sample)(jax.random.split(KEY, 20_000))
    estimate = (left.log_prob(drawn) - right.log_prob(drawn)).mean(0)
    np.testing.assert_allclose(estimate, closed, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(left.kl(left), 0.0, atol=1e-6)


def test_a_reparameterised_sample_passes_gradients_to_mean_and_spread():
    center, width, noise = jnp.array([0.5, -1.0]), jnp.array([0.0, 2.0]), jnp.array([1.5, -0.5])
    by_mean, by_width = jax.grad(lambda c, w: Normal.from_outputs(c, w).reparameterised(noise).sum(), argnums=(0, 1))(
        center, width
    )
    np.testing.assert_allclose(by_mean, 1.0)
    np.testing.assert_allclose(by_width, noise * scipy.special.expit(np.asarray(width)), rtol=1e-5)
    assert (Normal.from_outputs(center, width - 1e3).deviation == np.float32(0.1)).all()


def test_squared_error_in_symlog_space():
    prediction = SquaredError(jnp.array([1.0, -2.0]), squash=True)
    target = jnp.array([10.0, -3.0])
    np.testing.assert_allclose(prediction.loss(target), [(1 - np.log(11)) ** 2, (-2 + np.log(4)) ** 2], rtol=1e-5)
    np.testing.assert_allclose(prediction.mode(), [np.expm1(1), -np.expm1(2)], rtol=1e-5)
    np.testing.assert_allclose(SquaredError(jnp.array([0.25])).loss(jnp.array([1.0])), [0.5625])


# --- optimiser -----------------------------------------------------------------------------------------------------


def test_clipping_by_hand():
    clip = clip_by_tensor(0.3, 1e-3)
    params = {"large": jnp.array([[3.0, 4.0]]), "small": jnp.array([3.0, 4.0]), "zero": jnp.zeros(2)}
    gradients = {"large": jnp.array([[6.0, 8.0]]), "small": jnp.array([0.6, 0.8]), "zero": jnp.array([3.0, 4.0])}
    clipped, _ = clip.update(gradients, clip.init(params), params)
    np.testing.assert_allclose(clipped["large"], [[0.9, 1.2]], rtol=1e-6)  # norm 10 -> 0.3 * 5
    np.testing.assert_array_equal(clipped["small"], gradients["small"])  # norm 1 is below 0.3 * 5
    np.testing.assert_allclose(clipped["zero"], [1.8e-4, 2.4e-4], rtol=1e-6)  # norm 5 -> 0.3 * 1e-3


def test_updates_follow_laprop_in_float64():
    config = OptimiserConfig(learning_rate=0.01, warmup=4, clip=1e9, momentum=0.9, rms_decay=0.99)
    rng = np.random.default_rng(3)
    value = rng.normal(size=7)
    params, chain = jnp.asarray(value, jnp.float32), optimiser(config)
    state = chain.init(params)
    second, first = np.zeros(7), np.zeros(7)
    for step in range(1, 10):
        gradient = rng.normal(size=7) * 10.0 ** rng.integers(-6, 3)
        second = 0.99 * second + 0.01 * gradient**2
        normalised = gradient / (np.sqrt(second / (1 - 0.99**step)) + 1e-20)
        first = 0.9 * first + 0.1 * normalised
        value -= 0.01 * min(1, (step - 1) / 4) * first / (1 - 0.9**step)
        update, state = chain.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, update)
    np.testing.assert_allclose(params, value, rtol=1e-5)


def test_a_zero_gradient_moves_nothing():
    chain = optimiser(OptimiserConfig(warmup=0))
    params = jnp.ones(3)
    update, _ = chain.update(jnp.zeros(3), chain.init(params), params)
    assert (update == 0).all()


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0.0), ("clip", -1.0), ("momentum", 1.0), ("rms_decay", -0.1), ("warmup", -1)]
)
def test_impossible_optimiser_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        OptimiserConfig(**{field: value})
