"""STORM: its published parameter counts, its attention written out, what it is lent, what Dreamer learns with it."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from diagnostic import Credit, Recall
from scipy.special import softmax

from reverie.agents.dreamer import Dreamer, DreamerConfig, Networks
from reverie.agents.heads import Actor, Critic
from reverie.envs.core import ArraySpec, Discrete, Environment
from reverie.models.build import build_model
from reverie.models.core import Sequence
from reverie.models.storm import PRESETS, Storm, StormConfig
from reverie.nn.attention import Dropout, Past, Transformer, slide, slides
from reverie.nn.optimiser import OptimiserConfig
from reverie.policies.rollout import rollout
from reverie.train import off_policy
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.trainers import WorldTrainer

KEY = jax.random.key(5)
TINY = sizes.STORM
GAME = {"image": ArraySpec((64, 64, 3), "image")}


def parameters(module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(module) if hasattr(leaf, "shape"))


def shapes(config: StormConfig, actions: int) -> Storm:
    return eqx.filter_eval_shape(build_model, config, GAME, actions, key=KEY)


# --- size ------------------------------------------------------------------------------------------------------------


def test_every_part_has_as_many_parameters_as_in_the_public_code():
    """Counted in its source for the 18 actions of the full game set, layer by layer."""
    model, actions = shapes(PRESETS["atari"], 18), 18
    conv = 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256)
    norms = 2 * (32 + 64 + 128 + 256)
    stem = (1024 + actions) * 512 + 2 * 512 + 512 * 512 + 2 * 512
    positions, their_norm = 64 * 512, 2 * 512
    attention, perceptron = 4 * 512 * 512 + 2 * 512, 2 * 512 * 1024 + 1024 + 512 + 2 * 512
    hidden = 2 * (512 * 512 + 2 * 512)
    s = model.senses
    assert parameters(s.cnn) == conv + norms == 690_624
    assert parameters(s.posterior) == 4096 * 1024 + 1024 == 4_195_328
    assert parameters((s.to_map, s.draw)) == 1024 * 4096 + conv + norms + 3 == 4_884_931
    transformer = stem + positions + their_norm + 2 * (attention + perceptron)
    assert parameters((model.stem, model.transformer)) == transformer == 5_032_960
    assert parameters(model.heads.prior) == 512 * 1024 + 1024 == 525_312
    assert parameters(model.heads.rew) == hidden + 512 * 255 + 255 == 657_151
    assert parameters(model.heads.con) == hidden + 512 + 1 == 526_849
    assert parameters(model) == 16_513_155


def test_an_agent_for_each_of_26_games_has_as_many_parameters_as_reported():
    """518.2 million, 1,976.7 MiB in float32: actor, critic and slow critic included, each game with its own actions."""
    of_games = [18, 10, 7, 9, 18, 18, 18, 4, 18, 9, 6, 3, 18, 8, 18, 18, 18, 18, 14, 9, 6, 18, 6, 18, 18, 6]

    def count(actions: int) -> int:
        actor, critic = (
            eqx.filter_eval_shape(Actor, Discrete(actions), 1536, 0, 512, 2, 0.0, key=KEY),
            eqx.filter_eval_shape(Critic, 1536, 0, 512, 2, key=KEY),
        )
        return parameters(shapes(PRESETS["atari"], actions)) + parameters(actor) + 2 * parameters(critic)

    each = {actions: count(actions) for actions in set(of_games)}
    total = sum(each[actions] for actions in of_games)
    assert total == pytest.approx(518.2e6, rel=2e-4)
    assert 4 * total / 2**20 == pytest.approx(1976.7, rel=2e-4)


# --- attention -------------------------------------------------------------------------------------------------------

B, T, W, HEADS, WIDTH = 2, 7, 3, 2, 8


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    """Parameters are moved off their start, where biases are zero."""
    rng = np.random.default_rng(0)
    made = Transformer(WIDTH, 16, 2, HEADS, W, 0.1, key=KEY)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), x.dtype), made)


def norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * np.asarray(layer.scale) + np.asarray(layer.offset)


def written_out(transformer: Transformer, x: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """One sequence [T, D], step by step, head by head, key by key."""
    size = WIDTH // HEADS
    distance = np.asarray(transformer.distance, np.float64)[::-1]  # the nearest first
    u, v = np.asarray(transformer.content_bias), np.asarray(transformer.distance_bias)
    for block in transformer.blocks:
        query, key, value = (x @ np.asarray(m, np.float64) for m in (block.query, block.key, block.value))
        read = np.zeros_like(x)
        for t in range(len(x)):
            first = max([0, t - W + 1, *np.flatnonzero(begins[: t + 1])])
            for head in range(HEADS):
                at = slice(head * size, (head + 1) * size)
                scores = [
                    ((query[t] + u)[at] @ key[s, at] + (query[t] + v)[at] @ distance[t - s, at]) / math.sqrt(size)
                    for s in range(first, t + 1)
                ]
                read[t, at] = softmax(scores) @ value[first : t + 1, at]
        x = norm(block.attention_norm, x + read @ np.asarray(block.out))
        hidden = np.maximum(0, x @ np.asarray(block.wide.weight) + np.asarray(block.wide.bias))
        x = norm(block.norm, x + hidden @ np.asarray(block.narrow.weight) + np.asarray(block.narrow.bias))
    return x


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    begins = np.zeros((B, T), bool)
    begins[0, 0], begins[1, [3, 5]] = True, True
    return rng.normal(size=(B, T, WIDTH)), begins


def test_attention_is_its_formula(transformer):
    x, begins = tokens()
    nothing = transformer.nothing(B, "float32")
    outputs, _ = transformer(jnp.asarray(x, jnp.float32), nothing, jnp.asarray(begins))
    for row in range(B):
        np.testing.assert_allclose(outputs[row], written_out(transformer, x[row], begins[row]), atol=2e-5)


def test_a_past_is_what_came_before_and_no_more(transformer):
    """In two halves, and from any step on; what is not known any more is zeros."""
    x, begins = (jnp.asarray(a) for a in tokens())
    x, nothing = x.astype(jnp.float32), transformer.nothing(B, "float32")
    whole, made = transformer(x, nothing, begins)
    _, first = transformer(x[:, :4], nothing, begins[:, :4])
    past = slide(nothing, first)
    second, _ = transformer(x[:, 4:], past, begins[:, 4:])
    np.testing.assert_allclose(second, whole[:, 4:], atol=1e-5)
    assert past.known.tolist() == [[True, True], [False, True]], "row 1 began anew at step 3"
    assert (past.layers[1].key[1, 0] == 0).all()
    picked = slides(nothing, made, jnp.array([3, T + 3]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), picked, past)
    assert jax.tree.map(jnp.shape, picked) == jax.tree.map(jnp.shape, nothing)


def test_dropout_drops_its_share_in_training_alone(transformer):
    x, begins = (jnp.asarray(a) for a in tokens())
    given = x.astype(jnp.float32), transformer.nothing(B, "float32"), begins
    plain, dropped, other = (transformer(*given, key)[0] for key in (None, KEY, jax.random.key(6)))
    assert not np.allclose(plain, dropped)
    assert not np.allclose(dropped, other)
    many = Dropout(0.1, KEY).factors(jnp.ones((100_000,)), 0)
    assert set(np.unique(many).round(5)) == {0.0, np.float32(1 / 0.9).round(5)}
    assert (many == 0).mean() == pytest.approx(0.1, abs=0.005)
    assert isinstance(transformer(*given, KEY)[1], Past)


# --- what it sees and is lent ----------------------------------------------------------------------------------------


def test_images_are_read_and_drawn_beside_a_vector_and_every_parameter_learns():
    spec = {"image": ArraySpec((48, 64, 2), "image"), "clock": ArraySpec((1,))}
    model = eqx.filter_jit(build_model)(dataclasses.replace(TINY, free_nats=0.0), spec, 2, key=KEY)
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), x.dtype), model)
    image = jnp.asarray(rng.integers(256, size=(B, 4, 48, 64, 2)), jnp.uint8)
    seen = {"image": image, "clock": jnp.asarray(rng.normal(size=(B, 4, 1)), jnp.float32)}
    no, zero = jnp.zeros((B, 4), bool), jnp.zeros((B, 4))
    sequence = Sequence(seen, jnp.ones((B, 4, 2)), zero + 1, no, no, no, no, jnp.zeros((B, 4), int))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: m.loss(m.initial(B), sequence, KEY)[0]))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert (leaf != 0).any(), jax.tree_util.keystr(path)
    assert model.senses.draw(jnp.ones((1, 3, 4, 16))).shape == (1, 48, 64, 2)


def test_nothing_lent_begins_each_sequence_with_nothing_before_it():
    spec = {"vector": ArraySpec((2,))}
    cold = build_model(dataclasses.replace(TINY, lent=0), spec, 2, key=KEY)
    warm = build_model(TINY, spec, 2, key=KEY)
    assert (cold.rows_lent, warm.rows_lent) == (0, 2 * 3 + 1)
    steps = warm.rows_lent
    no, zero = jnp.zeros((B, steps), bool), jnp.zeros((B, steps))
    vector = jax.random.normal(KEY, (B, steps, 2))
    lent = Sequence({"vector": vector}, jnp.ones((B, steps, 2)), zero, no, no, no, no, jnp.zeros((B, steps), int))
    _, states = warm.observe(warm.initial(B), lent, KEY)
    stored = jax.tree.map(lambda x: x[:, -1], warm.compress(states))
    assert warm.resume(stored, lent, KEY).past.known.all()
    nothing = jax.tree.map(lambda x: x[:, :0], lent)
    begun = cold.resume(stored, nothing, KEY)
    assert not begun.past.known.any()
    np.testing.assert_array_equal(begun.stoch, states.stoch[:, -1])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="deter must be a multiple of heads=3, got 32"):
        dataclasses.replace(TINY, heads=3)
    with pytest.raises(ValueError, match="window must be at least 2"):
        dataclasses.replace(TINY, window=1)
    with pytest.raises(ValueError, match="recall must be 0 where servers is `set`"):
        dataclasses.replace(TINY, recall=3, servers="set")


GATHERING = OffPolicyConfig(streams=8, capacity=4_000, batch=8, length=16, ratio=8.0)


def agent_for(env: Environment, **model) -> Dreamer:
    config = DreamerConfig(
        model=dataclasses.replace(TINY, horizon=10.0, free_nats=0.1, rep_scale=0.01, **model),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=50),
        memory=0,
        units=32,
        layers=1,
        dream_length=5,
        starts=64,
        entropy=1e-2,
    )
    return Dreamer(config, env.observation_spec, env.action_spec)


def test_replay_holds_what_is_lent_before_the_first_update_and_counts_it():
    env, pool = Recall(), jnp.arange(2)
    agent = agent_for(env)
    assert agent.rows_lent == 1 + 7
    begun = off_policy.init(agent, GATHERING, env, pool, KEY)
    assert int(begun.replay.filled) == 8 + 16
    assert WorldTrainer(agent, GATHERING, env, pool, 1).first_steps == 8 * (8 + 16)
    small = dataclasses.replace(GATHERING, capacity=8 * (8 + 16) - 1)
    with pytest.raises(ValueError, match="capacity must be at least 192, got 191"):
        off_policy.init(agent, small, env, pool, KEY)
    patient = dataclasses.replace(GATHERING, prefill=400)
    assert int(off_policy.init(agent, patient, env, pool, KEY).replay.filled) == 50


def learned(env: Environment, updates: int, **model) -> float:
    """The mean return of 256 episodes after training."""
    agent, pool = agent_for(env, **model), jnp.arange(2)
    trainer = WorldTrainer(agent, GATHERING, env, pool, updates)
    ended, _ = jax.jit(trainer.train)(trainer.init(jax.random.key(0)))

    @jax.jit
    def mean_return(networks: Networks):
        policy = agent.policy(networks, greedy=True)
        keep = lambda state, timestep, action: (timestep.reward, timestep.is_last)  # noqa: E731
        _, (reward, is_last) = rollout(env, policy, jnp.zeros((256,), int), jax.random.key(1), 60, keep)
        return reward.sum() / is_last.sum()

    return float(mean_return(ended.learning.learner.networks))


def test_what_is_to_be_remembered_is_in_h_where_it_is_asked_for():
    """What was shown once is named two steps later. Measured: 1.00, 1.00, 1.00 with seeds 0, 1, 2 at 300 updates and
    never less than 0.997 from then to 1,000; without recall 0.50, 1.00, 0.97 at 1,000."""
    env = Recall(gap=1)
    assert learned(env, 300, recall=4) >= 0.95 * env.optimal_return


def test_a_policy_that_sees_what_is_foretold_is_blind_to_what_cannot_be():
    """The first observation is a coin that the action has to name. STORM's way of acting guesses it. Measured: 0.50
    at any time from 100 to 1,200 updates, and 0.96 or more with the posterior from 200 on."""
    env = Credit(delay=1)
    assert learned(env, 250, acts="posterior") >= 0.95 * env.optimal_return
    assert learned(env, 150, acts="prior") <= 0.6  # to guess is worth half
