"""Training Dreamer in a built-in world: collect, replay, update, as one compiled program.

`train` is a pure function of its state, so a state that is saved and loaded goes on to the same numbers.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from reverie.agents.dreamer import Batch, Dreamer, Learner, Memory, encode_action
from reverie.envs.core import Task, TimeStep, World
from reverie.models.core import Sequence
from reverie.nn.devices import divide
from reverie.ranges import Count, Positive, at_least, checked
from reverie.train import replay as replays
from reverie.train.collect import Collector, collect, finished_returns, start
from reverie.train.replay import Replay


@dataclass(frozen=True)
@checked
class DreamingConfig:
    """How experience is gathered and replayed."""

    streams: Annotated[int, *at_least(1, 1_000_000, "each is a world in memory")] = 16
    """Environments that run side by side (B)."""
    episodes: Count = 1
    """Episodes of a trial: the policy's memory lives through them."""
    capacity: Count = 100_000
    """Environment steps that replay holds, over all streams."""
    batch: Annotated[int, *at_least(1, 1_000_000, "a batch is held in memory")] = 16
    """Sequences of an update."""
    length: Annotated[int, *at_least(1, 1_000_000, "a sequence is held in memory")] = 64
    """Steps of a sequence (T)."""
    ratio: Positive = 32.0
    """Replayed steps for each step in the environment."""

    def __post_init__(self):
        least = self.streams * (self.length + 1)
        if self.capacity < least:
            raise ValueError(
                f"DreamingConfig: capacity must hold a sequence of each stream, {least}; got {self.capacity}"
            )
        most = self.batch * self.length / self.streams
        if self.ratio > most:
            raise ValueError(
                f"DreamingConfig: ratio must be at most batch * length / streams = {most}, got {self.ratio}: "
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
        """Environment steps, over all streams, before the first update."""
        return (self.length + 1) * self.streams


class Row(NamedTuple):
    """What replay keeps of one step."""

    timestep: TimeStep
    is_trial_first: Array
    action: Array
    """Done after the timestep was seen."""
    latents: PyTree
    """Model state after the timestep was seen, compressed."""
    recurrent: Array
    """The policy's memory after the timestep was seen."""


class Dreaming(NamedTuple):
    """Everything that training changes."""

    learner: Learner
    collector: Collector
    replay: Replay
    updates: Int[Array, ""]
    key: Key[Array, ""]


def init(agent: Dreamer, config: DreamingConfig, env: World, pool: Task, key: Key[Array, ""]) -> Dreaming:
    """Fresh networks, and just enough experience of the untrained policy to draw a batch from.

    Arguments: `pool`, the tasks [K, ...] that trials are drawn from.
    """
    key, agent_key, world_key = jax.random.split(key, 3)
    learner = agent.init(agent_key)
    collector = start(env, pool, agent.policy(learner.networks), config.streams, world_key)
    collector, rows, _ = gather(agent, config, env, pool, learner, collector, config.length + 1)
    ring = replays.empty(jax.tree.map(lambda leaf: leaf[0], rows), config.capacity // config.streams)
    return Dreaming(learner, collector, replays.add(ring, rows), jnp.int32(0), key)


def train(
    agent: Dreamer, config: DreamingConfig, env: World, pool: Task, state: Dreaming, updates: int
) -> tuple[Dreaming, dict[str, Float[Array, " U"]]]:
    """Alternate experience and updates `updates` (U) times; metrics come back one number per update."""

    def one_update(state: Dreaming, _: None) -> tuple[Dreaming, dict[str, Array]]:
        key, place_key, update_key = jax.random.split(state.key, 3)
        collector, rows, scores = gather(agent, config, env, pool, state.learner, state.collector, config.steps)
        replay = replays.add(state.replay, rows)
        place = replays.sample(replay, config.batch, config.length + 1, fresh(config, state.updates), place_key)
        batch = divide(as_batch(agent, state.learner, replays.read(replay, place)), agent.mesh)
        learner, (states, recurrent), metrics = agent.update(state.learner, batch, update_key)
        latents = learner.networks.model.compress(states)
        newer = jax.tree.map(lambda x: x[:, 1:], place)  # all but the row that lent its latents
        replay = replays.write(replay, newer, latents=latents, recurrent=recurrent)
        return Dreaming(learner, collector, replay, state.updates + 1, key), metrics | scores

    return jax.lax.scan(one_update, state, None, length=updates)


def gather(
    agent: Dreamer,
    config: DreamingConfig,
    env: World,
    pool: Task,
    learner: Learner,
    collector: Collector,
    steps: int,
) -> tuple[Collector, Row, dict[str, Any]]:
    """Experience of the present policy, as rows [T, B, ...] for replay."""
    model = learner.networks.model

    def keep(memory: Memory) -> tuple[PyTree, Array]:
        return model.compress(memory.model), memory.recurrent.astype(jnp.bfloat16)

    policy = agent.policy(learner.networks)
    collector, seen = collect(env, pool, policy, collector, steps, config.episodes, keep)
    rows = Row(seen.timestep, seen.is_trial_first, seen.action, *seen.memory)
    return collector, rows, finished_returns(seen)


def fresh(config: DreamingConfig, updates: Int[Array, ""]) -> Int[Array, " R"]:
    """The streams whose newest stretch is part of this update: in turn, as many as pass over each new step once."""
    count = min(config.batch, -(-config.env_steps // config.length))
    return (updates * count + jnp.arange(count)) % config.streams


def as_batch(agent: Dreamer, learner: Learner, rows: Row) -> Batch:
    """Rows [S, T + 1, ...] as a batch of T steps; the first row only lends its latents and its action."""
    ts = jax.tree.map(lambda x: x[:, 1:], rows.timestep)
    previous = encode_action(agent.action_spec, rows.action[:, :-1])
    sequence = Sequence(
        observation=ts.observation,
        action=jnp.where(ts.is_first[..., None], 0.0, previous),
        reward=ts.reward,
        is_first=ts.is_first,
        is_last=ts.is_last,
        is_terminal=ts.is_terminal,
    )
    latents, recurrent = jax.tree.map(lambda x: x[:, 0], (rows.latents, rows.recurrent))
    return Batch(
        sequence, rows.is_trial_first[:, 1:], learner.networks.model.expand(latents), recurrent.astype(jnp.float32)
    )
