"""SAC: densities of squashed actions, what rows of replay teach, and that it learns to the best known score."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.agents.core import OffPolicyAgent, Row
from reverie.agents.dreamer import Dreamer, DreamerConfig
from reverie.agents.heads import Actor, QNetwork
from reverie.agents.sac import SAC, SACConfig
from reverie.commands import train
from reverie.envs.core import ArraySpec, Continuous, Discrete, TimeStep, first, later
from reverie.models.core import Features
from reverie.models.set_rssm import SetRSSMConfig
from reverie.nn.distributions import BoundedNormal, TanhNormal
from reverie.policies.rollout import rollout
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.trainers import WorldTrainer

SMALL = SACConfig(units=16, layers=1, learning_rate=3e-3)


# --- squashed actions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("center", "deviation"), [(0.0, 1.0), (1.5, 0.3), (-3.0, 0.5), (0.2, 3.0)])
def test_the_density_of_a_squashed_action_integrates_to_1(center, deviation):
    """Over y = tanh(x) by a grid in x, so that the ends, where most of the mass may lie, are resolved."""
    x = jnp.linspace(-12.0, 12.0, 200_001)
    inside = jnp.abs(x) < 8  # beyond, float32 has no number between tanh(x) and 1
    y = jnp.tanh(x[inside])[:, None]
    policy = TanhNormal(jnp.full_like(y, center), jnp.full_like(y, deviation))
    slope = 1 / np.cosh(np.asarray(x[inside], np.float64)) ** 2
    mass = np.trapezoid(np.exp(np.asarray(policy.log_prob(y), np.float64)) * slope, np.asarray(x[inside], np.float64))
    assert mass == pytest.approx(1.0, abs=0.01)


def test_a_sample_and_its_density_agree_with_the_density_of_the_sample():
    policy = TanhNormal(jnp.array([[0.3, -0.8]]), jnp.array([[0.5, 0.2]]))
    action, log_prob = policy.reparameterised(jax.random.normal(jax.random.key(0), (50, 2)))
    wide = TanhNormal(*(jnp.broadcast_to(x, (50, 2)) for x in (policy.center, policy.deviation)))
    np.testing.assert_allclose(wide.log_prob(action), log_prob, rtol=1e-3, atol=1e-3)
    far = TanhNormal(jnp.array([[30.0]]), jnp.array([[1.0]]))
    assert np.isfinite(far.reparameterised(jnp.zeros((1, 1)))[1]).all(), "at the end the density is 0 / 0"


def test_gradients_through_a_sample_are_those_of_finite_differences():
    noise = np.random.default_rng(0).normal(size=(64, 3))

    def value(center, width, tanh=jnp.tanh, exp=jnp.exp, log1p=jnp.log1p):
        raw = center + exp(width) * noise
        log_prob = -0.5 * noise**2 - width - 0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - raw - log1p(exp(-2 * raw)))
        return (tanh(raw) ** 2).sum() - log_prob.sum()

    def ours(center, width):
        center, width = (jnp.broadcast_to(x, noise.shape) for x in (center, width))
        action, log_prob = TanhNormal.from_outputs(center, width).reparameterised(jnp.asarray(noise, jnp.float32))
        return jnp.square(action).sum() - log_prob.sum()

    at = np.array([0.2, -1.0, 0.7]), np.array([-0.5, 0.1, 0.3])
    found = jax.grad(ours, (0, 1))(*(jnp.asarray(x, jnp.float32) for x in at))
    for which in (0, 1):
        for i in range(3):
            step = [np.zeros(3), np.zeros(3)]
            step[which][i] = 1e-5
            ends = [value(at[0] + s * step[0], at[1] + s * step[1], np.tanh, np.exp, np.log1p) for s in (1, -1)]
            assert float(found[which][i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("kind", [TanhNormal, BoundedNormal])
def test_what_is_not_there_is_not_done_and_does_not_count(kind):
    center, mask = jnp.array([[0.5, -0.3, 2.0]]), jnp.array([[True, True, False]])
    policy, only = kind(center, jnp.ones((1, 3)), mask), kind(center[:, :2], jnp.ones((1, 2)))
    action = policy.sample(jax.random.key(0))
    assert float(action[0, 2]) == 0.0
    assert float(policy.mode()[0, 2]) == 0.0
    np.testing.assert_allclose(policy.log_prob(action), only.log_prob(action[:, :2]), rtol=1e-5)


# --- heads over servers ---------------------------------------------------------------------------------------------


def rows(servers: int, key=0) -> Features:
    context, each = (jax.random.normal(jax.random.key(key + i), s) for i, s in enumerate([(2, 4), (2, servers, 3)]))
    return Features(context, each, jnp.ones((2, servers), bool))


ORDER = np.array([2, 0, 1])


@pytest.mark.parametrize("spec", [Discrete(3), Continuous(3)])
def test_worth_follows_servers_in_any_order(spec):
    net, seen = QNetwork(spec, 4, 3, 8, 1, key=jax.random.key(3)), rows(3)
    moved = seen._replace(servers=seen.servers[:, ORDER])
    if spec == Discrete(3):
        np.testing.assert_allclose(net.all(moved), net.all(seen)[:, ORDER], rtol=1e-5, atol=1e-6)
        action = jnp.array([1, 2])
        np.testing.assert_array_equal(net.of(seen, action), net.all(seen)[jnp.arange(2), action])
    else:
        action = jnp.array([[0.1, -0.9, 0.5], [0.3, 0.2, 0.1]])
        np.testing.assert_allclose(net.of(moved, action[:, ORDER]), net.of(seen, action), rtol=1e-5, atol=1e-6)
        assert not np.allclose(net.of(seen, action), net.of(seen, action[:, ORDER])), "it sees not whose it is"


def test_a_continuous_action_has_a_number_for_each_server():
    actor = Actor(Continuous(3), 6, 3, 8, 1, 0.0, key=jax.random.key(4))
    seen, memory = rows(3), jnp.ones((2, 2))
    means = actor(seen, memory).mean()
    assert means.shape == (2, 3)
    moved = actor(seen._replace(servers=seen.servers[:, ORDER]), memory).mean()
    np.testing.assert_allclose(moved, means[:, ORDER], rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(means))) == 6, "the rows are ignored"


def test_an_action_of_another_width_than_the_servers_is_refused():
    spec = {"servers": ArraySpec((3, 2), "servers"), "vector": ArraySpec((1,))}
    model = SetRSSMConfig(units=8, deter=8, stoch=2, world_deter=8, world_stoch=2, classes=4)
    agent = Dreamer(DreamerConfig(model=model, memory=4, units=8, layers=1), spec, Continuous(2))
    with pytest.raises(ValueError, match="for each of the 3 servers, got 2 actions"):
        jax.eval_shape(agent.init, jax.random.key(0))
    with pytest.raises(ValueError, match="a row for each of the 2 actions"):
        jax.eval_shape(SAC(replace(SMALL, servers="set"), spec, Continuous(2)).init, jax.random.key(0))


# --- what is learned from -------------------------------------------------------------------------------------------

SPEC = {"vector": ArraySpec((2,)), "servers": ArraySpec((3, 2), "servers"), "mask": ArraySpec((3,), "mask")}


def row_pair(action, *, last=False, terminal=False, reward=1.0) -> Row:
    """Two rows [4, 2, ...] whose first may close an episode, and whose second may end one."""
    key = jax.random.key(7)
    observation = {
        "vector": jax.random.normal(key, (4, 2, 2)),
        "servers": jax.random.normal(key, (4, 2, 3, 2)),
        "mask": jnp.ones((4, 2, 3), bool),
    }
    no = jnp.zeros((4, 2), bool)
    closes = no.at[:, 0].set(last).at[:, 1].set(terminal)
    timestep = TimeStep(observation, jnp.full((4, 2), reward), no, closes, closes)
    return Row(timestep, no, jnp.zeros((4, 2), jnp.int32), action, None)


def agents(servers="flat"):
    config = replace(SMALL, servers=servers)
    yield SAC(config, SPEC, Discrete(3)), jnp.ones((4, 2), jnp.int32)
    yield SAC(config, SPEC, Continuous(3)), jnp.full((4, 2, 3), 0.3)


@pytest.mark.parametrize("servers", ["flat", "set"])
def test_the_critics_seek_reward_and_what_is_ahead_and_nothing_after_the_end(servers):
    for agent, action in agents(servers):
        assert isinstance(agent, OffPolicyAgent)
        learner = agent.init(jax.random.key(0))
        gradient = jax.jit(jax.grad(agent.loss, has_aux=True))

        def of(pair, agent=agent, learner=learner, gradient=gradient):
            found, metrics = gradient(learner.networks, learner.targets, pair, jax.random.key(1))
            return sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(found.critics)), metrics

        start = jax.tree.map(lambda x: x[:, :1], row_pair(action).timestep.observation)
        seen = learner.networks.inputs.see(start)
        ended = float(of(row_pair(action, terminal=True, reward=2.0))[1]["critic/loss"])
        q = [critic.of(seen, action[:, :1]) for critic in learner.networks.critics]
        expected = sum(float((0.5 * (each - 2.0) ** 2).mean()) for each in q)
        assert ended == pytest.approx(expected, rel=1e-5), "after a terminal state something is still expected"
        assert of(row_pair(action, reward=2.0))[1]["critic/loss"] != pytest.approx(ended), "nothing is expected ahead"
        assert of(row_pair(action, last=True))[0] == 0.0, "the action after the end of an episode is learned from"


# --- learning ------------------------------------------------------------------------------------------------------


class Bandit(NamedTuple):
    """One step: action 0 pays 1, the others nothing."""

    observation_spec = {"vector": ArraySpec((1,))}  # noqa: RUF012
    action_spec = Discrete(4)

    def reset(self, task, key):
        return (), first({"vector": jnp.zeros((1,))})

    def step(self, task, state, action, key):
        return (), later({"vector": jnp.zeros((1,))}, action == 0, jnp.ones((), bool))


@dataclass(frozen=True)
class Track:
    """Bring x, which starts anywhere in [-1, 1], to 0: an action moves it by half of itself, and each of 6 steps costs
    the square of where it ends. The best is to go straight: from |x| > 1/2 that takes two steps, and the first costs
    (|x| - 1/2)^2, on average 1/24."""

    best: ClassVar[float] = -1 / 24
    observation_spec = {"vector": ArraySpec((1,))}  # noqa: RUF012
    action_spec = Continuous(1)

    def reset(self, task, key):
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return (x, jnp.int32(0)), first({"vector": x})

    def step(self, task, state, action, key):
        x, time = state[0] + 0.5 * jnp.clip(action, -1, 1), state[1] + 1
        return (x, time), later({"vector": x}, -(x[0] ** 2), jnp.zeros((), bool), time == 6)


def learned(agent: SAC, env, config: OffPolicyConfig, updates: int):
    trainer = WorldTrainer(agent, config, env, jnp.zeros((1,)), updates)
    return jax.jit(trainer.train)(trainer.init(jax.random.key(0)))


def test_the_temperature_steers_entropy_to_its_target():
    """Two of four actions' worth of it, though one action alone pays."""
    env = Bandit()
    agent = SAC(replace(SMALL, target_entropy=0.7, learning_rate=1e-2), env.observation_spec, env.action_spec)
    config = OffPolicyConfig(streams=8, batch=32, length=1, ratio=4.0, capacity=4_000)
    state, metrics = learned(agent, env, config, 600)
    assert float(metrics["actor/entropy"][-100:].mean()) == pytest.approx(0.7, abs=0.1)
    policy = agent.policy(state.averaged, greedy=True)
    seen = jax.tree.map(lambda x: x[None], env.reset(None, None)[1])
    assert int(policy.act(None, seen, jax.random.key(0))[0][0]) == 0


@pytest.mark.slow
@pytest.mark.optimised
def test_a_continuous_world_is_learned_to_its_best_score():
    """Within 0.02 of the best possible mean return over 256 episodes after 32,000 steps; doing nothing: -2.

    Measured: -0.049 with seed 0, and the best is -0.042.
    """
    env = Track()
    agent = SAC(replace(SMALL, units=32, layers=2, discount=0.9), env.observation_spec, env.action_spec)
    config = OffPolicyConfig(streams=8, batch=64, length=1, ratio=8.0, capacity=20_000, prefill=400)
    state, _ = learned(agent, env, config, 4_000)
    policy = agent.policy(state.averaged, greedy=True)
    keep = lambda state, timestep, action: timestep.reward  # noqa: E731
    _, reward = jax.jit(lambda: rollout(env, policy, jnp.zeros((256,)), jax.random.key(1), 6, keep))()
    assert float(np.asarray(reward).sum(0).mean()) == pytest.approx(env.best, abs=0.02)


def test_it_is_reached_from_the_command_line():
    fleet = train.parse(["--agent", "sac", "--steps", "3000"]).config
    assert fleet.name == "sac"
    assert fleet.agent.algorithm.servers == "set"
    game = train.parse(["--agent", "sac", "--game", "gym:Pendulum-v1", "--agent.target-entropy", "-0.5"]).config
    assert game.world.game == "gym:Pendulum-v1"
    assert game.agent.algorithm.target_entropy == -0.5


def test_the_recipe_for_an_agent_works_as_printed():
    page = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text()
    code, names = page.split("### Add an agent")[1].split("```python\n")[1].split("```")[0], {"__name__": "pay"}
    exec(compile(code, "how-it-works.md", "exec"), names)
    env = Bandit()
    agent = names["Pay"](names["PayConfig"](rate=0.5), env.observation_spec, env.action_spec)
    assert isinstance(agent, OffPolicyAgent)
    state, metrics = learned(agent, env, OffPolicyConfig(streams=4, batch=16, length=2, ratio=4.0, capacity=400), 200)
    np.testing.assert_allclose(state.averaged, [1, 0, 0, 0], atol=0.1)
    assert metrics["pay/best"][-1] > metrics["pay/best"][0]
