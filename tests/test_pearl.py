"""PEARL: beliefs by the closed form, what teaches the encoder, acting step by step, and resuming."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.agents.core import OffPolicyAgent, Row, Studied
from reverie.agents.pearl import PEARL, PEARLConfig
from reverie.commands.train import parse
from reverie.envs.core import ArraySpec, Continuous, Discrete, TimeStep
from reverie.envs.games import find_game
from reverie.models.context import Product, ProductEncoder, Transition
from reverie.runs.build import build
from reverie.settings.config import GameConfig
from reverie.train import replay as replays
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.trainers import WorldTrainer

SMALL = PEARLConfig(
    latent=3, units=16, layers=1, encoder_units=16, encoder_layers=1, tasks=2, evidence=5, recent=9, sees_next=True
)
SPEC = {"vector": ArraySpec((2,)), "servers": ArraySpec((3, 2), "servers")}
KEY = jax.random.key(0)
GAME = find_game("point_robot/sparse")
GATHERING = OffPolicyConfig(streams=9, episodes=4, capacity=900, batch=8, length=1, repeats=2, ratio=16 / 9)


def agent(action_spec=Continuous(3), **changes) -> PEARL:  # noqa: B008
    return PEARL(replace(SMALL, **changes), SPEC, action_spec)


def rows(axes, spec, seed=0, *, last=False) -> Row:
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    seen = {name: jax.random.normal(next(keys), (*axes, *each.shape)) for name, each in SPEC.items()}
    no = jnp.zeros(axes, bool)
    timestep = TimeStep(seen, jax.random.normal(next(keys), axes), no, no | last, no)
    if spec == Discrete(3):
        action = jax.random.randint(next(keys), axes, 0, 3)
    else:
        action = jax.random.uniform(next(keys), (*axes, 3), minval=-1.0)
    return Row(timestep, no, jnp.zeros(axes, jnp.int32), action, ~no)


def studied(spec=Continuous(3), **of_evidence) -> Studied:  # noqa: B008
    return Studied(rows((2, 4, 2), spec, 1), rows((2, 5, 2), spec, 2, **of_evidence))


def believed(networks, evidence):
    return networks.encoder.gaussian(networks.believe(evidence))


# --- beliefs --------------------------------------------------------------------------------------------------------


def test_a_belief_is_the_product_of_its_gaussians():
    """By multiplying densities on a grid."""
    means, variances = np.array([0.4, -1.0, 2.0]), np.array([0.5, 2.0, 1.0])
    belief = Product(jnp.array([(1 / variances).sum()]), jnp.array([(means / variances).sum()]))
    z = np.linspace(-10, 10, 200_001)
    density = np.exp(sum(-((z - m) ** 2) / (2 * v) for m, v in zip(means, variances, strict=True)))
    density /= density.sum()
    mean = (z * density).sum()
    found = ProductEncoder.gaussian(None, belief)  # it has no use for what was learned
    np.testing.assert_allclose(found[0], mean, rtol=1e-5)
    np.testing.assert_allclose(found[1], ((z - mean) ** 2 * density).sum(), rtol=1e-5)


def test_evidence_of_any_order_says_the_same_and_more_evidence_says_more():
    a = agent()
    networks, evidence = a.init(KEY).networks, studied().evidence
    moved = jax.tree.map(lambda x: x[:, np.array([3, 0, 4, 1, 2])], evidence)
    fewer = jax.tree.map(lambda x: x[:, :4], evidence)
    mean, variance = believed(networks, evidence)
    for one, other in zip((mean, variance), believed(networks, moved), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert (believed(networks, fewer)[1] > variance).all()
    assert not np.allclose(mean[0], mean[1]), "two tasks are the same"


def test_without_evidence_the_belief_is_the_prior():
    networks = agent().init(KEY).networks
    nothing = studied().evidence._replace(kept=jnp.zeros((2, 5, 2), bool))
    for evidence in (nothing, studied(last=True).evidence):  # none may serve; nothing was done
        mean, variance = believed(networks, evidence)
        np.testing.assert_array_equal(mean, 0.0)
        np.testing.assert_array_equal(variance, 1.0)


# --- what teaches what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Continuous(3), Discrete(3)])
@pytest.mark.parametrize("servers", ["flat", "set"])
def test_the_encoder_learns_from_the_critics_and_the_prior_alone(spec, servers):
    """Without its KL, the encoder's gradient is that of the critics' loss; actor and value send none."""
    a = agent(spec, kl=0.0, servers=servers)
    assert isinstance(a, OffPolicyAgent)
    learner, given = a.init(KEY), studied(spec)

    def of(metric, networks):
        total, metrics = a.loss(networks, learner.target, given, KEY)
        return total if metric is None else metrics[metric]

    @eqx.filter_jit
    def gradients(networks):
        metrics = (None, "critic/loss", "actor/loss", "value/loss")
        return [eqx.filter_grad(partial(of, metric))(networks) for metric in metrics]

    whole, critic, actor, value = gradients(learner.networks)
    for one, other in zip(jax.tree.leaves(whole.encoder), jax.tree.leaves(critic.encoder), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(critic.encoder)) > 0
    for each in (actor, value):
        assert all((x == 0).all() for x in jax.tree.leaves(each.encoder))
        assert all((x == 0).all() for x in jax.tree.leaves(each.critics))
    for each, own in ((actor, actor.actor), (value, value.value), (critic, critic.critics)):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(own)) > 0, each


def test_the_critics_seek_the_reward_alone_after_the_end_and_nothing_once_an_episode_is_over():
    a = agent(reward_scale=3.0)
    learner, given = a.init(KEY), studied()
    yes = jnp.ones((2, 4, 2), bool)
    ended = given._replace(rows=given.rows._replace(timestep=given.rows.timestep._replace(is_terminal=yes)))
    loss = float(a.loss(learner.networks, learner.target, ended, KEY)[1]["critic/loss"])
    net, (mean, variance) = learner.networks, believed(learner.networks, given.evidence)
    noise = jax.random.normal(jax.random.split(KEY)[0], mean.shape)
    z = jnp.broadcast_to((mean + jnp.sqrt(variance) * noise)[:, None], (2, 4, 3))
    now = net.with_task(jax.tree.map(lambda x: x[:, :, 0], given.rows.timestep.observation), z)
    goal = 3.0 * given.rows.timestep.reward[:, :, 1]
    expected = sum(float(jnp.square(c.of(now, given.rows.action[:, :, 0]) - goal).mean()) for c in net.critics)
    assert loss == pytest.approx(expected, rel=1e-4)
    over = given._replace(rows=given.rows._replace(timestep=given.rows.timestep._replace(is_last=yes)))
    assert float(a.loss(learner.networks, learner.target, over, KEY)[1]["critic/loss"]) == 0.0


def test_the_kl_is_that_of_two_gaussians():
    a = agent()
    learner, given = a.init(KEY), studied()
    mean, variance = (np.asarray(x) for x in believed(learner.networks, given.evidence))
    each = [
        np.log(1 / s) + (s**2 + m**2) / 2 - 0.5 for m, s in zip(mean.ravel(), np.sqrt(variance).ravel(), strict=True)
    ]
    assert float(a.loss(learner.networks, learner.target, given, KEY)[1]["task/kl"]) == pytest.approx(
        sum(each) / 2, rel=1e-4
    )


# --- acting ---------------------------------------------------------------------------------------------------------


@cache
def played(greedy: bool):
    """Four episodes of 20 steps of three point robots: after each, the policy's state."""
    a = PEARL(replace(SMALL, prior_episodes=2, test_episodes=1), GAME.world.observation_spec, GAME.world.action_spec)
    policy = a.policy(a.init(KEY).networks, greedy)
    tasks, states, timesteps = jnp.asarray(GAME.tasks[:3]), [], []
    state, keys = policy.initial_state(3), jax.random.split(KEY, 84)
    world, timestep = jax.vmap(GAME.world.reset)(tasks, jax.random.split(KEY, 3))

    @jax.jit
    def go_on(state, world, timestep, key):
        action, state = policy.act(state, timestep, key)
        stepped = jax.vmap(GAME.world.step)(tasks, world, action, jax.random.split(key, 3))
        opened = jax.vmap(GAME.world.reset)(tasks, jax.random.split(key, 3))
        over = timestep.is_last.all()
        return action, state, *jax.tree.map(lambda a, b: jnp.where(over, a, b), opened, stepped)

    for key in keys:
        before = timestep
        action, state, world, timestep = go_on(state, world, timestep, key)
        states.append(state), timesteps.append((before, action))
    return policy, states, timesteps


@pytest.mark.parametrize(("greedy", "explored", "counted"), [(False, 2, 40), (True, 1, 80)])
def test_the_belief_of_acting_is_that_of_the_same_transitions_at_once(greedy, explored, counted):
    """In training only what was done with the prior counts, when the agent is judged everything."""
    policy, states, timesteps = played(greedy)
    assert [int(states[21 * i].episode[0]) for i in range(4)] == [0, 1, 2, 3]
    assert [bool(states[21 * i].is_prior[0]) for i in range(4)] == [i < explored for i in range(4)]
    net, total = policy.networks, 0.0
    for (before, action), (after, _) in pairwise(timesteps):
        if not before.is_last.all() and counted:
            seen = (net.read(each.observation) for each in (before, after))
            total += net.encoder.weigh(Transition(next(seen), action, after.reward, next(seen))).precision
            counted -= 1
    np.testing.assert_allclose(states[-1].belief.precision, total, rtol=1e-4)


def test_each_episode_has_one_z_and_the_first_after_exploring_has_one_of_the_belief():
    policy, states, _ = played(greedy=False)
    z = np.stack([state.z for state in states]).reshape(4, 21, 3, 3)
    assert (z == z[:, :1]).all(), "z changes within an episode"
    assert len(np.unique(z[:, 0, 0, 0])) == 4, "z is the same in two episodes"
    mean, variance = (np.asarray(x) for x in policy.networks.encoder.gaussian(states[41].belief))
    assert (np.abs(z[2, 0] - mean) < 5 * np.sqrt(variance)).all()
    assert (np.sqrt(variance) < 0.3).all(), "so that the test above says something"


# --- replay ---------------------------------------------------------------------------------------------------------


def ring(written: int, capacity: int = 20) -> replays.Replay:
    """Of 3 streams; each row says its time and stream."""
    each = jnp.arange(written)[:, None] + 1000 * jnp.arange(3)
    state = replays.empty({"a": each[0]}, capacity)
    for first in range(0, written, 4):
        state = replays.add(state, {"a": each[first : first + 4]})
    return state


def test_evidence_is_drawn_from_the_newest_rows_that_may_serve_and_the_rest_from_all():
    state, streams = ring(52), jnp.array([2, 0])
    time = state.rows["a"] % 1000
    serves = (time % 3 == 0) & (time < 48)
    place = replays.sample_of(state, streams, 400, 2, KEY, serves, recent=4)
    read = np.asarray(replays.read(state, place)["a"])
    assert read.shape == (2, 400, 2)
    for stream, drawn in zip((2, 0), read, strict=True):
        assert set(drawn[:, 0] - 1000 * stream) == {36, 39, 42, 45}
        assert (drawn[:, 1] == drawn[:, 0] + 1).all()
        assert np.unique(drawn[:, 0], return_counts=True)[1].min() > 60, "100 of each are expected"
    place = replays.sample_of(state, streams, 400, 5, KEY)
    drawn = np.asarray(replays.read(state, place)["a"])[0] - 2000
    assert set(drawn[:, 0]) == set(range(32, 48))
    assert (np.diff(drawn, axis=1) == 1).all()


def test_where_nothing_may_serve_something_is_drawn_that_says_so():
    state = ring(8)
    serves = jnp.zeros((20, 3), bool).at[3, 1].set(True)
    place = replays.sample_of(state, jnp.array([0, 1]), 3, 2, KEY, serves, recent=4)
    np.testing.assert_array_equal(place.time[..., 0], [[0] * 3, [3] * 3])


# --- training -------------------------------------------------------------------------------------------------------


def trainer(updates: int) -> WorldTrainer:
    algorithm = PEARL(SMALL, GAME.world.observation_spec, GAME.world.action_spec)
    return WorldTrainer(algorithm, GATHERING, GAME.world, jnp.asarray(GAME.tasks), updates)


def test_each_stream_plays_its_task_for_good_and_going_on_is_not_having_stopped():
    one, two = trainer(45), trainer(90)
    begun = two.init(KEY)
    whole, metrics = jax.jit(two.train)(begun)
    half = jax.jit(one.train)
    again, _ = half(half(begun)[0])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        keys = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*((jax.random.key_data(x) for x in (a, b)) if keys else (a, b)))
    learning = whole.learning
    assert int(learning.updates) == 180
    task = np.asarray(learning.replay.rows.task)[: int(learning.replay.filled)]
    np.testing.assert_array_equal(task, np.broadcast_to(np.arange(9), task.shape))
    kept = np.asarray(learning.replay.rows.kept)[:84, 0]
    np.testing.assert_array_equal(kept, np.arange(84) < 42)  # two of four episodes, of 21 rows
    assert all(np.isfinite(x).all() for name, x in metrics.items() if name != "episode/return")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"streams": 10, "ratio": 1.0}, "streams must be a multiple of the number of tasks, 9, .* got 10"),
        ({"batch": 9, "ratio": 1.0}, "batch must be a multiple of the tasks of an update, 2; got 9"),
    ],
)
def test_what_tasks_cannot_be_inferred_from_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(replace(trainer(1), config=replace(GATHERING, **changes)).init, KEY)


def test_more_tasks_of_an_update_than_there_are_streams_are_refused():
    many = replace(trainer(1), agent=PEARL(replace(SMALL, tasks=12), trainer(1).env.observation_spec, Continuous(2)))
    with pytest.raises(ValueError, match="tasks of an update must be at most the streams, 9; got 12"):
        jax.eval_shape(many.init, KEY)


def test_the_command_line_trains_it_in_games_of_many_tasks():
    words = ["--agent", "pearl", "--game"]
    for game in ("point_robot", "merging", "merging/hidas"):
        config = parse([*words, game]).config
        assert config.world == GameConfig(game)
        assert config.curve.trial == 1 + config.agent.algorithm.test_episodes
    build(parse([*words, "merging"]).config)
    with pytest.raises(ValueError, match="pearl infers which task it plays, and gym:Pendulum-v1 is one"):
        parse([*words, "gym:Pendulum-v1"])
    with pytest.raises(ValueError, match="pearl has no settings for fleets yet"):
        parse(["--agent", "pearl"])


def test_what_discrete_actions_would_ignore_is_refused():
    with pytest.raises(
        ValueError, match=r"regularise is 0\.1, and of discrete actions .* leave it at 0\.001, or give 0"
    ):
        agent(Discrete(3), regularise=0.1).init(KEY)
    for harmless in ({"regularise": 0.0}, {}):
        jax.eval_shape(agent(Discrete(3), **harmless).init, KEY)


@pytest.mark.parametrize(("name", "said"), [("prior_episodes", "got 0 and 2"), ("test_episodes", "got 2 and 0")])
def test_tasks_that_nothing_would_be_known_of_are_refused(name, said):
    with pytest.raises(ValueError, match=f"a context is too short: .* {said}"):
        PEARLConfig(**{name: 0})
