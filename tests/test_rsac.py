"""Recurrent SAC: memories in learning as in acting, one of them for the actor, and that it learns what SAC cannot."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagnostic import HiddenArm

from reverie.agents.core import OffPolicyAgent
from reverie.agents.rsac import RSAC, RSACConfig
from reverie.agents.sac import SACConfig
from reverie.commands.train import parse
from reverie.envs.point_robot import PointRobot
from reverie.evaluate.returns import returns
from reverie.runs.build import build
from reverie.train import off_policy
from reverie.train import replay as replays
from reverie.train.off_policy import OffPolicyConfig

KEY = jax.random.key(0)
SMALL = RSACConfig(SACConfig(units=16, layers=1, learning_rate=3e-3), memory=5)
WORLDS = {"arms": (HiddenArm(), jnp.arange(2)), "robot": (PointRobot(limit=4), jnp.array([[0.5, 0.0], [0.0, 0.5]]))}
GATHERING = OffPolicyConfig(streams=6, episodes=2, batch=6, length=20, ratio=20.0, capacity=600, prefill=240)


@cache
def gathered(name: str):
    env, pool = WORLDS[name]
    agent = RSAC(SMALL, env.observation_spec, env.action_spec)
    assert isinstance(agent, OffPolicyAgent)
    state = jax.jit(lambda: off_policy.init(agent, GATHERING, env, pool, KEY))()
    place = replays.sample(state.replay, 6, 21, jnp.arange(6), KEY)
    return agent, state.learner, replays.read(state.replay, place)


@pytest.mark.parametrize("name", list(WORLDS))
def test_memories_in_learning_are_those_in_acting_across_episodes_and_trials(name):
    agent, learner, rows = gathered(name)
    assert rows.is_trial_first[:, 1:].any()
    assert (rows.timestep.is_first & ~rows.is_trial_first).any()
    _, (_, remembered) = agent.loss(learner.networks, learner.targets, rows, KEY)
    for found, kept in zip(remembered, rows.kept, strict=True):
        np.testing.assert_allclose(found, kept, atol=1e-5)
        assert float(jnp.abs(kept).max()) > 0.1
    assert float(jnp.abs(remembered.actor - remembered.critics).max()) > 0.1, "they are two"
    _, kept, _ = agent.update(learner, rows, KEY)
    np.testing.assert_allclose(kept.actor, remembered.actor[:, 1:], atol=1e-6)


def test_the_actor_teaches_its_own_memory_and_the_critics_theirs():
    agent, learner, rows = gathered("robot")

    def part(networks, name):
        return agent.loss(networks, learner.targets, rows, KEY)[1][0][name]

    of = {name: eqx.filter_grad(part)(learner.networks, name) for name in ("actor/loss", "critic/loss")}

    def largest(tree) -> float:
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))

    actor, critics = of["actor/loss"], of["critic/loss"]
    assert largest((actor.critics, critics.actor, critics.memory)) == 0
    assert min(largest(x) for x in (actor.actor, actor.memory, critics.critics.memory, *critics.critics.twins)) > 0


def test_it_finds_out_in_one_episode_which_arm_pays_and_takes_it_in_the_next():
    """RL2's simplest world, which a policy without memory cannot tell apart: off-policy, from stretches of trials."""
    env, pool = WORLDS["arms"]
    config = RSACConfig(SACConfig(units=16, layers=1, learning_rate=5e-3, discount=0.9, target_entropy=0.2), memory=8)
    agent = RSAC(config, env.observation_spec, env.action_spec)
    gathering = OffPolicyConfig(streams=16, episodes=3, batch=16, length=12, ratio=12.0, capacity=8_000, prefill=600)

    @eqx.filter_jit
    def trained(key):
        state = off_policy.init(agent, gathering, env, pool, key)
        step = lambda s, _: (off_policy.update(agent, gathering, env, pool, s, None, 1.0)[0], None)  # noqa: E731
        return jax.lax.scan(step, state, None, length=300)[0].learner.networks

    found = np.asarray(returns(env, agent.policy(trained(KEY), True), jnp.tile(pool, 32), KEY, 3))
    assert found[:, 1:].mean() > 0.95 * found.max()
    assert found[:, 0].mean() < 0.8 * found.max()


def test_the_command_line_trains_it_and_reads_servers_as_one_vector():
    for game in ("dispatch", "merging"):
        config = parse(["--agent", "rsac", "--game", game]).config
        build(config)
        assert config.curve.trial == config.agent.experience.episodes == 3
    with pytest.raises(ValueError, match="servers='flat', got 'set'"):
        RSACConfig(SACConfig(servers="set"))
