"""The queue model: dreams that obey the simulator's physics, jobs that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reverie.envs.core import ArraySpec
from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.models import queue
from reverie.models.core import Sequence
from reverie.models.queue import QueueConfig, QueueModel
from reverie.models.tokens import BINS, draw, token
from reverie.nn.optimiser import OptimiserConfig, optimiser

KEY = jax.random.key(3)
SPEEDS = [1.0, 0.5, 0.25]
ENV = FleetEnv(servers=3, jobs=20)
TASK = fleet_task(constant_speeds(SPEEDS), workload.poisson(1.5, workload.exponential(1.0)))
CONFIG = QueueConfig(units=16, deter=16, unit=1.0)


def make(config: QueueConfig = CONFIG) -> QueueModel:
    """A model whose parameters are moved off their start."""
    model = QueueModel(config, ENV.observation_spec, 3, key=KEY)
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.05 * noise.normal(size=x.shape).astype(np.float32), model)


@jax.jit
def played(key) -> Sequence:
    """Random play of 4 streams over 27 steps: an episode, its end, and the beginning of another [4, 27]."""

    def stream(key):
        reset_key, other_key, *keys = jax.random.split(key, 2 + 20)
        actions = jax.random.randint(key, (20,), 0, 3)

        def episode(reset_key, length):
            state, first = ENV.reset(TASK, reset_key)

            def step(state, now):
                action, key = now
                state, timestep = ENV.step(TASK, state, action, key)
                return state, timestep

            _, rest = jax.lax.scan(step, state, (actions[:length], jnp.stack(keys[:length])))
            timesteps = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
            return timesteps, jnp.concatenate([jnp.zeros((1, 3)), jax.nn.one_hot(actions[:length], 3)])

        parts = episode(reset_key, 20), episode(other_key, 5)
        timesteps, action = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
        ts, task = timesteps, jnp.zeros(timesteps.reward.shape, int)
        return Sequence(
            ts.observation, action, ts.reward, ts.is_first, ts.is_last, ts.is_terminal, ts.is_first & False, task
        )

    return jax.vmap(stream)(jax.random.split(key, 4))


@jax.jit
def observe(model: QueueModel, state, sequence: Sequence):
    return model.observe(state, sequence, KEY)[1]


def assert_trees_close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)


def test_response_times_are_those_of_the_simulator():
    model, sequence = make(), played(KEY)
    states = observe(model, model.initial(4), sequence)
    np.testing.assert_allclose(states.response, -sequence.reward, rtol=1e-4, atol=1e-4)


def test_a_dream_moves_servers_as_the_simulator_does(monkeypatch):
    """Given the jobs that really came, dreaming on from a state is the same as playing on."""
    model, sequence = make(), played(KEY)
    states = observe(model, model.initial(4), sequence)
    jobs = iter([x for t in range(6, 12) for x in (states.size[:, t], states.gap[:, t])])
    monkeypatch.setattr(queue, "draw", lambda logits, noise, unit: next(jobs))
    state = jax.tree.map(lambda x: x[:, 5], states)
    for t in range(6, 12):
        state = model.imagine(state, sequence.action[:, t], KEY)
        assert_trees_close(state, jax.tree.map(lambda x, t=t: x[:, t], states), rtol=1e-4, atol=1e-4)


def test_the_price_of_time_is_read_off_the_rewards():
    model = QueueModel(CONFIG, ENV.observation_spec, 3, key=KEY)
    states = observe(model, model.initial(4), played(KEY))
    np.testing.assert_allclose(model.reward(states), -states.response, rtol=1e-4, atol=1e-4)
    sequence = played(KEY)
    cheaper = sequence._replace(reward=0.5 * sequence.reward)

    @jax.jit
    @jax.grad
    def pull(model):
        return model.loss(model.initial(4), cheaper, KEY)[1][1]["model/reward"]

    assert pull(model).price > 0, "a descent makes time cheaper"


def test_tokens_cover_all_sizes_and_are_drawn_where_they_stand():
    sizes = jnp.array([0.0, 1e-9, 0.001, 0.9, 1.1, 50.0, 1e9])
    tokens = token(sizes, 1.0)
    assert tokens[0] == 0
    assert tokens[1] == 1
    assert tokens[-1] == BINS - 1
    assert (jnp.diff(tokens) >= 0).all()
    for x, k in zip(sizes[2:6], tokens[2:6], strict=True):
        sure = jnp.where(jnp.arange(BINS) == k, 0.0, -1e9)
        lowest, highest = (draw(sure, jnp.array([0.5, place]), 1.0) for place in (0.0, 0.999))
        assert lowest <= x <= highest * 1.001
        assert highest / lowest < 1.3


def test_giants_look_alike_but_cost_what_they_cost():
    model = make(QueueConfig(units=16, deter=16, unit=1.0, largest=5.0))
    state = jax.tree.map(lambda x: x[:, 5], observe(model, model.initial(4), played(KEY)))
    large, giant = (model.features(state._replace(size=jnp.full((4,), size))) for size in (5.0, 500.0))
    np.testing.assert_array_equal(large.servers, giant.servers)
    np.testing.assert_array_equal(large.context, giant.context)
    action = jnp.tile(jnp.eye(3)[0], (4, 1))
    one, two = (model.imagine(state._replace(size=jnp.full((4,), size)), action, KEY) for size in (5.0, 500.0))
    np.testing.assert_allclose(two.response - one.response, 495.0 / state.speed[:, 0], rtol=1e-4)
    assert (model.reward(two) < model.reward(one)).all()


def test_siblings_meet_the_same_jobs():
    """What is drawn hangs on the key and on the jobs so far, not on the action."""
    model = make()
    state = jax.tree.map(lambda x: x[:, 5], observe(model, model.initial(4), played(KEY)))
    one, two = (model.imagine(state, jnp.tile(jnp.eye(3)[a], (4, 1)), KEY) for a in (0, 2))
    np.testing.assert_array_equal(one.size, two.size)
    np.testing.assert_array_equal(one.gap, two.gap)
    assert (one.response != two.response).all()


def test_jobs_are_learned_and_dreamt():
    """After 400 updates on bursts (a gap is long after a long one), dreams have the mean gap of each phase."""
    rng = np.random.default_rng(1)
    phase = np.cumsum(rng.random((64, 40)) < 0.1, 1) % 2
    gap = np.where(phase, 8.0, 0.5) * rng.uniform(0.8, 1.25, phase.shape)
    job = jnp.asarray(np.stack([np.full(gap.shape, 2.0), gap], -1), jnp.float32)
    nothing, never = jnp.zeros((64, 40, 3, 2)), jnp.zeros((64, 40), bool)
    seen = {"servers": nothing, "job": job, "mask": jnp.ones((64, 40, 3), bool)}
    sequence = Sequence(seen, jnp.zeros((64, 40, 3)), jnp.zeros((64, 40)), *[never] * 4, jnp.zeros((64, 40), int))
    model = QueueModel(CONFIG, ENV.observation_spec, 3, key=KEY)
    chain = optimiser(OptimiserConfig(learning_rate=3e-3, warmup=20))

    @jax.jit
    def learn(model):
        def update(carry, key):
            model, state = carry
            batch = jax.tree.map(lambda x: x[jax.random.choice(key, 64, (8,))], sequence)
            gradient = jax.grad(lambda m: m.loss(m.initial(8), batch, key)[0])(model)
            step, state = chain.update(gradient, state, model)
            return (optax.apply_updates(model, step), state), None

        return jax.lax.scan(update, (model, chain.init(model)), jax.random.split(KEY, 400))[0][0]

    model = learn(model)
    states = observe(model, model.initial(64), sequence)
    dreamt = jax.vmap(lambda key: model.imagine(jax.tree.map(lambda x: x[:, 20], states), jnp.zeros((64, 3)), key))
    dreams = dreamt(jax.random.split(KEY, 64))  # [64 dreams, 64 streams]
    assert np.median(dreams.size) == pytest.approx(2.0, rel=0.15)
    late = phase[:, 20] == 1
    # One time in ten the phase changes: the mean of the next gap is 0.9 of this phase's and 0.1 of the other's.
    assert dreams.gap[:, late].mean() == pytest.approx(0.9 * 8.2 + 0.1 * 0.5, rel=0.15)
    assert dreams.gap[:, ~late].mean() == pytest.approx(0.9 * 0.5 + 0.1 * 8.2, rel=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"unit": 0.0}, r"unit must be greater than 0, got 0\.0"),
        ({"largest": 0.0}, r"largest must be greater than 0, got 0\.0"),
        ({"horizon": 1.0}, r"horizon must be greater than 1, got 1\.0"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        QueueConfig(**options)


@pytest.mark.parametrize(
    "spec", [{"servers": ArraySpec((3, 1), "servers"), "job": ArraySpec((1,))}, {"vector": ArraySpec((4,))}]
)
def test_a_view_that_hides_work_is_refused(spec):
    with pytest.raises(ValueError, match=r"view `full`.*SetRSSM reads any view"):
        QueueModel(CONFIG, spec, 3, key=KEY)
