"""Learning from replay: collect, keep, draw, update, for every agent of that kind (`agents/core.py`).

`update` is a pure function of its state, so a state that is saved and loaded goes on to the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from reverie.agents.core import Evidence, OffPolicyAgent, Row, Studied
from reverie.envs.core import Task, World
from reverie.models.core import USE
from reverie.ranges import Count, Positive, Weight, Whole, at_least, checked
from reverie.train import replay as replays
from reverie.train.averaging import average
from reverie.train.collect import Collector, collect, finished_returns, open_streams, pool_size
from reverie.train.replay import Place, Replay


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
    repeats: Count = 1
    """Updates for each stretch of new experience; with many streams a single one would be little for so much of it."""
    prefill: Whole = 0
    """Environment steps, over all streams, before the first update, where those of a first sequence are fewer."""
    by_task: bool = False
    """Whether each task is replayed as often as any other, however much experience there is of it."""
    settled: bool = False
    """Whether each stream plays one task for good, so that each task gets as many steps, however long its episodes."""
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
        most = self.batch * self.length * self.repeats / self.streams
        if self.ratio > most:
            raise ValueError(
                f"OffPolicyConfig: ratio must be at most batch * length * repeats / streams = {most}, "
                f"got {self.ratio}: there is at least one new step of each stream before so many updates"
            )

    @property
    def steps(self) -> int:
        """Steps that each stream takes before the next updates (`repeats`)."""
        return max(1, round(self.batch * self.length * self.repeats / (self.ratio * self.streams)))

    @property
    def env_steps(self) -> int:
        """Environment steps, over all streams, before the next updates."""
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
    return config.first_steps_lending(agent.rows_lent)


def init(
    agent: OffPolicyAgent,
    config: OffPolicyConfig,
    env: World,
    pool: Task,
    key: Key[Array, ""],
    learner: Any = None,
) -> OffPolicy:
    """Just enough experience of the policy to draw sequences from.

    Arguments: `pool`, the tasks [K, ...] that trials are drawn from; `learner`, what was learned before, fresh networks
    unless given.

    Raises:
        ValueError: replay has no room for a sequence of each stream and the rows that are lent before it; or the agent
            infers tasks, and there are not the streams and sequences that this takes.
    """
    steps = first_steps(agent, config)
    if config.capacity < steps:
        raise ValueError(
            f"OffPolicyConfig: capacity must be at least {steps}, got {config.capacity}: each of {config.streams} "
            f"streams keeps a sequence of {config.length} steps and {agent.rows_lent} rows that the agent is lent"
        )
    if agent.evidence is not None:
        check_evidence(agent.evidence, config)
    if settled := settles(agent, config):
        check_streams(config, pool_size(pool))
    key, agent_key, world_key = jax.random.split(key, 3)
    learner = agent.init(agent_key) if learner is None else learner
    collector = open_streams(env, pool, agent.policy(learner.networks), config.streams, world_key, settled)
    collector, rows, _ = gather(agent, config, env, pool, learner, collector, steps // config.streams)
    ring = replays.empty(jax.tree.map(lambda leaf: leaf[0], rows), config.capacity // config.streams)
    return OffPolicy(learner, collector, replays.add(ring, rows), jnp.int32(0), key)


def update(
    agent: OffPolicyAgent,
    config: OffPolicyConfig,
    env: World,
    pool: Task,
    state: OffPolicy,
    averaged: PyTree,
    rate: float,
) -> tuple[OffPolicy, PyTree, dict[str, Array]]:
    """Some experience, and updates on what replay holds by then; also returns networks `averaged` over updates, which
    follow each at `rate`, and metrics."""
    collector, rows, scores = gather(agent, config, env, pool, state.learner, state.collector, config.steps)
    state = state._replace(collector=collector, replay=replays.add(state.replay, rows))
    tasks = named_tasks(env, pool)

    def one(before: tuple[OffPolicy, PyTree], _: None) -> tuple[tuple[OffPolicy, PyTree], dict[str, Array]]:
        state, averaged = before
        state, metrics = learn(agent, config, tasks, state)
        return (state, average(averaged, state.learner.networks, rate, state.updates)), metrics

    if config.repeats == 1:
        (state, averaged), metrics = one((state, averaged), None)
    else:
        (state, averaged), metrics = jax.lax.scan(one, (state, averaged), None, length=config.repeats)
        metrics = over_updates(metrics)
    return state, averaged, metrics | scores


def over_updates(metrics: dict[str, Array]) -> dict[str, Array]:
    """The mean of metrics [U] of several updates: of those of `USE` over updates that say something of them; any other
    NaN stays."""
    return {name: jnp.nanmean(each, 0) if name.startswith(USE) else each.mean(0) for name, each in metrics.items()}


def learn(
    agent: OffPolicyAgent, config: OffPolicyConfig, tasks: int, state: OffPolicy
) -> tuple[OffPolicy, dict[str, Array]]:
    """One update on what replay holds of so many tasks; also returns metrics."""
    key, place_key, update_key = jax.random.split(state.key, 3)
    replay, length = state.replay, agent.rows_lent + config.length
    if agent.evidence is None:
        newest, row = fresh(config, state.updates), replay.rows
        # A suite's numbers stay the same where training goes on with other tasks of it; those of a pool do not.
        by = (row.timestep.observation.get("task", row.task), tasks) if config.by_task else None
        place = replays.sample(replay, config.batch, length, newest, place_key, by, config.recency)
        rows = replays.read(replay, place)
    else:
        place, rows = study(agent.evidence, config, length, replay, place_key)
    learner, kept, metrics = agent.update(state.learner, rows, update_key)
    if kept is not None:
        learned = jax.tree.map(lambda x: x[..., agent.rows_lent :], place)  # all but the rows that were lent
        replay = replays.write(replay, learned, kept=kept)
    return state._replace(learner=learner, replay=replay, updates=state.updates + 1, key=key), metrics


def settles(agent: OffPolicyAgent, config: OffPolicyConfig) -> bool:
    """Whether streams keep to their tasks: one that is given evidence of a task has it from all that a stream saw."""
    return config.settled or agent.evidence is not None


def outlives_tasks(agent: OffPolicyAgent, config: OffPolicyConfig) -> bool:
    """Whether replay is of use where other tasks are played: not where rows are looked up by their tasks."""
    return not settles(agent, config)


def named_tasks(env: World, pool: Task) -> int:
    """How many tasks rows are told apart by: those that a suite names, or else those of the pool."""
    named = env.observation_spec.get("task")
    return pool_size(pool) if named is None else named.categories or 1


def study(
    asked: Evidence, config: OffPolicyConfig, length: int, replay: Replay, key: Key[Array, ""]
) -> tuple[Place, Studied]:
    """Some streams, each of which plays one task: sequences of all that is kept of it, and evidence, drawn apart."""
    stream_key, place_key, evidence_key = jax.random.split(key, 3)
    streams = jax.random.permutation(stream_key, config.streams)[: asked.tasks]
    place = replays.sample_of(replay, streams, config.batch // asked.tasks, length, place_key)
    serves = replay.rows.kept
    among = replays.sample_of(replay, streams, asked.stretches, asked.length, evidence_key, serves, asked.recent)
    return place, Studied(replays.read(replay, place), replays.read(replay, among))


def check_streams(config: OffPolicyConfig, pool: int) -> None:
    """Errors: ValueError where streams cannot keep to a task each."""
    if config.streams % pool:
        raise ValueError(
            f"streams must be a multiple of the number of tasks, {pool}, as each plays one of them for good; "
            f"got {config.streams}"
        )


def check_evidence(asked: Evidence, config: OffPolicyConfig) -> None:
    """Errors: ValueError where tasks cannot be inferred from what is gathered, or what is asked for has no effect."""
    if config.by_task or config.recency:
        raise ValueError(
            "by_task and recency are for agents that are not given evidence: one that infers tasks draws them first, "
            f"and of each all steps alike; got {config.by_task} and {config.recency}"
        )
    if asked.tasks > config.streams:
        raise ValueError(f"tasks of an update must be at most the streams, {config.streams}; got {asked.tasks}")
    if config.batch % asked.tasks:
        raise ValueError(f"batch must be a multiple of the tasks of an update, {asked.tasks}; got {config.batch}")
    if asked.length > (rows := config.first_steps // config.streams):
        raise ValueError(
            f"stretches of evidence are {asked.length} rows, more than the {rows} of each stream before the first "
            "update: raise prefill"
        )


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
    collector, seen = collect(env, pool, policy, collector, steps, config.episodes, keep, settles(agent, config))
    rows = Row(seen.timestep, seen.is_trial_first, seen.task, seen.action, seen.kept)
    return collector, rows, finished_returns(seen)


def fresh(config: OffPolicyConfig, updates: Int[Array, ""]) -> Int[Array, " R"]:
    """The streams whose newest stretch is part of this update: in turn, as many as pass over each new step once."""
    count = min(config.batch, -(-config.env_steps // config.length))
    return (updates * count + jnp.arange(count)) % config.streams
