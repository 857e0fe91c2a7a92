"""MetaDreamer: contexts by a loop, where factors are found, what lies between tasks, physics by the world's own step,
who teaches what, and PEARL as a special case."""

from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

from reverie.agents.core import OffPolicyAgent, Row, Studied
from reverie.agents.metadreamer import Learner, MetaDreamer, MetaDreamerConfig
from reverie.agents.pearl import PEARL, PEARLConfig
from reverie.cli import main
from reverie.commands.train import parse
from reverie.envs.core import Continuous, Discrete, TimeStep, batch_reset
from reverie.envs.dispatch import Dispatch
from reverie.envs.factors import Physics, grid
from reverie.envs.games import find_game
from reverie.envs.merging import Merging, unseen
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.models.context import RecurrentEncoder, Transition
from reverie.models.generative import GenerativeModel, Numbers
from reverie.models.tasks import Interpolation, find_dimensions
from reverie.runs import checkpoint, loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.trainers import WorldTrainer

KEY = jax.random.key(0)
SHARED = PEARLConfig(
    latent=3,
    units=16,
    layers=1,
    encoder_units=16,
    encoder_layers=1,
    tasks=3,
    evidence=6,
    recent=50,
    sees_next=True,
    prior_episodes=1,
    test_episodes=1,
)
SMALL = MetaDreamerConfig(pearl=SHARED, stretch=6, rollouts=12, dream_length=5, renew=2, warmup=2)
SPARSE = find_game("point_robot/sparse")


def agent(game: str = "merging/hidas", shared: dict | None = None, **changes) -> MetaDreamer:
    found = find_game(game)
    config = replace(SMALL, pearl=replace(SHARED, **(shared or {})), **changes)
    return MetaDreamer.of(config, found.world, jnp.asarray(found.tasks))


def rows(a, axes: tuple[int, ...], seed: int) -> Row:
    """Anything: of each of `axes[0]` tasks."""
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    seen = {name: jax.random.normal(next(keys), (*axes, *spec.shape)) for name, spec in a.observation_spec.items()}
    no = jnp.zeros(axes, bool)
    first = jax.random.bernoulli(next(keys), 0.3, axes)
    timestep = TimeStep(seen, jax.random.normal(next(keys), axes), first, no, no)
    task = jnp.broadcast_to(jnp.arange(axes[0]).reshape(-1, *[1] * (len(axes) - 1)), axes)
    action = jax.random.uniform(next(keys), (*axes, a.action_spec.width), minval=-1.0)
    return Row(timestep, no, task, action, ~no)


def studied(a, tasks: int = 3) -> Studied:
    asked = a.evidence
    return Studied(rows(a, (tasks, 4, 2), 1), rows(a, (tasks, asked.stretches, asked.length), 2))


# --- contexts -------------------------------------------------------------------------------------------------------


def test_a_context_at_once_is_its_transitions_one_by_one_and_what_does_not_count_says_nothing():
    encoder = RecurrentEncoder(9, 2, 8, 1, sees_next=True, key=KEY)
    keys = jax.random.split(KEY, 4)
    each = Transition(
        *(jax.random.normal(k, s) for k, s in zip(keys, ((4, 7, 3), (4, 7, 2), (4, 7), (4, 7, 3)), strict=True))
    )
    counts = jax.random.bernoulli(KEY, 0.6, (4, 7)).at[3].set(False)
    belief = encoder.initial(4)
    for t in range(7):
        for row in range(4):  # those that do not count are left out altogether
            if counts[row, t]:
                one = jax.tree.map(lambda x, row=row: x[row], belief)
                learned = encoder.learn(one, jax.tree.map(lambda x, r=row, t=t: x[r, t], each), jnp.array(True))
                belief = jax.tree.map(lambda x, new, r=row: x.at[r].set(new), belief, learned)
    whole = encoder.believe(each, counts)
    np.testing.assert_allclose(whole.h, belief.h, rtol=1e-5, atol=1e-6)
    mean, variance = encoder.gaussian(whole)
    assert (mean[3] == 0).all(), "without any it is the prior"
    assert (variance[3] == 1).all()
    assert (variance[:3] != 1).all()


# --- tasks between tasks ----------------------------------------------------------------------------------------------


def test_the_number_that_a_factor_is_in_is_found():
    """Numbers 3 and 1 of z hold factors 0 and 1, 4 a little of both, the others noise; one task is not known yet."""
    rng = np.random.default_rng(0)
    factors = grid((-1.0, 0.0, 1.0), (5.0, 6.0, 9.0))
    codes = rng.normal(size=(9, 5))
    codes[:, 3] = -0.2 * factors[:, 0] + 7
    codes[:, 1] = factors[:, 1] + 0.5 * rng.normal(size=9)
    codes[:, 4] = factors @ [1.0, 0.5]
    known = np.ones(9, bool)
    codes[8], known[8] = 100.0, False
    found, explained = find_dimensions(*map(jnp.asarray, (codes, factors, known)))
    assert found.tolist() == [3, 1]
    expected = [np.corrcoef(codes[:8, m], factors[:8, k])[0, 1] ** 2 for k, m in enumerate((3, 1))]
    np.testing.assert_allclose(explained, expected, rtol=1e-4)


def test_of_two_known_tasks_a_factor_is_in_the_number_that_differs_most():
    """Any number is a straight function of two values."""
    codes = np.array([[0.11, 0.7, -0.31, 0.002], [0.1, -0.8, -0.3, 0.001]])
    found, explained = find_dimensions(jnp.asarray(codes), jnp.array([[-1.5], [1.5]]), jnp.ones(2, bool))
    assert found.tolist() == [1]
    assert float(explained[0]) == pytest.approx(1, abs=1e-4)


def test_imagined_tasks_lie_evenly_between_neighbours_and_are_none_of_those_known():
    known = grid((0.0, 1.0, 3.0), (-1.0, 1.0))
    between = Interpolation.of(known, density=3, along=(0, 1))
    made = {tuple(task) for task in between.factors(known).round(6).tolist()}
    first = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3]
    second = [-1, -0.5, 0, 0.5, 1]
    assert made == {(a, b) for a in first for b in second} - set(map(tuple, known.tolist()))
    along = Interpolation.of(known, density=1, along=(1,)).factors(known)
    assert set(map(tuple, along.tolist())) == {(a, 0.0) for a in (0.0, 1.0, 3.0)}


def test_their_codes_are_those_of_the_tasks_between_where_codes_are_straight_in_the_factors():
    known = grid((0.0, 1.0, 3.0), (-1.0, 1.0))
    between = Interpolation.of(known, density=3, along=(0, 1))
    rest = jnp.arange(6.0)
    codes = jnp.stack([rest, 2 * jnp.asarray(known[:, 1]) + 1, -jnp.asarray(known[:, 0])], 1)
    z = np.asarray(between.codes(codes, jnp.array([2, 1]), 0.0, 4_000, KEY))
    made = {(-a, (b - 1) / 2) for _, b, a in z.round(5).tolist()}
    np.testing.assert_allclose(sorted(made), sorted(map(tuple, between.factors(known).tolist())), atol=1e-5)
    assert set(z[:, 0]) == set(range(6)), "other numbers are those of known tasks"
    noisy = np.asarray(between.codes(codes, jnp.array([2, 1]), 0.1, 4_000, KEY))
    moved = np.abs(noisy - z)
    assert (moved[:, 0] == 0).all()
    assert (moved[np.isin(-z[:, 2], (0, 1, 3)), 2] == 0).all(), "known values stay"
    gap = np.where(-z[:, 2] < 1, 1.0, 2.0)[~np.isin(-z[:, 2].round(5), (0, 1, 3))]
    assert np.std((noisy - z)[~np.isin(-z[:, 2].round(5), (0, 1, 3)), 2] / gap) == pytest.approx(0.1, rel=0.1)


def test_beyond_the_outermost_values_the_line_through_the_last_two_goes_on():
    known = grid((0.0, 1.0, 3.0), (-1.0, 1.0))
    outward = Interpolation.of(known, density=1, along=(0, 1), beyond=2)
    made = {tuple(task) for task in outward.factors(known).tolist()}
    first = [-2, -1.5, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 6, 7]
    second = [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5]
    assert made == {(a, b) for a in first for b in second} - set(map(tuple, known.tolist()))
    alone = Interpolation.of(np.array([[7.0, 0.0], [7.0, 1.0]], np.float32), density=1, along=(0, 1), beyond=1)
    assert {a for a, _ in alone.factors(np.array([[7.0, 0.0], [7.0, 1.0]]))} == {7.0}, "no line goes through one value"
    codes = jnp.asarray(known[:, ::-1] * [2.0, -1.0])  # the first factor is in the second number
    z = np.asarray(outward.codes(codes, jnp.array([1, 0]), 0.0, 4_000, KEY))
    assert {(-a, b / 2) for b, a in z.round(4).tolist()} == made
    moved = np.abs(np.asarray(outward.codes(codes, jnp.array([1, 0]), 0.1, 4_000, KEY)) - z)[:, 1]
    below, above = -z[:, 1] < -1e-3, -z[:, 1] > 3 + 1e-3
    assert np.sqrt((moved[below] ** 2).mean()) == pytest.approx(0.1, rel=0.1), "noise beside the outermost gap"
    assert np.sqrt((moved[above] ** 2).mean()) == pytest.approx(0.2, rel=0.1)


def test_tasks_without_others_between_them_are_refused():
    with pytest.raises(ValueError, match="no tasks lie between those known"):
        Interpolation.of(np.array([[1.0]], np.float32), density=3, along=(0,))
    with pytest.raises(ValueError, match="more than 200,000: lower density, now 400"):
        Interpolation.of(grid((0.0, 1.0, 3.0), (-1.0, 1.0)), density=400, along=(0, 1))


# --- the generative model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drivers", ["proportional", "hidas"])
def test_physics_with_what_the_drivers_do_is_the_worlds_own_step(drivers):
    world = Merging(drivers)
    assert isinstance(world, Physics)
    tasks = jax.random.uniform(KEY, (64, len(world.factors)), minval=0.0, maxval=2.0)
    states, timestep = batch_reset(world, tasks, KEY)
    for key in jax.random.split(KEY, 45):
        action = jax.random.uniform(key, (64, 1), minval=-0.5, maxval=1.5)
        unknown = jax.vmap(world.responses)(tasks, unseen(timestep.observation["road"]))
        assert (jnp.abs(unknown) <= world.bound).all()
        seen, reward, ends = world.advance(timestep.observation, action, unknown, unknown[:, :0])
        states, timestep = jax.vmap(world.step)(tasks, states, action, jax.random.split(key, 64))
        np.testing.assert_allclose(seen["road"], timestep.observation["road"], atol=1e-4)
        near = jnp.abs(timestep.observation["road"][:, 0]) > 1e-3  # else rounding decides who has arrived
        np.testing.assert_allclose(reward[near], timestep.reward[near], atol=1e-2)
        np.testing.assert_array_equal(ends[near], timestep.is_terminal[near])
    assert timestep.is_terminal.any()


def test_the_loss_is_that_of_the_likeliest_normals_and_what_does_not_count_is_left_out():
    world = Merging()
    model = GenerativeModel(world.observation_spec, world.action_spec, 2, 8, 1, None, key=KEY)
    keys = jax.random.split(KEY, 4)
    before, after = (jax.random.normal(k, (50, 8)) for k in keys[:2])
    action, z, reward = jax.random.normal(keys[2], (50, 1)), jax.random.normal(keys[3], (50, 2)), jnp.arange(50.0)
    counts = (jnp.arange(50) < 40).astype(float)
    loss, squared = model.loss(before, action, z, after, reward, jnp.ones(50), counts)
    led, logit, _ = model(before, action, z, after)
    error = np.concatenate([after - led.observation, (reward - led.reward)[:, None]], 1)[:40]
    deviation = np.sqrt((error**2).mean(0))
    density = (0.5 * (error / deviation) ** 2 + np.log(deviation)).sum(1).mean() - 9 / 2
    assert float(loss) == pytest.approx(density + float(jax.nn.softplus(-logit[:40]).mean()), rel=1e-3)
    np.testing.assert_allclose(squared, deviation**2, rtol=1e-4)


def test_pay_that_is_rare_and_large_is_learned_beside_changes_that_are_foretold_to_a_thousandth():
    """In one network for both it is 2.5 off after as long, of 2.95 that it scatters by."""
    world = Merging()
    model = GenerativeModel(world.observation_spec, world.action_spec, 2, 32, 2, None, key=KEY)
    law, none = jax.random.normal(KEY, (8, 8)) / 8, jnp.zeros((256, 2))
    arrays, static = eqx.partition(model, eqx.is_array)
    optimiser = optax.adam(3e-3)

    def learn(before, key):
        def loss(arrays):
            seen = jax.random.normal(key, (256, 8))
            after, reward = seen + 0.05 * jnp.tanh(seen @ law), jnp.where(seen[:, 0] > 1.3, 10.0, 0.0)
            whole = eqx.combine(arrays, static)
            return whole.loss(seen, none[:, :1], none, after, reward, none[:, 0], none[:, 0] + 1)

        gradient, squared = jax.grad(loss, has_aux=True)(before[0])
        step, state = optimiser.update(gradient, before[1])
        return (optax.apply_updates(before[0], step), state), squared

    squared = jax.lax.scan(learn, (arrays, optimiser.init(arrays)), jax.random.split(KEY, 600))[1]
    off = jnp.sqrt(squared[-100:].mean(0))
    assert off[-1] < 1.2
    assert off[:-1].max() < 0.01


def test_coarse_errors_do_not_outweigh_the_law_of_chance_however_small_they_become():
    """By the slope of the loss in the decoded numbers of a task, where speeds are nearly right and the tail is not."""
    world = Dispatch()
    true = jnp.log(jnp.array([0.5, 0.8, 1.2, 1.5, 2.4, 0.8]))  # speeds, rate and tail
    off, on, keys = jnp.array([1.0, 1, 1, 1, 0, 0]), jnp.ones(64), jax.random.split(KEY, 3)
    before = {"servers": 5 * jax.random.uniform(keys[0], (64, 4, 2)), "job": jax.random.uniform(keys[1], (64, 2))}
    action, laws = jnp.arange(64) % 4, jnp.broadcast_to(true, (64, 6))
    after, reward, _ = world.advance(before, action, laws, world.draw(laws, keys[2]))

    @jax.jit
    def slopes(speeds_off: float) -> tuple[Array, Array]:
        """Plain and coarse."""
        told = true + speeds_off * off + 0.5 * jnp.eye(6)[5]

        def loss(told: Array, coarse: float) -> Array:
            model = GenerativeModel(world.observation_spec, world.action_spec, 2, 8, 1, world, coarse, key=KEY)
            model = eqx.tree_at(lambda m: m.net, model, lambda z: jnp.tile(jnp.arctanh(told / world.bound), (64, 1)))
            numbers = [model.numbers.flat(seen) for seen in (before, after)]
            return model.loss(numbers[0], action, jnp.zeros((64, 2)), numbers[1], reward, 0 * on, on)[0]

        return tuple(jnp.abs(jax.grad(loss)(told, coarse)) for coarse in (0.0, 0.1))

    (plain, coarse), (plainer, coarser) = slopes(1e-2), slopes(1e-3)
    assert plainer[:4].max() > 3 * plain[:4].max() > 30 * plain[5]
    assert coarser[:4].max() < 0.2 * coarse[:4].max() < 0.2 * coarse[5]
    np.testing.assert_allclose(coarse[4:], plain[4:], rtol=1e-3)


def test_numbers_of_an_observation_come_back():
    a = agent()
    seen = rows(a, (5, 2), 0).timestep.observation
    numbers = Numbers.of(a.observation_spec)
    again = numbers.apart(numbers.flat(seen))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), seen, again))


# --- who teaches what ---------------------------------------------------------------------------------------------


@cache
def gradients(decoder: str):
    """Of the whole loss, and of its parts by name."""
    a = agent(decoder=decoder)
    assert isinstance(a, OffPolicyAgent)
    learner, given = a.init(KEY), studied(a)
    imagined = a.imagine(learner.networks, given, learner.codes, jnp.array([0, 1]), jnp.zeros(9), KEY)

    names = ("model/loss", "critic/loss", "actor/loss", "value/loss", "task/inter")

    def losses(networks):
        total, (metrics, *_) = a.loss(networks, learner.target, given, imagined, KEY)
        return jnp.stack([total, *(metrics[name] for name in names)])

    back = eqx.filter_vjp(losses, learner.networks)[1]
    return {name: back(one)[0] for name, one in zip((None, *names), jnp.eye(6), strict=True)}


def largest(tree) -> float:
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("decoder", ["free", "physics"])
def test_encoder_and_model_learn_from_reconstruction_and_actor_and_critics_from_steps(decoder):
    of = gradients(decoder)
    for name in ("critic/loss", "actor/loss", "value/loss"):
        assert largest((of[name].acting.encoder, of[name].model)) == 0, name
    for name in ("model/loss", "task/inter"):
        acting = of[name].acting
        assert largest((acting.actor, acting.critics, acting.value)) == 0, name
        assert largest(acting.encoder) > 0, name
    assert largest(of["model/loss"].model) > 0
    every = of[None]
    for part in (every.acting.encoder, every.acting.actor, every.acting.critics, every.acting.value, every.model):
        assert all(largest(leaf) > 0 for leaf in jax.tree.leaves(part)), part


def test_with_its_encoder_its_teacher_and_nothing_imagined_it_is_pearl():
    """The same losses and gradients, number by number."""
    plain = {"encoder": "product", "teacher": "critics", "contexts": 1, "stretch": 1, "imagination": "none"}
    a = agent("point_robot/sparse", {"kl": 0.1}, **plain)
    b = PEARL(a.config.pearl, a.observation_spec, a.action_spec)
    assert a.evidence == b.evidence
    learner, given = a.init(KEY), studied(a)
    assert learner.imagined is None
    ours = eqx.filter_grad(lambda n: a.loss(n, learner.target, given, None, KEY)[0])(learner.networks)
    theirs = eqx.filter_grad(lambda n: b.loss(n, learner.target, given, KEY)[0])(learner.networks.acting)
    assert largest(theirs.encoder) > 0
    losses = a.loss(learner.networks, learner.target, given, None, KEY)[1][0]
    for name, loss in b.loss(learner.networks.acting, learner.target, given, KEY)[1].items():
        if name.endswith("/loss"):
            assert float(losses[name]) == pytest.approx(float(loss), rel=1e-5), name
    for one, other in zip(jax.tree.leaves(ours.acting), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contexts", [1, 3])
def test_where_the_critics_teach_the_kl_of_a_task_weighs_as_much_with_more_contexts(contexts):
    """That of the tasks of an update is a sum, as PEARL's is, and of the contexts of a task a mean."""
    plain = {"encoder": "product", "teacher": "critics", "contexts": contexts, "imagination": "none"}
    without, beside = (agent("point_robot/sparse", {"kl": kl}, **plain) for kl in (0.0, 0.1))
    learner, given = without.init(KEY), studied(without)
    (nothing, _), (total, (metrics, *_)) = (
        a.loss(learner.networks, learner.target, given, None, KEY) for a in (without, beside)
    )
    assert float(total - nothing) == pytest.approx(0.1 * 3 * float(metrics["task/kl"]), rel=1e-3)


def test_codes_of_one_task_are_pulled_together_and_of_two_pushed_apart():
    a = agent(apart=2.0, intra=3.0, inter=5.0)
    mean = jnp.array([[[0.0, 0, 0], [1.0, 0, 0]], [[0.0, 1.5, 0], [0.0, 1.5, 0]], [[9.0, 9, 9], [9.0, 9, 9]]])
    loss, metrics = a.clusters(mean, jnp.array([4, 7, 4]))  # the first and the last are one task
    codes, task = np.asarray(mean).reshape(6, 3), np.repeat([4, 7, 4], 2)
    pairs = [(i, j, np.linalg.norm(codes[i] - codes[j])) for i in range(6) for j in range(6)]
    intra = np.mean([d**2 for i, j, d in pairs if task[i] == task[j]])
    inter = np.mean([max(0, 2 - d) ** 2 for i, j, d in pairs if task[i] != task[j]])
    assert (float(metrics["task/intra"]), float(metrics["task/inter"])) == pytest.approx((intra, inter), rel=1e-4)
    assert float(loss) == pytest.approx(3 * intra + 5 * inter, rel=1e-4)


def test_structure_asks_for_the_standardised_factors_in_the_first_numbers():
    a = agent("point_robot/sparse", structure=2.0)
    factors = np.array(a.tasks)
    standard = (factors - factors.mean(0)) / factors.std(0)
    mean = jnp.concatenate([jnp.asarray(standard)[:3, None], jnp.ones((3, 1, 1))], -1)
    assert float(a.structured(mean, jnp.arange(3))) == pytest.approx(0.0, abs=1e-9)
    assert float(a.structured(mean.at[..., 0].add(0.5), jnp.arange(3))) == pytest.approx(0.5, rel=1e-4)


# --- imagination ------------------------------------------------------------------------------------------------------


def test_imagined_steps_are_the_models_and_after_the_end_of_an_episode_none_counts():
    a = agent(decoder="physics", dream_length=30)
    networks, z = a.init(KEY).networks, jax.random.normal(KEY, (16, 3))
    _, opened = batch_reset(Merging("hidas"), jnp.ones((16, 2)), KEY)
    begun = jax.tree.map(lambda x: x.at[:, 0].set(-0.5), opened.observation)  # 25 m before the end of the ramp
    steps, told = a.live(networks, begun, z, jnp.zeros(9), KEY)
    by_time = jax.tree.map(lambda x: x.reshape(30, 16, *x.shape[1:]), steps)
    np.testing.assert_array_equal(told.reshape(30, 16, 3), np.broadcast_to(z, (30, 16, 3)))
    np.testing.assert_array_equal(by_time.observation["road"][0], begun["road"])
    np.testing.assert_array_equal(by_time.observation["road"][1:], by_time.after["road"][:-1])
    led, *_ = networks.model(steps.observation["road"], steps.action, told, steps.after["road"])
    np.testing.assert_allclose(steps.reward, led.reward, atol=1e-4)
    ended = np.cumsum(by_time.is_terminal, 0) - np.asarray(by_time.is_terminal)
    np.testing.assert_array_equal(by_time.counts, ended == 0)
    assert 0 < by_time.counts.sum() < 480
    drawn = a.drawn(a.live(networks, begun, z, jnp.zeros(9), KEY), rows(a, (3, 40, 2), 0), KEY)
    assert drawn.steps.counts.all()
    assert len(drawn.z) == 120, "half of all"


@pytest.mark.parametrize(("initial", "share"), [(0.0, 0.3), (1.0, 1.0)])
def test_episodes_begin_in_real_states_of_their_task_or_where_real_episodes_do(initial, share):
    a = agent(initial=initial)
    given = studied(a)
    last = given.rows.timestep.is_last.at[0].set(True)
    given = given._replace(rows=given.rows._replace(timestep=given.rows.timestep._replace(is_last=last)))
    task = jnp.arange(600) % 3
    begun = np.asarray(a.seen_states(given, task, KEY)["road"])
    opens = np.zeros(600, bool)
    for m in range(3):
        real, first, over = (
            np.concatenate([np.asarray(x(part.timestep)[m]).reshape(-1, *tail) for part in given])
            for x, tail in (
                (lambda t: t.observation["road"], (8,)),
                (lambda t: t.is_first, ()),
                (lambda t: t.is_last, ()),
            )
        )
        place = (begun[task == m][:, None] == real).all(-1).argmax(1)
        assert (begun[task == m] == real[place]).all()
        assert not over[place].any()
        opens[np.asarray(task) == m] = first[place]
    assert opens.mean() == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize(("imagination", "known"), [("mdp", 12), ("both", 6), ("meta", 0)])
def test_episodes_are_in_known_tasks_or_between_them_as_asked(imagination, known):
    """Codes of known tasks are far from those of their contexts here, so that the two can be told apart."""
    a = agent(imagination=imagination)
    learner, given = a.init(KEY), studied(a)
    z = a.imagine(learner.networks, given, learner.codes + 1000.0, jnp.array([0, 1]), jnp.zeros(9), KEY).z[:12]
    assert (np.abs(np.asarray(z)).max(1) < 500).sum() == known


# --- training ---------------------------------------------------------------------------------------------------------


GATHERING = OffPolicyConfig(
    streams=9, episodes=2, capacity=900, batch=12, length=1, repeats=2, ratio=24 / 9, prefill=90
)


def test_going_on_from_a_checkpoint_is_not_having_stopped_and_codes_and_imagined_steps_are_there(tmp_path):
    trainer = WorldTrainer(agent("point_robot/sparse"), GATHERING, SPARSE.world, jnp.asarray(SPARSE.tasks), 6)
    train = jax.jit(trainer.train)
    half, _ = train(trainer.init(KEY))
    checkpoint.save(tmp_path / "half", half, {})
    whole, metrics = train(half)
    again, _ = train(checkpoint.load(tmp_path / "half", jax.eval_shape(trainer.init, KEY)))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        keys = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*((jax.random.key_data(x) for x in (a, b)) if keys else (a, b)))
    learner = whole.learning.learner
    assert learner.known.all()
    assert len(np.unique(learner.codes, axis=0)) == 9
    assert learner.imagined.steps.counts.any()
    assert (metrics["imagined/steps"] > 0).all()
    places = np.array([metrics[f"dimension/goal_x/{z}"] for z in range(3)])
    np.testing.assert_allclose(places.sum(0), 1)  # shares of the updates in which it was found in each number of z
    assert all(np.isfinite(x).all() for name, x in metrics.items() if name != "episode/return")


def test_codes_are_means_over_the_contexts_of_a_task():
    a = agent()
    learner = a.init(KEY)._replace(codes=jnp.full((9, 3), 7.0))
    mean = jax.random.normal(KEY, (3, 2, 3))
    codes, known = a.coded(learner, jnp.array([4, 1, 4]), mean)
    np.testing.assert_allclose(codes[4], mean[jnp.array([0, 2])].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(codes[1], mean[1].mean(0), rtol=1e-5)
    assert (codes[jnp.array([0, 2, 3, 5, 6, 7, 8])] == 7).all()
    assert known.tolist() == [k in (1, 4) for k in range(9)]


def test_the_command_line_trains_it_in_games_of_many_tasks():
    words = ["--agent", "metadreamer", "--game"]
    config = parse([*words, "merging", "--agent.along", "yielding"]).config
    assert config.agent.algorithm.decoder == "physics", "the paper's, where the world tells how it goes on"
    assert parse([*words, "point_robot"]).config.agent.algorithm.decoder == "free"
    assert config.curve.trial == 1 + config.agent.algorithm.test_episodes
    build(config)
    pearl = parse(["--agent", "pearl", "--game", "merging"]).config.agent.algorithm
    for size in ("latent", "units", "layers", "encoder_units", "encoder_layers", "tasks", "reward_scale"):
        assert getattr(config.agent.algorithm.pearl, size) == getattr(pearl, size), "equal sizes are for comparison"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("game", "options", "said"),
    [
        (
            "merging",
            ["--agent.along", "speed"],
            "along names factors that the world does not have, speed; it has yielding",
        ),
        (
            "point_robot",
            ["--agent.decoder", "physics"],
            "needs a world that tells how it goes on, and PointRobot does not",
        ),
        ("merging/hidas", ["--agent.latent", "1"], r"factors, 2 \(speed_decrease, deceleration\); got 1"),
        (
            "merging",
            ["--agent.prefill", "0"],
            "stretches of evidence are 65 rows, more than the 2 of each stream .* prefill",
        ),
        ("merging/told", [], "imagines tasks by their factors, and Told names none"),
        (
            "dispatch",
            ["--agent.evidence", "2", "--agent.stretch", "1"],
            "too short: .* factors, 3 .*; got 2 transitions",
        ),
        ("gym:Pendulum-v1", [], "metadreamer infers which task it plays, and gym:Pendulum-v1 is one"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(game, options, said):
    with pytest.raises(ValueError, match=said):
        build(parse(["--agent", "metadreamer", "--game", game, *options]).config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stretch": 1}, "a context is too short: .* stretch must be at least 2; got 1"),
        ({"stretch": 4}, "must be a multiple of stretch, 4; got 6"),
        ({"teacher": "critics", "structure": 1.0}, "structure is learned beside reconstruction"),
        ({"imagination": "mdp", "beyond": 1}, "along and beyond say which tasks are imagined, .* 'mdp'"),
        ({"beyond": -1}, "beyond"),
    ],
)
def test_contexts_that_say_nothing_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **changes)


def test_only_numbers_can_be_foretold():
    game = find_game("repeat_previous/easy")
    with pytest.raises(ValueError, match=r"a generative model foretells numbers; .* are none"):
        GenerativeModel(game.world.observation_spec, Discrete(4), 2, 8, 1, None, key=KEY)
    assert Numbers.of(SPARSE.world.observation_spec).width == 2
    assert SPARSE.world.action_spec == Continuous(2)


# --- what is shown ----------------------------------------------------------------------------------------------------


@cache
def knowing() -> tuple[MetaDreamer, Learner]:
    """One whose known tasks, nine of two factors, all have a code: the factors, in the last two numbers of z."""
    a = agent("merging/hidas", decoder="physics")
    known = jnp.asarray(a.tasks)
    codes = jnp.concatenate([jnp.zeros((len(known), 1)), known], 1)
    return a, a.init(KEY)._replace(codes=codes, known=jnp.ones(len(known), bool))


def test_rows_of_codes_have_each_factor_in_the_number_of_z_where_it_was_found():
    a, learner = knowing()
    world = find_game("merging/hidas").world
    new = np.array(a.tasks, np.float32)[:5] + 0.01
    rows = code_rows(a, learner, lambda copies: world, {"between": new}, 0)
    of = {kind: [row for row in rows if row["tasks"] == kind] for kind in ("known", "between", "imagined")}
    assert [len(each) for each in of.values()] == [len(a.tasks), 5, 200]
    assert np.array([[row[name] for name in a.factors] for row in of["between"]]) == pytest.approx(new)
    told = np.array([[row[f"z/{name}"] for name in a.factors] for row in of["imagined"]])
    low, high = np.min(a.tasks, 0), np.max(a.tasks, 0)
    assert ((told > low - 0.5 * (high - low)) & (told < high + 0.5 * (high - low))).all(), "made of known codes"
    assert {row["z/other"] for row in of["imagined"]} == {0.0}
    assert {row[name] for row in of["imagined"] for name in a.factors} == {None}
    assert len({row["z/other"] for row in of["between"]}) == 5, "read off contexts"


def test_rows_of_foretelling_are_the_world_and_the_model_step_by_step():
    a, learner = knowing()
    rows = foretold_rows(a, learner, lambda copies: find_game("merging/hidas").world, 0)
    assert len({row["task"] for row in rows}) == 3
    assert {row["number"] for row in rows} == {f"road {i}" for i in range(8)}
    first = [row for row in rows if row["ahead"] == 1]
    assert all(abs(row["came"] - row["foretold"]) < 0.05 for row in first), "physics does most of it"
    assert max(row["error"] for row in rows) > 2 * max(row["error"] for row in first)
    assert any(row["error"] != row["unknowing"] for row in rows)


def test_the_page_of_a_run_shows_tasks_and_what_is_foretold(tmp_path):
    """Of one that learned nothing: as it begins."""
    small = "--agent.units 8 --agent.encoder-units 8 --agent.layers 1 --agent.encoder-layers 1 --agent.rollouts 4"
    config = parse(f"--agent metadreamer --game merging {small} --agent.prefill 700".split()).config
    run, trainer = RunFolder.create(tmp_path / "run", config), build(config)
    with run.writer([]) as writer:
        _, saved = writer.restore(loop._Saved(jax.jit(trainer.init)(KEY), 0, 0.0, 0.0))
        writer.save(700, saved)
        line = {"updates": 0, "cpu_seconds": 1.0, "wall_seconds": 1.0, "evaluation/return": 2.0}
        writer.log(700, line | {"explained/yielding": 0.25})
    assert main(["report", str(run.path)]) == 0
    page = run.report.read_text()
    for said in ("Where tasks lie", "known tasks (R²): yielding 0.25", "How far the model is off", "extrapolated"):
        assert said in page
    assert page.count("<figure") >= 3
