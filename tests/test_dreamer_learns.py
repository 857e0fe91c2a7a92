"""Dreamer learns: with the flat model to balance a pole, with the set model to share jobs between two servers."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from cartpole import CartPole

from reverie.agents.dreamer import Dreamer, DreamerConfig, Networks
from reverie.envs.core import Environment, Task, stack_tasks
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task
from reverie.envs.fleet.workload import exponential, poisson
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.trials import contenders, play
from reverie.models.set_rssm import SetRSSMConfig
from reverie.nn.optimiser import OptimiserConfig
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.trainers import WorldTrainer

OPTIMISER = OptimiserConfig(learning_rate=1e-3, warmup=200)


def trained(agent: Dreamer, config: OffPolicyConfig, env: Environment, pool: Task, steps: int) -> Iterator[Networks]:
    """The networks of seed 0 untrained, and after each further `steps` environment steps."""
    trainer = WorldTrainer(agent, config, env, pool, steps // config.env_steps)
    state = trainer.init(jax.random.key(0))
    train = jax.jit(trainer.train)
    while True:
        yield state.learning.learner.networks
        state, _ = train(state)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_pole_is_kept_up_seven_times_as_long_as_at_random():
    """At least 160 of 500 steps, on average over four looks after 4,000 to 10,000 steps (1,250 updates) at 128 episodes
    each; random play: 22. Networks come and go: no single look, and not the best, says what is learned.

    Measured: 456 with seed 0, 235 with seed 1, 200 to 297 with seeds 0, 1, 2 where the step size falls; single looks 70
    to 500.
    """
    env, pool = CartPole(), jnp.zeros((1,))
    config = DreamerConfig(model=sizes.RSSM, optimiser=OPTIMISER, memory=0, layers=2, starts=128)
    agent = Dreamer(config, env.observation_spec, env.action_spec)
    gathering = OffPolicyConfig(streams=8, capacity=50_000, batch=8, length=32)

    @jax.jit
    def mean_return(networks: Networks):
        policy = agent.policy(networks, greedy=True)
        keep = lambda state, timestep, action: (timestep.reward, timestep.is_last)  # noqa: E731
        _, (reward, is_last) = rollout(env, policy, jnp.zeros((128,)), jax.random.key(1), env.limit, keep)
        first_episode = jnp.cumsum(is_last, 0) - is_last == 0
        return (reward * first_episode).sum(0).mean()

    learning = trained(agent, gathering, env, pool, 2_000)
    assert mean_return(next(learning)) < 100
    returns = [float(mean_return(networks)) for networks in itertools.islice(learning, 1, 5)]
    assert np.mean(returns) >= 160, returns


@pytest.mark.slow
@pytest.mark.optimised
def test_two_servers_are_shared_almost_as_well_as_by_the_best_rule():
    """A server four times as fast as the other, at load 0.7: the mean response time is at most 1.25 times that of the
    best rule after 12,000 steps (750 updates).

    Measured: 1.04, 1.07, 1.10 times with seeds 0, 1, 2 after 28,000, and never more than 1.24 from 8,000 steps on. The
    best rule is least-completion (2.93); join the shortest queue takes 3.79, at random by speed 4.97, the untrained
    policy over 40.
    """
    speeds, mean_size, load = [1.0, 0.25], 1.0, 0.7
    task = fleet_task(constant_speeds(speeds), poisson(mean_size / (load * sum(speeds)), exponential(mean_size)))
    env = FleetEnv(servers=2, jobs=200)
    model = SetRSSMConfig(units=32, deter=32, stoch=2, world_deter=32, world_stoch=4, horizon=100.0)
    config = DreamerConfig(
        model=model, optimiser=OPTIMISER, memory=16, units=32, layers=2, starts=128, entropy=1e-3, reward_scale=0.3
    )
    agent = Dreamer(config, env.observation_spec, env.action_spec)
    gathering = OffPolicyConfig(streams=8, capacity=50_000, batch=8, length=32, ratio=16.0)
    untrained, learned = itertools.islice(trained(agent, gathering, env, stack_tasks([task]), 12_000), 2)

    def player(name: str, networks: Networks) -> Contestant:
        return Contestant(name, agent.policy(networks, greedy=True), env, training_seed=0)

    sizes = np.random.default_rng(0).exponential(mean_size, 1000)
    opponents = contenders(rules(speeds, sizes, ("least-completion", "jsq", "random-speed")), env.view)
    contestants = [*opponents, player("untrained", untrained), player("learned", learned)]
    trials = stack_tasks([stack_tasks([task] * 64)])
    played = play(contestants, trials, jax.random.key(1), env.jobs)
    mean = {c.name: jobs.response.mean() for c, jobs in zip(contestants, played, strict=True)}
    best = min(mean[c.name] for c in opponents)
    assert mean["learned"] <= 1.25 * best
    assert mean["learned"] <= 0.8 * mean["random-speed"]
    assert mean["learned"] <= 0.2 * mean["untrained"]
