"""Learning from replay: collect, keep, draw, update, for every agent of that kind (`agents/core.py`).

`update` is a pure function of its state, so a state that is saved and loaded goes on to the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from reverie.agents.core import OffPolicyAgent, Row
from reverie.envs.core import Task, World
from reverie.ranges import Count, Positive, Weight, Whole, at_least, checked
from reverie.train import replay as replays
from reverie.train.collect import Collector, collect, finished_returns, open_streams, pool_size
from reverie.train.replay import Replay


@dataclass(frozen=True)
@checked
class OffPolicyConfig:
    """How experience is gathered and replayed."""

    streams: Annotated[int, *at_least(1, 1_000_000, "each is a world in RAM")] = 16
    """Environments that run side by side (B)."""
    episodes: Count = 1
    """Episodes of a trial: the policy's memory lives through them."""
    capacity: Count = 100_000
    """Environment steps that replay holds, over all streams."""
    batch: Annotated[int, *at_least(1, 1_000_000, "a batch is held in RAM")] = 16
    """Sequences of an update."""
    length: Annotated[int, *at_least(1, 1_000_000, "a sequence is held in RAM")] = 64
    """Steps of a sequence (T)."""
    ratio: Positive = 32.0
    """Replayed steps for each step in the environment."""
    prefill: Whole = 0
    """Environment steps, over all streams, before the first update, where those of a first sequence are fewer."""
    by_task: bool = False
    """Whether each task is replayed as often as any other, however much experience there is of it."""
    recency: Weight = 0.0
    """How much more often the newest experience is replayed than the oldest: e^recency times; 0 is as often."""

    outside: ClassVar[bool] = True
    """Whether worlds outside JAX can be learned from."""

    def __post_init__(self):
        if self.capacity < self.first_steps:
            raise ValueError(
                "OffPolicyConfig: capacity must hold a sequence of each stream and what is gathered before the first "
                f"update (prefill), {self.first_steps}; got {self.capacity}"
            )
        most = self.batch * self.length / self.streams
        if self.ratio > most:
            raise ValueError(
                f"OffPolicyConfig: ratio must be at most batch * length / streams = {most}, got {self.ratio}: "
                "each update needs at least one new step of each stream"
            )

    @property
    def steps(self) -> int:
        """Steps that each stream takes for one update."""
        return max(1, round(self.batch * self.length / (self.ratio * self.streams)))

    @property
    def env_steps(self) -> int:
        """Environment steps, over all streams, for one update."""
        return self.steps * self.streams

    @property
    def first_steps(self) -> int:
        """Environment steps, over all streams, before the first update, of an agent that is lent one row."""
        return self.first_steps_lending(1)

    def first_steps_lending(self, rows: int) -> int:
        """The same for an agent that is lent so many rows before each sequence."""
        return max(rows + self.length, -(-self.prefill // self.streams)) * self.streams


class OffPolicy(NamedTuple):
    """Everything that training changes."""

    learner: Any
    collector: Collector
    replay: Replay
    updates: Int[Array, ""]
    key: Key[Array, ""]


def first_steps(agent: OffPolicyAgent, config: OffPolicyConfig) -> int:
    """Environment steps, over all streams, before the first update."""
    return config.first_steps_lending(agent.context)


def init(agent: OffPolicyAgent, config: OffPolicyConfig, env: World, pool: Task, key: Key[Array, ""]) -> OffPolicy:
    """Fresh networks, and just enough experience of the untrained policy to draw sequences from.

    Arguments: `pool`, the tasks [K, ...] that trials are drawn from.

    Raises:
        ValueError: replay has no room for a sequence of each stream and the rows that are lent before it.
    """
    steps = first_steps(agent, config)
    if config.capacity < steps:
        raise ValueError(
            f"OffPolicyConfig: capacity must be at least {steps}, got {config.capacity}: each of {config.streams} "
            f"streams keeps a sequence of {config.length} steps and {agent.context} rows that the agent is lent"
        )
    key, agent_key, world_key = jax.random.split(key, 3)
    learner = agent.init(agent_key)
    collector = open_streams(env, pool, agent.policy(learner.networks), config.streams, world_key)
    collector, rows, _ = gather(agent, config, env, pool, learner, collector, steps // config.streams)
    ring = replays.empty(jax.tree.map(lambda leaf: leaf[0], rows), config.capacity // config.streams)
    return OffPolicy(learner, collector, replays.add(ring, rows), jnp.int32(0), key)


def update(
    agent: OffPolicyAgent, config: OffPolicyConfig, env: World, pool: Task, state: OffPolicy
) -> tuple[OffPolicy, dict[str, Array]]:
    """Some experience, and one update on what replay holds by then; also returns metrics."""
    key, place_key, update_key = jax.random.split(state.key, 3)
    collector, rows, scores = gather(agent, config, env, pool, state.learner, state.collector, config.steps)
    replay = replays.add(state.replay, rows)
    length = agent.context + config.length
    newest, tasks = fresh(config, state.updates), pool_size(pool) if config.by_task else 0
    place = replays.sample(replay, config.batch, length, newest, place_key, tasks, config.recency)
    learner, kept, metrics = agent.update(state.learner, replays.read(replay, place), update_key)
    if kept is not None:
        learned = jax.tree.map(lambda x: x[:, agent.context :], place)  # all but the rows that were lent
        replay = replays.write(replay, learned, kept=kept)
    return OffPolicy(learner, collector, replay, state.updates + 1, key), metrics | scores


def gather(
    agent: OffPolicyAgent,
    config: OffPolicyConfig,
    env: World,
    pool: Task,
    learner: Any,
    collector: Collector,
    steps: int,
) -> tuple[Collector, Row, dict[str, Array]]:
    """Experience of the present policy, as rows [T, B, ...] for replay."""
    networks = learner.networks
    policy, keep = agent.policy(networks), partial(agent.keep, networks)
    collector, seen = collect(env, pool, policy, collector, steps, config.episodes, keep)
    rows = Row(seen.timestep, seen.is_trial_first, seen.task, seen.action, seen.kept)
    return collector, rows, finished_returns(seen)


def fresh(config: OffPolicyConfig, updates: Int[Array, ""]) -> Int[Array, " R"]:
    """The streams whose newest stretch is part of this update: in turn, as many as pass over each new step once."""
    count = min(config.batch, -(-config.env_steps // config.length))
    return (updates * count + jnp.arange(count)) % config.streams
