"""The counts model: jobs that are never lost, hidden speeds that are inferred."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reverie.envs.core import ArraySpec
from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.models import counts
from reverie.models.core import Sequence
from reverie.models.counts import MOST, CountsConfig, CountsModel
from reverie.nn.optimiser import OptimiserConfig, optimiser

KEY = jax.random.key(3)
ENV = FleetEnv(servers=3, jobs=20, view="counts", reward="elapsed")
CONFIG = CountsConfig(units=16, deter=16, unit=1.0)


def make(config: CountsConfig = CONFIG) -> CountsModel:
    """A model whose parameters are moved off their start."""
    model = CountsModel(config, ENV.observation_spec, 3, key=KEY)
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.05 * noise.normal(size=x.shape).astype(np.float32), model)


def playing(speeds, env=ENV, streams=4):
    """Random play of some streams: an episode, its end, and the beginning of another [B, J + 7]."""
    task = fleet_task(constant_speeds(speeds), workload.poisson(1.5, workload.exponential(1.0)))

    @jax.jit
    def play(key) -> Sequence:
        def stream(key):
            reset_key, other_key, *keys = jax.random.split(key, 2 + env.jobs)
            actions = jax.random.randint(key, (env.jobs,), 0, env.servers)

            def episode(reset_key, length):
                state, first = env.reset(task, reset_key)

                def step(state, now):
                    state, timestep = env.step(task, state, *now)
                    return state, timestep

                _, rest = jax.lax.scan(step, state, (actions[:length], jnp.stack(keys[:length])))
                timesteps = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
                done = jax.nn.one_hot(actions[:length], env.servers)
                return timesteps, jnp.concatenate([jnp.zeros((1, env.servers)), done])

            parts = episode(reset_key, env.jobs), episode(other_key, 5)
            ts, action = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
            flags = ts.is_first, ts.is_last, ts.is_terminal, ts.is_first & False
            return Sequence(ts.observation, action, ts.reward, *flags, jnp.zeros(ts.reward.shape, int))

        return jax.vmap(stream)(jax.random.split(key, streams))

    return play


played = playing([1.0, 0.5, 0.25])


@jax.jit
def observe(model: CountsModel, state, sequence: Sequence):
    return model.observe(state, sequence, KEY)[1]


def assert_trees_close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)


def test_a_dream_of_what_happened_is_what_happened(monkeypatch):
    """Given the gaps and completions that really came, dreaming on from a state is the same as playing on."""
    model, sequence = make(), played(KEY)
    states = observe(model, model.initial(4), sequence)
    step = {"t": 6}

    def completed(logits, noise):
        t = step["t"]
        return states.count[:, t - 1] + sequence.action[:, t] - states.count[:, t]

    monkeypatch.setattr(counts, "draw", lambda logits, noise, unit: states.gap[:, step["t"]])
    monkeypatch.setattr(counts, "inverse", completed)
    state = jax.tree.map(lambda x: x[:, 5], states)
    for t in range(6, 12):
        step["t"] = t
        state = model.imagine(state, sequence.action[:, t], KEY)
        assert_trees_close(state, jax.tree.map(lambda x, t=t: x[:, t], states), rtol=1e-4, atol=1e-4)


def test_dreams_neither_lose_nor_invent_jobs():
    model, sequence = make(), played(KEY)
    state = jax.tree.map(lambda x: x[:, 10], observe(model, model.initial(4), sequence))
    for step in range(20):
        action = jnp.tile(jnp.eye(3)[step % 3], (4, 1))
        after = model.imagine(state, action, jax.random.fold_in(KEY, step))
        completed = state.count + action - after.count
        assert ((completed >= 0) & (completed <= MOST)).all()
        assert (after.count >= 0).all()
        assert ((after.age > 0) == (after.count > 0)).all()
        state = after


def test_what_outlives_an_episode_does_not_hear_that_all_jobs_are_gone_at_its_end():
    """A server that held ten jobs behind a giant would pass for the fastest of all."""
    played, last = playing([1.0, 0.5, 0.25])(KEY), ENV.jobs
    assert played.is_last[:, last].all()
    assert played.is_first[:, last + 1].all()
    for forgets in ("episode", "trial"):
        model = make(CountsConfig(units=16, deter=16, unit=1.0, forgets=forgets))
        states = model.observe(model.initial(4), played, KEY)[1]
        before, after = (jax.tree.map(lambda x, t=t: np.asarray(x[:, t]), states) for t in (last - 1, last + 1))
        for name in ("servers", "completed", "busy"):
            kept = getattr(before, name) if forgets == "trial" else 0
            np.testing.assert_array_equal(getattr(after, name), kept)
        assert not np.any(after.age)
        assert not np.any(after.elapsed)
        assert np.any(before.completed)


def test_time_in_the_system_is_nearly_that_of_the_simulator():
    """Counts tell how many jobs there were at both ends of a gap; where none ended, and in the mean, that is enough."""
    model, sequence = make(), played(KEY)
    states = observe(model, model.initial(4), sequence)
    inside = ~(sequence.is_first | sequence.is_last)
    quiet = inside[:, 1:] & (states.count[:, 1:] == states.count[:, :-1] + sequence.action[:, 1:]).all(-1)
    assert quiet.sum() > 10
    np.testing.assert_allclose(states.elapsed[:, 1:][quiet], -sequence.reward[:, 1:][quiet], rtol=1e-4, atol=1e-3)
    assert float((states.elapsed * inside).sum()) == pytest.approx(-float((sequence.reward * inside).sum()), rel=0.1)


def test_siblings_share_arrivals_and_the_luck_of_each_server():
    model = make()
    state = jax.tree.map(lambda x: x[:, 5], observe(model, model.initial(4), played(KEY)))
    one, two = (model.imagine(state, jnp.tile(jnp.eye(3)[a], (4, 1)), KEY) for a in (0, 2))
    np.testing.assert_array_equal(one.gap, two.gap)
    np.testing.assert_array_equal(one.count[:, 1], two.count[:, 1])  # neither sent a job to this one


def test_hidden_speeds_are_inferred():
    """After 300 updates, the model expects three times as many completions of a server three times as fast."""
    play = playing([0.9, 0.3, 0.6], FleetEnv(servers=3, jobs=60, view="counts", reward="elapsed"), streams=32)
    model = CountsModel(CONFIG, ENV.observation_spec, 3, key=KEY)
    chain = optimiser(OptimiserConfig(learning_rate=3e-3, warmup=20))

    @jax.jit
    def learn(model, keys):
        def update(carry, key):
            model, state = carry
            sequence = play(key)
            order = jax.random.permutation(key, 3)  # else it would learn which is which
            seen = {name: x[:, :, order] if name != "job" else x for name, x in sequence.observation.items()}
            sequence = sequence._replace(observation=seen, action=sequence.action[..., order])
            (loss, _), gradient = jax.value_and_grad(lambda m: m.loss(m.initial(32), sequence, key), has_aux=True)(
                model
            )
            step, state = chain.update(gradient, state, model)
            return (optax.apply_updates(model, step), state), loss

        (model, _), losses = jax.lax.scan(update, (model, chain.init(model)), keys)
        return model, losses

    model, losses = learn(model, jax.random.split(KEY, 300))
    assert losses[-20:].mean() < 0.8 * losses[:20].mean()
    sequence = play(jax.random.key(99))
    states = observe(model, model.initial(32), sequence)
    late = jax.tree.map(lambda x: x[:, 55], states)
    busy = late._replace(count=jnp.full_like(late.count, 5.0), age=jnp.full_like(late.age, 0.5))
    logits = model._completions(busy, jnp.zeros((32, 3)), jnp.full((32,), 1.5))
    expected = (jax.nn.softmax(logits) * jnp.arange(MOST + 1)).sum(-1).mean(0)
    assert 2.0 < expected[0] / expected[1] < 4.5
    assert expected[1] < expected[2] < expected[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"unit": 0.0}, r"unit must be greater than 0, got 0\.0"),
        ({"horizon": 1.0}, r"horizon must be greater than 1, got 1\.0"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CountsConfig(**options)


def test_another_view_is_refused():
    spec = {"servers": ArraySpec((3, 2), "servers"), "job": ArraySpec((2,))}
    with pytest.raises(ValueError, match="view `counts`"):
        CountsModel(CONFIG, spec, 3, key=KEY)
