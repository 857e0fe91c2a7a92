"""MAML: adaptation in learning as in acting, the slope through it by finite differences, and that it finds tasks."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.agents.actor_critic import NetworkConfig, judge
from reverie.agents.maml import MAML, MAMLConfig, adapt, log_prob
from reverie.agents.ppo import PPOConfig
from reverie.commands.train import parse
from reverie.envs.dispatch import Dispatch
from reverie.envs.point_robot import PointRobot
from reverie.evaluate.returns import returns
from reverie.runs.build import build
from reverie.train.collect import collect, open_streams
from reverie.train.on_policy import OnPolicyConfig, as_rollout, init, update

KEY = jax.random.key(0)
GOALS = jnp.array([[0.6, 0.0], [-0.6, 0.0]])
ROBOT = PointRobot(limit=8)  # an episode has 9 moments


def agent_for(env, inner_steps=18, **changes) -> MAML:
    ppo = PPOConfig(NetworkConfig(units=16, layers=1), minibatches=2, **changes)
    return MAML(MAMLConfig(ppo, inner_steps=inner_steps), env.observation_spec, env.action_spec)


@cache
def gathered(name: str):
    """A trial of two episodes before adaptation and one after it, and the policy's state at its end."""
    env, pool = {"robot": (ROBOT, GOALS), "fleet": (Dispatch(("skew",), limit=8), jnp.array([[1.5], [-1.5]]))}[name]
    agent = agent_for(env)

    @eqx.filter_jit
    def live():
        learner = agent.init(KEY)
        policy = agent.policy(learner.networks)
        before = open_streams(env, pool, policy, 6, KEY)
        after, seen = collect(env, pool, policy, before, 27, 3, keep=lambda state: state.actor)
        return learner, as_rollout(before, after, seen), seen.kept

    return agent, *live()


@pytest.mark.parametrize("name", ["robot", "fleet"])
def test_actors_adapt_in_acting_as_in_learning_and_only_once(name):
    agent, learner, rollout, actors = gathered(name)
    before, _ = agent.parts(rollout.timestep, rollout.action)
    adapted = jax.vmap(lambda lived: adapt(agent.config, learner.networks, lived), 1)(before)
    fresh = jax.tree.leaves(learner.networks.actor)
    moved = 0.0
    for acting, found, first in zip(*map(jax.tree.leaves, (actors, adapted)), fresh, strict=True):
        np.testing.assert_array_equal(acting[:18], np.broadcast_to(first, acting[:18].shape))
        np.testing.assert_allclose(acting[18:], np.broadcast_to(found, acting[18:].shape), atol=1e-5)
        moved = max(moved, float(jnp.abs(found - first).max()))
    assert moved > 1e-3


def test_the_slope_is_that_of_the_loss_after_adaptation():
    """By finite differences along it: through the inner step, which a first-order slope leaves out."""
    agent, learner, rollout, _ = gathered("robot")
    net, c = learner.networks, agent.config
    before, after = agent.parts(rollout.timestep, rollout.action)
    value = net.value(net.inputs.see(rollout.timestep.observation))
    judged = judge(c.ppo, value, rollout.timestep)
    later = jax.tree.map(lambda x: x[c.inner_steps :], judged)
    was = jax.vmap(lambda lived: log_prob(net, net.actor, lived)[0], 1, 1)(before)
    adapted = jax.vmap(lambda lived: adapt(c, net, lived), 1)(before)
    did = jax.vmap(lambda actor, lived: log_prob(net, actor, lived)[0], (0, 1), 1)(adapted, after)

    @jax.jit
    def loss(actor):
        return agent.loss(eqx.tree_at(lambda n: n.actor, net, actor), before, after, judged, later, was, did)[0]

    slope = jax.grad(loss)(net.actor)
    along = jax.tree.map(lambda g: g / jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(slope))), slope)
    ends = [loss(jax.tree.map(lambda w, d, s=s: w + s * 1e-2 * d, net.actor, along)) for s in (1, -1)]
    expected = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (slope, along)), strict=True))
    assert float(ends[0] - ends[1]) / 2e-2 == pytest.approx(expected, rel=0.03)


def test_one_step_finds_the_goal_that_rewards_tell_of():
    """Goals right or left of the origin (arXiv 1703.03400, section 5.3, in small). Distances to both sum to 1.2 at
    least, so that who does not adapt pays 0.6 a step at best; what is adapted to is bought with exploration."""
    agent = agent_for(ROBOT, inner_steps=36, learning_rate=3e-3, epochs=3, entropy=0.0, discount=0.9)
    config = OnPolicyConfig(streams=64, steps=54, episodes=6, workers=1)

    @eqx.filter_jit
    def trained(key):
        state = init(agent, config, ROBOT, GOALS, key)
        step = partial(update, agent, config, ROBOT, GOALS)
        return jax.lax.scan(lambda s, _: (step(s, None, 1.0)[0], None), state, None, length=150)[0].learner.networks

    found = np.asarray(returns(ROBOT, agent.policy(trained(KEY), True), jnp.tile(GOALS, (256, 1)), KEY, 5))
    blind = -0.6 * 8
    assert found[:, :4].mean() < blind
    assert found[:, 4].mean() > 0.9 * blind


def test_the_command_line_trains_it_where_episodes_have_one_length():
    for game in ("dispatch", "point_robot"):
        build(parse(["--agent", "maml", "--game", game]).config)
    with pytest.raises(ValueError, match=r"130 steps \(inner_steps\), and .* has 130 \(curve.trial 2\)"):
        build(parse(["--agent", "maml", "--game", "dispatch", "--curve.trial", "2"]).config)
    long = ["--agent", "maml", "--game", "dispatch", "--agent.inner-steps", "500", "--curve.trial", "8"]
    with pytest.raises(ValueError, match=r"500 steps \(inner_steps\), and a rollout, .* has 260 \(steps\)"):
        build(parse(long).config)
    with pytest.raises(ValueError, match="merging is one task, or its episodes differ in length"):
        parse(["--agent", "maml", "--game", "merging"])
    with pytest.raises(ValueError, match="there is no memory; got 8"):
        MAMLConfig(PPOConfig(NetworkConfig(memory=8)))
    agent, learner, rollout, _ = gathered("robot")
    short = rollout._replace(action=rollout.action[:18])
    with pytest.raises(ValueError, match="adaptation takes 18"):
        agent.update(learner, short, KEY)
    askew = rollout._replace(is_trial_first=~rollout.is_trial_first)
    with pytest.raises(RuntimeError, match="whole trials"):
        eqx.filter_jit(agent.update)(learner, askew, KEY)
