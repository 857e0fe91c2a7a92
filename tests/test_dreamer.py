"""Dreamer: its returns, its memory, its gradients, and that training goes on as if it had never stopped."""

from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes

from reverie.agents import dreamer, rl2
from reverie.agents.dreamer import Dreamer, DreamerConfig
from reverie.agents.optimisers import GroupsConfig
from reverie.envs.core import ArraySpec, Continuous, stack_tasks
from reverie.envs.fleet import workload
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.models.core import Sequence
from reverie.models.queue import QueueConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.train import off_policy
from reverie.train.off_policy import OffPolicyConfig

ENV = FleetEnv(servers=3, jobs=12)
TASK = fleet_task(constant_speeds([1.0, 0.5, 0.2]), workload.poisson(1.0, workload.exponential(1.0)))
POOL = stack_tasks([TASK] * 2)
FLAT = DreamerConfig(model=sizes.RSSM, memory=8, units=16, layers=1, dream_length=4, starts=8)
SCALES = replace(FLAT, scales=2, scale_rate=1.0)
SET = replace(FLAT, model=SetRSSMConfig(units=16, deter=8, stoch=2, world_deter=8, world_stoch=2, classes=4))
QUEUE = replace(FLAT, model=QueueConfig(units=16, deter=8), siblings=2)
R2I = replace(FLAT, model=sizes.S3M, optimiser=GroupsConfig())
GATHERING = OffPolicyConfig(streams=2, episodes=2, capacity=400, batch=2, length=8, ratio=4.0)


def agent(config: DreamerConfig) -> Dreamer:
    return Dreamer(config, ENV.observation_spec, ENV.action_spec)


@cache
def learned(config: DreamerConfig):
    """An agent, its state after 3 updates, the jitted function of one update, and what the last one measured."""
    a = agent(config)
    train = jax.jit(lambda state: off_policy.update(a, GATHERING, ENV, POOL, state, None, 1.0)[::2])
    state = jax.jit(lambda key: off_policy.init(a, GATHERING, ENV, POOL, key))(jax.random.key(0))
    for _ in range(3):
        state, metrics = train(state)
    return a, state, train, metrics


@pytest.fixture(params=[SCALES, SET, QUEUE, R2I], ids=["flat", "set", "queue", "r2i"])
def trained(request):
    return learned(request.param)


def sample_batch(a: Dreamer, state: off_policy.OffPolicy) -> dreamer.Batch:
    place = off_policy.replays.sample(state.replay, 2, 9, jnp.arange(0), jax.random.key(5))
    return a.batch(off_policy.replays.read(state.replay, place))


def test_lambda_returns_equal_the_definition():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    continues = rng.uniform(size=(4, 2))
    expected, later = np.zeros((4, 2)), value[4]
    for t in reversed(range(4)):
        expected[t] = later = reward[t] + continues[t] * (0.05 * value[t + 1] + 0.95 * later)
    f32 = [jnp.asarray(x, jnp.float32) for x in (reward, continues, value)]
    np.testing.assert_allclose(dreamer.lambda_returns(*f32, 0.95), expected, rtol=1e-5)


def sequence_of(reward, last, terminal) -> Sequence:
    n = len(reward)
    flags = [jnp.asarray([x], bool) for x in (np.zeros(n), last, terminal, np.zeros(n))]
    return Sequence({}, jnp.zeros((1, n, 1)), jnp.asarray([reward], jnp.float32), *flags, jnp.zeros((1, n), int))


def test_replay_returns_stop_at_terminals_and_bootstrap_where_an_episode_was_cut_off():
    value = jnp.asarray([[10.0, 20.0, 30.0, 40.0]])
    ended = dreamer.replay_returns(sequence_of([0, 1, 2, 3], [0, 0, 1, 0], [0, 0, 1, 0]), value, 0.9, 1.0)[0]
    assert ended[1] == 2.0, "a terminal state has no value"
    assert ended[0] == pytest.approx(1 + 0.9 * 2)
    cut = dreamer.replay_returns(sequence_of([0, 1, 2, 3], [0, 0, 1, 0], [0, 0, 0, 0]), value, 0.9, 1.0)[0]
    assert cut[1] == pytest.approx(2 + 0.9 * 30), "the last state of a cut-off episode lends its value"
    assert cut[2] == pytest.approx(3 + 0.9 * 40)


def test_memory_of_a_sequence_equals_memory_while_acting(trained):
    """Run the policy, then replay what it saw: memory and model state agree at every step, across episodes."""
    a, state, _, _ = trained
    batch = sample_batch(a, state)
    networks, sequence = state.learner.networks, batch.sequence
    begins = sequence.is_trial_first.at[0, 3].set(True)  # none of the few rows drawn may be a trial's first
    sequence = sequence._replace(reward=sequence.reward * a.config.reward_scale, is_trial_first=begins)

    @jax.jit
    def at_once():
        before = networks.model.resume(batch.model, batch.lent, jax.random.key(6))
        _, states = networks.model.observe(before, sequence, jax.random.key(7))
        features = networks.model.features(states)
        return features, rl2.remember_sequence(networks.memory, batch.recurrent, features, sequence)

    @jax.jit
    def step(h, features, now):
        inputs = rl2.memory_inputs(features, now.action, now.reward, now.is_first)
        return rl2.remember(networks.memory, jnp.where(now.is_trial_first[:, None], 0.0, h), inputs)

    features, together = at_once()
    h = batch.recurrent
    for t in range(sequence.reward.shape[1]):
        h = step(h, *jax.tree.map(lambda x, t=t: x[:, t], (features, sequence)))
        np.testing.assert_allclose(together[:, t], h, rtol=1e-5, atol=1e-6)


def test_memory_is_emptied_at_trials_and_not_at_episodes():
    networks = learned(SCALES)[1].learner.networks
    features = networks.model.features(networks.model.initial(1))
    features = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (1, 6, *x.shape[1:])), features)
    flags = jnp.zeros((1, 6), bool)
    first = flags.at[0, 3].set(True)

    @jax.jit
    def after(state, is_trial_first):
        given = {}, jnp.zeros((1, 6, 3)), jnp.zeros((1, 6)), first, flags, flags, is_trial_first, jnp.zeros((1, 6), int)
        return rl2.remember_sequence(networks.memory, state, features, Sequence(*given))[0, -1]

    one, other = jnp.zeros((1, 8)), jnp.ones((1, 8))
    assert not np.allclose(after(one, flags), after(other, flags)), "an episode's end emptied the memory"
    new_trial = flags.at[0, 3].set(True)
    np.testing.assert_array_equal(after(one, new_trial), after(other, new_trial))


def test_stored_latents_let_a_sequence_begin_without_burn_in(trained):
    """What replay lends a sequence is what the policy held at that step, up to the half precision it is stored in."""
    a, state, _, _ = trained
    collector, rows, _ = off_policy.gather(a, GATHERING, ENV, POOL, state.learner, state.collector, 4)
    held = a.policy(state.learner.networks)
    kept, recurrent = ~collector.is_trial_first, rows.kept.recurrent[-1].astype(jnp.float32)
    np.testing.assert_allclose(recurrent[kept], collector.policy_state.recurrent[kept], rtol=1e-2, atol=1e-2)
    expanded = held.networks.model.expand(jax.tree.map(lambda x: x[-1], rows.kept.latents))
    for stored, live in zip(jax.tree.leaves(expanded), jax.tree.leaves(collector.policy_state.model), strict=True):
        np.testing.assert_allclose(np.asarray(stored)[kept], np.asarray(live)[kept], rtol=1e-2, atol=1e-2)


def test_dreams_teach_neither_the_model_nor_the_slow_critic_but_do_reach_memory_of_the_past(trained, monkeypatch):
    a, state, _, _ = trained
    batch = sample_batch(a, state)
    model = type(state.learner.networks.model)
    model_loss = model.loss

    def silent(*arguments):
        """The model's own loss without its gradient: what is left comes from dreams."""
        loss, rest = model_loss(*arguments)
        return jax.lax.stop_gradient(loss), rest

    monkeypatch.setattr(model, "loss", silent)
    a = replace(a, config=replace(a.config, replay_critic=0.0))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(networks):
        return a.loss(networks, state.learner, batch, jax.random.key(3))[0]

    found = gradient(state.learner.networks)
    strength = lambda tree: [float(jnp.abs(g).max()) for g in jax.tree.leaves(tree)]  # noqa: E731
    assert max(strength(found.model)) < 1e-5, "the dream's losses reach the world model"
    assert min(strength(found.memory)) > 0, "the memory does not learn"
    assert max(strength(found.actor)) > 0


def test_stopping_and_resuming_gives_the_same_numbers_as_not_stopping(trained, tmp_path):
    _, state, train, _ = trained
    on, _ = train(train(state)[0])
    copied = jax.tree.map(
        lambda x: (
            jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(x))))
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else jnp.asarray(np.asarray(x))
        ),
        train(state)[0],
    )
    again, _ = train(copied)
    for x, y in zip(jax.tree.leaves(on), jax.tree.leaves(again), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_metrics_are_finite_and_named(trained):
    _, _, _, metrics = trained
    finite = {name for name, value in metrics.items() if np.isfinite(value).all()}
    assert {
        "actor/loss",
        "critic/loss",
        "critic/replay_loss",
        "model/continue",
        "model/reward",
        "dream/return",
    } <= finite


def test_every_new_step_is_trained_on_once_while_it_is_fresh():
    config = OffPolicyConfig(streams=4, capacity=10_000, batch=4, length=16, ratio=4.0)
    newest = [
        (int(s), (u + 1) * config.steps) for u in range(64) for s in np.asarray(off_policy.fresh(config, jnp.int32(u)))
    ]
    covered = {(s, t) for s, end in newest for t in range(end - config.length, end)}
    assert {(s, t) for s in range(4) for t in range(config.length, 64 * config.steps - config.length)} <= covered


def test_plain_dreamer_has_no_memory_and_as_many_parameters_as_the_official_code():
    from reverie.envs.core import ArraySpec, Discrete

    config = DreamerConfig(memory=0)
    plain = Dreamer(config, {"vector": ArraySpec((4,))}, Discrete(2))
    networks = jax.eval_shape(plain.init, jax.random.key(0)).networks
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(eqx.filter(networks, lambda x: hasattr(x, "shape"))))
    assert count == 637_381


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ratio", 1000.0, "ratio must be at most"),
        ("capacity", 10, "capacity must hold"),
        ("batch", 0, "batch must be at least 1"),
    ],
)
def test_impossible_gathering_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(GATHERING, **{field: value})


def test_siblings_are_judged_by_what_they_did_and_not_by_their_luck():
    rng = np.random.default_rng(0)
    luck, merit = rng.normal(size=(5, 1, 3)), rng.normal(size=(5, 4, 3))
    judged = dreamer.beyond_siblings(jnp.asarray(100 * luck + merit, jnp.float32).reshape(5, 12), 4).reshape(5, 4, 3)
    others = (merit.sum(1, keepdims=True) - merit) / 3
    expected = (merit - others) / np.sqrt(np.square(merit - others).mean((0, 1)))
    np.testing.assert_allclose(judged, expected, atol=2e-4)
    np.testing.assert_allclose(np.square(judged).mean((0, 1)), 1.0, rtol=1e-4)


def test_siblings_share_the_luck_of_the_model_and_not_their_actions():
    networks = learned(SET)[1].learner.networks
    start = networks.model.initial(16)
    dreams = jax.jit(lambda: dreamer.dream(networks, start, jnp.zeros((16, 8)), 4, 2, jax.random.key(2)))()
    first, second = (jax.tree.map(lambda x, s=s: x[1, s], dreams.features.servers) for s in (slice(0, 8), slice(8, 16)))
    same = (dreams.action[0, :8] == dreams.action[0, 8:]).tolist()
    assert any(same)
    assert not all(same)
    equal = (first == second).all((-2, -1)).tolist()
    assert equal == same, "after one step siblings differ where they acted differently, and only there"


@pytest.mark.parametrize("config", [FLAT, SET], ids=["flat in half precision", "set"])
def test_gaussian_latents_train(config):
    """Half precision is for GPUs, and trains here as well."""
    assert sizes.RSSM.dtype == ("bfloat16" if jax.default_backend() == "gpu" else "float32")
    precision = {"precision": "bfloat16"} if config is FLAT else {}
    _, _, _, metrics = learned(replace(config, model=replace(config.model, latent="gaussian", **precision)))
    assert all(np.isfinite(value).all() for name, value in metrics.items() if not name.startswith("episode/"))
    assert metrics["model/kl"] > 0


def test_each_task_has_returns_of_its_own_scale():
    rng = np.random.default_rng(0)
    returns, task = rng.normal(size=(6, 40)) * np.where(np.arange(40) % 2, 100.0, 1.0), np.arange(40) % 2
    percentiles = jax.jit(dreamer.percentiles, static_argnums=2)
    found = percentiles(jnp.asarray(returns, jnp.float32), jnp.asarray(task), 3)
    for k in (0, 1):
        np.testing.assert_allclose(found[:, k], np.percentile(returns[:, task == k], [5, 95]), rtol=1e-4)
    assert np.isnan(found[:, 2]).all(), "a task that no dream belongs to has a scale"

    _, state, _, metrics = learned(SCALES)
    assert np.isfinite(state.learner.low).all()
    assert np.isfinite(metrics["actor/loss"])
    with pytest.raises(ValueError, match="siblings have a scale of their own"):
        replace(FLAT, scales=2, siblings=2)


def test_what_continuous_actions_would_ignore_is_refused():
    seen = {"vector": ArraySpec((2,))}
    with pytest.raises(ValueError, match=r"unimix is 0\.05, and continuous actions .* leave it at 0\.01, or give 0"):
        Dreamer(replace(FLAT, unimix=0.05), seen, Continuous(2))
    assert Dreamer(replace(FLAT, unimix=0.0), seen, Continuous(2)).config.unimix == 0
