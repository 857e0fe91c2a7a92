"""Learning from what has just happened: collect with the present policy, update, forget, for every agent of that kind.

`update` is a pure function of its state, so a state that is saved and loaded goes on to the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from reverie.agents.core import OnPolicyAgent, Rollout
from reverie.envs.core import Task, World
from reverie.ranges import Count, at_least, checked
from reverie.train.averaging import average
from reverie.train.collect import Collector, Experience, collect, finished_returns, open_streams


@dataclass(frozen=True)
@checked
class OnPolicyConfig:
    """How experience is gathered."""

    streams: Annotated[int, *at_least(1, 1_000_000, "each is a world in RAM")] = 256
    """Environments that run side by side (B)."""
    steps: Annotated[int, *at_least(1, 1_000_000, "a rollout is held in RAM")] = 16
    """Steps that each of them takes for an update (T)."""
    episodes: Count = 1
    """Episodes of a trial: the policy's memory lives through them."""
    workers: Annotated[int, *at_least(1, 1_000, "each is compiled")] = 2
    """Parts that the streams are collected in, independently of one another: a CPU runs them on as many cores."""

    outside: ClassVar[bool] = False
    """Whether worlds outside JAX can be learned from: their copies cannot be stepped in parts."""
    repeats: ClassVar[int] = 1
    """Updates for each rollout: it is learned from once."""

    def __post_init__(self):
        if self.streams % self.workers:
            raise ValueError(
                f"OnPolicyConfig: streams must be a multiple of workers, got {self.streams} and {self.workers}"
            )

    @property
    def env_steps(self) -> int:
        """Environment steps, over all streams, for one update."""
        return self.streams * self.steps

    @property
    def first_steps(self) -> int:
        """Environment steps before the first update: none."""
        return 0


class OnPolicy(NamedTuple):
    """Everything that training changes."""

    learner: Any
    collectors: tuple[Collector, ...]
    """One for each worker."""
    updates: Int[Array, ""]
    key: Key[Array, ""]


def first_steps(agent: OnPolicyAgent, config: OnPolicyConfig) -> int:
    """Environment steps before the first update: none."""
    return config.first_steps


def outlives_tasks(agent: OnPolicyAgent, config: OnPolicyConfig) -> bool:
    """Whether what was gathered is of use where other tasks are played: there is no replay."""
    return False


def init(
    agent: OnPolicyAgent,
    config: OnPolicyConfig,
    env: World,
    pool: Task,
    key: Key[Array, ""],
    learner: Any = None,
) -> OnPolicy:
    """A first episode in each stream.

    Arguments: `pool`, the tasks [K, ...] that trials are drawn from; `learner`, what was learned before, fresh networks
    unless given.
    """
    key, agent_key, *keys = jax.random.split(key, 2 + config.workers)
    learner = agent.init(agent_key) if learner is None else learner
    policy = agent.policy(learner.networks)
    collectors = tuple(open_streams(env, pool, policy, config.streams // config.workers, k) for k in keys)
    return OnPolicy(learner, collectors, jnp.int32(0), key)


def update(
    agent: OnPolicyAgent,
    config: OnPolicyConfig,
    env: World,
    pool: Task,
    state: OnPolicy,
    averaged: PyTree,
    rate: float,
) -> tuple[OnPolicy, PyTree, dict[str, Array]]:
    """Some experience, and one update on it; also returns networks `averaged` over updates, which follow each at
    `rate`, and metrics."""
    key, update_key = jax.random.split(state.key)
    policy = agent.policy(state.learner.networks)
    gathered = [collect(env, pool, policy, c, config.steps, config.episodes) for c in state.collectors]
    collectors, seen = zip(*gathered, strict=True)
    rollout = side_by_side(list(map(as_rollout, state.collectors, collectors, seen)))
    learner, metrics = agent.update(state.learner, rollout, update_key)
    averaged = average(averaged, learner.networks, rate, updates := state.updates + 1)
    return OnPolicy(learner, collectors, updates, key), averaged, metrics | finished_returns(concatenate(seen, axis=1))


def as_rollout(before: Collector, after: Collector, seen: Experience) -> Rollout:
    """Experience [T, B, ...] with the moment after it, which tells what the last action led to."""
    moments = (seen.timestep, seen.is_trial_first), (after.timesteps, after.is_trial_first)
    timestep, is_trial_first = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), *moments)
    return Rollout(timestep, is_trial_first, seen.action, before.policy_state)


def side_by_side(rollouts: Sequence[Rollout]) -> Rollout:
    """The rollouts of several workers as one."""
    before = concatenate([r.before for r in rollouts], axis=0)
    return concatenate([r._replace(before=None) for r in rollouts], axis=1)._replace(before=before)


def concatenate[T: PyTree](trees: Sequence[T], axis: int) -> T:
    """Like `jnp.concatenate`, leaf by leaf."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)
