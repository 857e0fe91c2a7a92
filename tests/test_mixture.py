"""The mixture of world models: with one part of each kind it is STORM; tasks pass their own parts, and no others."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from diagnostic import HiddenArm

from reverie.agents.dreamer import Batch, Dreamer, DreamerConfig
from reverie.agents.heads import Critics, critic_for
from reverie.envs.core import ArraySpec, Discrete, Suite, suite
from reverie.models.build import build_model
from reverie.models.core import USE, Sequence
from reverie.models.harmony import FAST, harmonised
from reverie.models.mixture import Mixture, MixtureConfig
from reverie.models.routing import Place, balance, switching
from reverie.models.storm import StormConfig
from reverie.nn.grouped import each, groups, stacked
from reverie.nn.layers import Linear
from reverie.nn.optimiser import OptimiserConfig
from reverie.policies.rollout import rollout
from reverie.settings.games import ATARI
from reverie.settings.presets import MODELS, TOGETHER_IN_PICTURES
from reverie.train.off_policy import OffPolicyConfig, over_updates
from reverie.train.trainers import WorldTrainer

KEY = jax.random.key(5)
TINY = {f.name: getattr(sizes.STORM, f.name) for f in dataclasses.fields(StormConfig)}
B, T, A, K = 4, 9, 2, 4
WORLD = {"vector": ArraySpec((3,))}
SUITE = WORLD | {"task": ArraySpec((), "task", K)}
MANY = MixtureConfig(
    **TINY | {"layers": 1}, modules=2, experts=3, active=2, trunk=1, embedding=8, settle=10, harmony="none"
)


def mixture(config: MixtureConfig = MANY, spec=SUITE) -> Mixture:
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    rng = np.random.default_rng(0)
    made = build_model(config, spec, A, key=KEY)
    moved = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape) if x.dtype == jnp.float32 else x, made)
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), moved, made)


def play(task=None, seed: int = 0) -> Sequence:
    rng = np.random.default_rng(seed)
    first = np.zeros((B, T), bool)
    first[:, 5] = True
    task = np.zeros((B, T), int) if task is None else np.broadcast_to(task, (B, T))
    observation = {"vector": jnp.asarray(rng.normal(size=(B, T, 3)), jnp.float32)}
    observation["task"] = jnp.asarray(task, jnp.int32)
    action = np.eye(A)[rng.integers(A, size=(B, T))] * ~first[..., None]
    flags = [jnp.asarray(x) for x in (first, np.roll(first, -1, 1), np.roll(first, -1, 1), first)]
    reward = jnp.asarray(rng.normal(size=(B, T)), jnp.float32)
    return Sequence(observation, jnp.asarray(action, jnp.float32), reward, *flags, observation["task"])


def same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("count", "rows"), [(1, 10), (3, 10), (5, 3), (7, 100), (12, 1)])
def test_each_row_passes_its_own_module_in_no_more_blocks_than_there_are_rows_for(count, rows):
    rng = np.random.default_rng(count)
    modules = stacked(lambda key: Linear(6, 4, key=key), count, KEY)
    index, x = jnp.asarray(rng.integers(count, size=rows)), jnp.asarray(rng.normal(size=(rows, 6)), jnp.float32)
    expected = np.einsum("mi,mio->mo", x, np.asarray(modules.weight)[index])
    np.testing.assert_allclose(
        jax.jit(lambda i, x: each(Linear.__call__, modules, i, x))(index, x), expected, atol=1e-5
    )
    if count > 1:
        plan = groups(index, count)
        laid = np.asarray(plan.source).reshape(-1)
        assert sorted(laid[laid < rows]) == list(range(rows))
        assert plan.source.shape[0] <= -(-rows // plan.source.shape[1]) + min(count, rows) - 1


@pytest.mark.parametrize("servers", ["flat", "set"])
def test_with_one_task_and_one_expert_it_is_storm_bit_for_bit(servers):
    """The same start, and then loss, gradients, states and dreams."""
    changes, sequence = TINY | {"dropout": 0.1, "recall": 2 * (servers == "flat"), "servers": servers}, play()
    world = WORLD
    if servers == "set":
        world = {"servers": ArraySpec((A, 3), "servers"), "job": ArraySpec((3,)), "mask": ArraySpec((A,), "mask")}
        job = sequence.observation["vector"]
        seen = {
            "servers": jnp.stack([job, -job], 2),
            "job": job,
            "mask": jnp.ones((B, T, A), bool).at[0, :, 1].set(False),
        }
        sequence = sequence._replace(observation=seen)
    storm, alone = (
        build_model(c, world, A, key=KEY) for c in (StormConfig(**changes), MixtureConfig(**changes, trunk=0))
    )

    @eqx.filter_jit
    def learn(model):
        def loss(model):
            loss, (states, _) = model.loss(model.initial(B), sequence, KEY)
            return loss, states

        (loss, states), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        start = model.starts(model.initial(B), states, jnp.array([3, T + 7]))
        dream = model.imagine(start, jnp.eye(A), KEY)
        said = model.features(dream), model.reward(dream), model.continues(dream), model.decoded(dream)
        return loss, gradient, *said

    one, other = learn(storm), learn(alone)
    same(one[0], other[0])
    same(one[2:], other[2:])
    numbers = [sorted(float(jnp.abs(x).sum()) for x in jax.tree.leaves(gradient)) for gradient in (one[1], other[1])]
    assert numbers[0] == numbers[1]


def test_tasks_feel_their_own_module_and_experts_alone():
    model = mixture()
    routing = model.route()
    assert (np.diff(routing.chosen) > 0).all(), "experts are not in the order of their index"
    np.testing.assert_array_equal(routing.weight, 1.0)

    @eqx.filter_jit
    @eqx.filter_grad
    def pull(model, sequence):
        return model.loss(model.initial(B), sequence, KEY)[1][1]["model/reward"]

    for task in range(K):
        gradient = pull(model, play(task))
        felt = np.asarray([jnp.abs(x).sum() > 0 for x in gradient.experts.blocks[0].wide.weight])
        assert set(np.flatnonzero(felt)) == set(np.asarray(routing.chosen[task]).tolist())
        modules = np.asarray([jnp.abs(x).sum() > 0 for x in gradient.heads.rew.output.weight])
        assert np.flatnonzero(modules).tolist() == [task % 2]
        assert all(jnp.abs(x).sum() > 0 for x in jax.tree.leaves(gradient.router)), "the router learns nothing"


def test_each_cluster_has_a_critic_of_its_own():
    """Two of them, which know nothing of each other's tasks; with one module there is one critic, which is no list."""
    model = mixture()
    size = model.features(model.initial(1)).context.shape[-1]
    critics = critic_for(model.critics, size, 0, 8, 1, key=KEY)
    assert isinstance(critics, Critics)
    assert critic_for(mixture(dataclasses.replace(MANY, modules=1)).critics, size, 0, 8, 1, key=KEY).shared is None
    start = model.initial(2)

    def worth(critics, task):
        features = model.features(start._replace(place=Place(jnp.array([task, task]), None)))
        return (critics(features, jnp.zeros((2, 0))).logits * jnp.arange(255)).sum()

    for task in range(K):
        felt = eqx.filter_grad(worth)(critics, task).stacked.head.output.weight
        assert np.flatnonzero(jnp.abs(felt).sum((1, 2)) > 0).tolist() == [task % 2]


def test_tasks_side_by_side_are_what_they_are_alone():
    """In one batch, also where a row changes its task."""
    model = mixture()
    task = np.array([[0] * T, [1] * T, [2] * 5 + [3] * 4, [3] * T])
    observe = eqx.filter_jit(lambda model, sequence: model.observe(model.initial(B), sequence, KEY)[1])
    together = model.features(observe(model, play(task))).context
    for k in range(K):
        alone = model.features(observe(model, play(k))).context
        rows = task == k
        # what is drawn hangs on the place in the batch, which is the same
        np.testing.assert_allclose(np.asarray(together)[rows], np.asarray(alone)[rows], atol=2e-5)


def test_a_guess_from_history_or_a_descriptor_never_sees_the_number_of_the_task():
    """What it is taken to be is what was seen, and gradients teach it the numbers that were true."""
    described = SUITE | {"descriptor": ArraySpec((K,), "descriptor")}
    for tells, spec in (("history", SUITE), ("descriptor", described)):
        model = mixture(dataclasses.replace(MANY, tells=tells), spec)
        observe = eqx.filter_jit(lambda model, sequence: model.observe(model.initial(B), sequence, KEY)[1])
        seen = play()
        told = [play(task)._replace(observation=seen.observation | {"task": play(task).task}) for task in (0, 3)]
        if tells == "descriptor":
            one_hot = jax.nn.one_hot(jnp.broadcast_to(jnp.arange(B)[:, None], (B, T)), K)
            told = [s._replace(observation=s.observation | {"descriptor": one_hot}) for s in told]
        one, other = (observe(model, s) for s in told)
        same(model.features(one), model.features(other))
        assert one.place.like.shape == (B, T, K)
        np.testing.assert_allclose(jnp.exp(one.place.like).sum(-1), 1, rtol=1e-5)

        def loss(model, sequence):
            return model.loss(model.initial(B), sequence, KEY)[1][1]["model/guess"]

        step = eqx.filter_jit(eqx.filter_value_and_grad(loss))
        before, gradient = step(model, told[1])
        moved = jax.tree.map(lambda p, g: p - 0.3 * g, model.guess, gradient.guess)
        assert step(eqx.tree_at(lambda m: m.guess, model, moved), told[1])[0] < before


def test_a_new_task_between_two_known_ones_is_a_blend_of_them():
    model = mixture(dataclasses.replace(MANY, tells="history"))
    like = jnp.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    blend, third = model._embedding(Place(like.argmax(-1), jnp.log(like)))
    first, second, known, _ = model.embedded()
    np.testing.assert_allclose(third, known, rtol=1e-6)
    np.testing.assert_allclose(blend @ first, blend @ second, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(blend), 1, rtol=1e-5)


def test_experts_by_chance_are_as_many_for_all_and_those_of_steps_change_less_when_that_costs():
    by_chance = mixture(dataclasses.replace(MANY, experts=4, routing="chance")).route()
    assert balance(by_chance, K) == 0
    assert (np.diff(by_chance.chosen) > 0).all()
    sequence = play(np.arange(B)[:, None])

    def switched(model):
        return model.loss(model.initial(B), sequence, KEY)[1][1]["model/switched"]

    assert eqx.filter_jit(switched)(mixture()) == 0
    token = dataclasses.replace(MANY, routing="token", settle=1)

    def stirred(config):
        return eqx.tree_at(lambda m: m.router.output.weight, mixture(config), replace_fn=lambda w: 20 * w)

    model = stirred(token)
    assert eqx.filter_jit(switched)(model) > 0.1

    def penalty(model):
        *_, routing = model._observe(model.initial(B), sequence, KEY)
        return switching(routing, model.borders(sequence))[0]

    begun, gradient = eqx.filter_jit(eqx.filter_value_and_grad(penalty))(model)

    def total(costs):
        priced = stirred(dataclasses.replace(token, switching=costs))
        return eqx.filter_jit(lambda m: m.loss(m.initial(B), sequence, KEY)[0])(priced)

    assert float(total(3.0) - total(0.0)) == pytest.approx(3 * float(begun), rel=0.05)  # of another draw of z
    calmer = eqx.tree_at(
        lambda m: m.router, model, jax.tree.map(lambda p, g: p - 0.05 * g, model.router, gradient.router)
    )
    assert eqx.filter_jit(penalty)(calmer) < begun


def test_the_temperature_falls_to_one_and_leaves_the_choice_as_it_is():
    model = mixture()
    scores = [model.route().scores]
    for _ in range(12):
        model = model.updated()
        scores.append(model.route().scores)
    entropy = [-(s * jnp.log(s)).sum(-1).mean() for s in scores]
    assert entropy[0] > entropy[5] > entropy[10]
    np.testing.assert_array_equal(scores[10], scores[12])
    np.testing.assert_allclose(scores[12], jax.nn.softmax(model.router(model.embedded())), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(model.embedded(), axis=-1), 1.0, rtol=1e-6)


def test_balance_is_zero_where_all_experts_have_equally_many_tasks_and_moves_the_router_to_it():
    model = mixture(dataclasses.replace(MANY, experts=4))
    even = jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    routing = model.route()
    assert balance(routing._replace(taken=even), K) == 0.0
    assert balance(routing._replace(taken=jnp.tile(even[:1], (K, 1))), K) == 4 * 2**2
    crowded = eqx.tree_at(lambda m: m.router.output.bias, model, jnp.array([3.0, 2.0, 0.0, 0.0]))
    assert balance(crowded.route(), K) == 16
    pull = eqx.filter_grad(lambda m: balance(m.route(), K))(crowded).router.output.bias
    assert (pull[:2] > 0).all()
    assert (pull[2:] < 0).all()


def test_a_harmonious_scale_settles_where_the_loss_says():
    """sigma* = (L + sqrt(L^2 + 4 L)) / 2, where L / sigma + ln(1 + sigma) is least."""
    for loss in (0.1, 1.0, 50.0):
        best = (loss + np.sqrt(loss**2 + 4 * loss)) / 2
        around = jnp.log(best) / FAST + jnp.array([-1e-3, 0.0, 1e-3])
        low, least, high = harmonised(jnp.full(3, loss), around)
        assert least < min(low, high)
        slope = jax.grad(lambda s, loss=loss: harmonised(jnp.full(1, loss), s).sum())(around[1:2])
        assert abs(slope[0]) < 1e-2


def total(model, sequence):
    return model.loss(model.initial(B), sequence, KEY)[0]


@pytest.mark.parametrize("harmony", ["task", "groups"])
def test_losses_are_harmonised_for_the_tasks_that_there_are(harmony):
    """With all scales at 1, each task that is present pays ln 2 for each of its scales."""
    plain, scaled = mixture(), mixture(dataclasses.replace(MANY, harmony=harmony))
    scaled = eqx.tree_at(lambda m: m.scales, scaled, jnp.zeros_like(scaled.scales))
    sequence = play(np.array([[0], [0], [2], [2]]))
    with_scales, gradient = eqx.filter_jit(eqx.filter_value_and_grad(total))(scaled, sequence)
    without = eqx.filter_jit(total)(plain, sequence)
    count = 2 * (1 if harmony == "task" else 3)
    np.testing.assert_allclose(with_scales - without, count * np.log(2), rtol=1e-3)
    assert plain.scales is None
    gradient = gradient.scales
    assert (gradient[jnp.array([0, 2])] != 0).all()
    assert (gradient[jnp.array([1, 3])] == 0).all()


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="active must be at most experts=1, got 2"):
        MixtureConfig(active=2)
    with pytest.raises(ValueError, match="clusters must name modules from 0 to 1"):
        MixtureConfig(modules=2, clusters=(0, 2))
    with pytest.raises(ValueError, match="each of 4 tasks, got 2"):
        mixture(dataclasses.replace(MANY, clusters=(0, 1)))
    with pytest.raises(ValueError, match="no task changes its experts"):
        MixtureConfig(switching=0.1)
    with pytest.raises(ValueError, match="no observation describes its task"):
        mixture(dataclasses.replace(MANY, tells="descriptor"))
    with pytest.raises(ValueError, match="there is one task, and tells is 'history'"):
        mixture(dataclasses.replace(MANY, experts=2, tells="history"), WORLD)
    with pytest.raises(ValueError, match="one task has nothing to be routed by"):
        mixture(MANY, WORLD)


def test_one_agent_for_26_games_is_as_large_as_the_papers():
    """972.5 MiB of float32, 49 % of 26 agents' 1,976.7 (its slow critics counted as theirs are): within 1 %."""
    config = dataclasses.replace(ATARI.agent.algorithm, model=TOGETHER_IN_PICTURES["mixture"])
    games = {"image": ArraySpec((64, 64, 3), "image"), "task": ArraySpec((), "task", 26)}
    learner = jax.eval_shape(Dreamer(config, games, Discrete(18)).init, KEY)
    mebibytes = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves((learner.networks, learner.slow_critic))) / 2**20
    assert mebibytes == pytest.approx(972.5, rel=0.01)
    assert mebibytes / 1976.7 < 0.5


def test_a_new_task_is_placed_by_its_embedding_and_the_router_alone(monkeypatch):
    """Fewer than 1,000 numbers for 16 tasks at the sizes of the preset, and nothing else of the agent moves."""
    of_preset = eqx.filter_eval_shape(build_model, MODELS["mixture"], SUITE, A, key=KEY)
    assert sum(x.size for x in jax.tree.leaves(of_preset.router)) + 16 * of_preset.embeddings.shape[1] < 1000

    def loss(self, networks, learner, batch, key):
        total = sum(jnp.square(x - 1).sum() for x in jax.tree.leaves(eqx.filter(networks, eqx.is_inexact_array)))
        return total, (learner, (None, jnp.zeros((1, 1, 0))), {})

    monkeypatch.setattr(Dreamer, "loss", loss)
    still = OptimiserConfig(warmup=0)
    config = DreamerConfig(model=MANY, optimiser=still, memory=0, units=8, layers=1, learns="place")
    nothing = Batch(play(), play(), None, jnp.zeros((B, 0)))
    moved = {}
    for learns in ("all", "place"):
        agent = Dreamer(dataclasses.replace(config, learns=learns), SUITE, Discrete(A))
        learner = eqx.filter_jit(agent.init)(KEY)
        after, _, _ = eqx.filter_jit(agent.learn)(learner, nothing, KEY)
        moved[learns] = learner.networks, after.networks
    before, after = moved["place"]
    assert (before.model.embeddings != after.model.embeddings).any()
    assert (before.model.router.output.weight != after.model.router.output.weight).any()
    restored = eqx.tree_at(lambda n: (*n.model.placing, n.model.updates), after, (*before.model.placing, jnp.int32(0)))
    same(restored, before)
    before, after = moved["all"]
    assert (before.actor.head.output.weight != after.actor.head.output.weight).any()
    with pytest.raises(ValueError, match="only a mixture can place a new one"):
        _ = eqx.filter_eval_shape(build_model, MODELS["storm"], WORLD, A, key=KEY).placing


def test_dreamer_learns_a_suite_whose_tasks_want_opposite_things():
    """One of two arms pays, and which one is the task: 1.0 is the most, and half of it for who does not know the task.
    Replay draws both tasks alike, and each has returns of its own scale."""
    env = Suite(HiddenArm(), ("left", "right"))
    pool = suite({"left": [jnp.int32(0)], "right": [jnp.int32(1)]})
    model = dataclasses.replace(MANY, horizon=10.0, free_nats=0.1, experts=2, active=1, harmony="task")
    config = DreamerConfig(
        model=model,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=50),
        memory=0,
        units=32,
        layers=1,
        dream_length=3,
        starts=64,
        entropy=1e-2,
        scales=2,
    )
    agent = Dreamer(config, env.observation_spec, env.action_spec)
    gathering = OffPolicyConfig(streams=8, capacity=4_000, batch=8, length=16, ratio=8.0, by_task=True)
    trainer = WorldTrainer(agent, gathering, env, pool, 200)
    ended, metrics = jax.jit(trainer.train)(trainer.init(jax.random.key(0)))
    networks = ended.learning.learner.networks
    assert networks.model.updates == 200

    @jax.jit
    def mean_return(networks):
        policy = agent.policy(networks, greedy=True)
        keep = lambda state, timestep, action: (timestep.reward, timestep.is_last)  # noqa: E731
        _, (reward, is_last) = rollout(env, policy, pool, jax.random.key(1), 40, keep)
        return reward.sum(0) / is_last.sum(0)

    assert (mean_return(networks) >= 0.95).all()
    assert metrics["model/task"][-20:].mean() < 0.1 * np.log(2)


def test_over_several_updates_a_task_has_the_share_of_those_that_saw_it():
    """And what is NaN for another reason stays so: training has diverged then."""
    of_updates = jnp.array([jnp.nan, 0.25, 0.75])
    found = over_updates({f"{USE}0/1": of_updates, "model/reward": of_updates})
    assert found[f"{USE}0/1"] == 0.5
    assert jnp.isnan(found["model/reward"])
