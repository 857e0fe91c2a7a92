"""What is measured of agents that infer their task: codes, pairs of neighbours, errors of foretelling."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.agents.pearl import PEARL, PEARLConfig
from reverie.envs.factors import grid
from reverie.envs.merging import Merging, unseen
from reverie.envs.point_robot import PointRobot
from reverie.evaluate.contexts import codes_of, foretold, midpoints
from reverie.models.generative import GenerativeModel
from reverie.nn.distributions import symexp
from reverie.policies.rollout import rollout

KEY = jax.random.key(0)


def test_midpoints_are_between_neighbours():
    factors = grid((0.0, 1.0, 4.0), (2.0, 3.0))  # 0 2, 0 3, 1 2, 1 3, 4 2, 4 3
    found = midpoints(factors)
    assert sorted(found[1]) == [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]
    assert sorted(found[2]) == [(0, 3), (1, 2), (2, 5), (3, 4)]
    assert set(found) == {1, 2}


def test_codes_are_the_beliefs_after_so_many_steps_and_contexts_of_a_task_differ():
    """Of the product of Gaussians, whose precision counts the transitions: none of the 6 is one across episodes."""
    world = PointRobot(limit=4)
    config = PEARLConfig(latent=2, units=8, layers=1, encoder_units=8, encoder_layers=1)
    agent = PEARL(config, world.observation_spec, world.action_spec)
    networks = agent.init(KEY).networks
    head = networks.encoder.head
    of_reward = jnp.zeros_like(head.output.weight)
    networks = eqx.tree_at(lambda n: n.encoder.head.output.weight, networks, of_reward)
    networks = eqx.tree_at(lambda n: n.encoder.head.output.bias, networks, jnp.array([0.3, -0.7, 0.0, 0.0]))
    codes = codes_of(world, agent.policy(networks), jnp.ones((3, 2)), 4, 6, KEY)
    np.testing.assert_allclose(codes, np.broadcast_to([0.3, -0.7], (3, 4, 2)), rtol=1e-5)
    policy = agent.policy(networks)
    policy = type(policy)(networks, greedy=False, prior_episodes=6)
    ended, _ = rollout(world, policy, jnp.ones((3, 2)), KEY, 7, lambda state, timestep, action: None)
    _, variance = networks.encoder.gaussian(ended.policy_state.belief)
    counted = 1 / variance * jax.nn.softplus(0.0)  # each transition has this variance
    np.testing.assert_allclose(counted, 5, rtol=1e-4)  # of 7 rows the first and that after an episode's end are none
    fresh = codes_of(world, agent.policy(agent.init(KEY).networks), jnp.ones((3, 2)), 4, 6, KEY)
    assert len(np.unique(fresh.reshape(12, 2), axis=0)) == 12


class Drivers(eqx.Module):
    """In the place of a network: what the drivers of merging do, where z is their yielding, and a little more."""

    more: float

    def __call__(self, x):
        doing = jax.vmap(Merging().responses)(x[:, 9:], unseen(symexp(x[:, :8])))
        return jnp.arctanh(jnp.clip((doing + self.more) / 3.0, -1 + 1e-6, 1 - 1e-6))


def knowing(more: float) -> GenerativeModel:
    world = Merging()
    model = GenerativeModel(world.observation_spec, world.action_spec, 1, 4, 1, world, key=KEY)
    return eqx.tree_at(lambda m: m.net, model, Drivers(more))


def test_a_model_that_knows_the_world_is_not_off_and_one_told_another_task_is_ever_more():
    world, tasks = Merging(), jnp.linspace(-0.8, 0.8, 32)[:, None]
    right = foretold(world, knowing(0.0), tasks, tasks, 12, KEY).error
    assert right.max() < 1e-3
    wrong = np.asarray(foretold(world, knowing(0.0), tasks, -tasks, 12, KEY).error)
    assert wrong[-1] > 20 * right[-1]
    assert all(a <= b + 1e-6 for a, b in pairwise(wrong))
    constant = float(foretold(world, knowing(-0.5), tasks, tasks, 12, KEY).error[0])
    most = np.sqrt(3 * ((0.5 * 0.2 / 25) ** 2 + (0.5 * 0.2**2 / 2 / 50) ** 2) / 8)  # 3 speeds and 3 places of 8 numbers
    assert 0.7 * most < constant < most, "some brake as hard as they can in any case"
