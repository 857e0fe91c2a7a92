"""A ladder of small worlds, each of which needs exactly one ability, so that a broken agent shows where it is broken.

Each world states what the best policy, and the best one without memory, can reach; tests of agents use these numbers as
their oracle. The order is that of the ladder: an agent that fails on one rung cannot be expected to pass a later one.
(After the test environments of rejax, with rungs for memory, trials and truncation added.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first


class Moment(NamedTuple):
    """Where an episode stands."""

    time: Int[Array, "*B"]
    """Steps since the episode began."""
    cue: Float[Array, "*B"]
    """What was shown, -1 or 1 (0 in worlds that show nothing)."""
    choice: Int[Array, "*B"]
    """The first action of the episode."""


@dataclass(frozen=True)
class Value:
    """Learn one number: an episode is one step, and its reward is 1 whatever is done.

    The value is 1, the return of every policy is 1.
    """

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0
    memoryless_return: ClassVar[float] = 1.0

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _begin(), first(_seen(0.0))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _go_on(state, action), _timestep(_seen(0.0), 1.0, terminal=True)


@dataclass(frozen=True)
class Dependence:
    """Let the value depend on the observation: an episode is one step, and its reward is the number seen, -1 or 1.

    The value is the observation, the mean return of every policy is 0.
    """

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 0.0
    memoryless_return: ClassVar[float] = 0.0

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _begin(key)
        return state, first(_seen(state.cue))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _go_on(state, action), _timestep(_seen(0.0), state.cue, terminal=True)


@dataclass(frozen=True)
class Discounting:
    """Look ahead: the only reward, 1, comes with the last of `length` steps; the observation is the time.

    At time t the value is discount^(length - 1 - t), the return of every policy is 1.
    """

    length: int = 3
    """Steps of an episode."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0
    memoryless_return: ClassVar[float] = 1.0

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _begin(), first(_seen(0.0))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _go_on(state, action)
        ends = state.time == self.length
        return state, _timestep(_seen(state.time), ends, terminal=ends)


@dataclass(frozen=True)
class Credit:
    """Give credit to the action that earned it: the first, which must name the cue seen with it (0 for -1, 1 for 1).

    The reward, 1 or 0, comes `delay` steps later, the actions between change nothing. The best return is 1; a policy
    that does not look, or learns from the last action alone, gets 1/2.
    """

    delay: int = 2
    """Steps between the action and its reward."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0
    memoryless_return: ClassVar[float] = 1.0

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _begin(key)
        return state, first(_seen(state.cue))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _go_on(state, action)
        ends = state.time == self.delay + 1
        return state, _timestep(_seen(0.0), ends & _names(state.choice, state.cue), terminal=ends)


@dataclass(frozen=True)
class Recall:
    """Remember across time: the cue is shown once, then nothing for `gap` steps, then the action must name it.

    The observation is (cue or 0, 1 when it is asked for). The reward, 1 or 0, comes with the answer. The best return is
    1; without memory it is 1/2, the answer being a guess.
    """

    gap: int = 4
    """Steps between the cue and the question."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((2,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0
    memoryless_return: ClassVar[float] = 0.5

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _begin(key)
        return state, first(_seen(state.cue, 0.0))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _go_on(state, action)
        ends = state.time == self.gap + 2
        asked = state.time == self.gap + 1
        return state, _timestep(_seen(0.0, asked), ends & _names(action, state.cue), terminal=ends)


@dataclass(frozen=True)
class HiddenArm:
    """Remember across episodes (RL2): one of two arms pays 1, the other 0; which one is the task and is never shown.

    An episode is one pull, and the observation is always 0. The task is the paying arm, an integer array. In the first
    episode of a trial every policy gets 1/2 on average over both tasks; in each later one the best policy, which
    remembers what it did and earned, gets 1, and one without memory, or whose memory ends with the episode, 1/2.
    """

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0
    """In the second episode of a trial and later."""
    memoryless_return: ClassVar[float] = 0.5

    def reset(self, task: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _begin(), first(_seen(0.0))

    def step(
        self, task: Int[Array, ""], state: Moment, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Moment, TimeStep]:
        return _go_on(state, action), _timestep(_seen(0.0), action == task, terminal=True)


@dataclass(frozen=True)
class CutOff:
    """Tell a cut from an end: each step pays 1 and the world never ends, but episodes are cut after `length` steps.

    The observation is always 0. The value is 1 / (1 - discount); an agent that takes the cut for an end finds less than
    `length`. The return of every policy is `length`.
    """

    length: int = 3
    """Steps after which an episode is cut."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((1,))}
    action_spec: ClassVar[Discrete] = Discrete(2)

    @property
    def optimal_return(self) -> float:
        return float(self.length)

    @property
    def memoryless_return(self) -> float:
        return float(self.length)

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        return _begin(), first(_seen(0.0))

    def step(self, task: Task, state: Moment, action: Int[Array, ""], key: Key[Array, ""]) -> tuple[Moment, TimeStep]:
        state = _go_on(state, action)
        cut = _timestep(_seen(0.0), 1.0, terminal=False)
        return state, cut._replace(is_last=state.time == self.length)


def _begin(key: Key[Array, ""] | None = None) -> Moment:
    cue = jnp.zeros(()) if key is None else jax.random.rademacher(key, (), jnp.float32)
    return Moment(jnp.int32(0), cue, jnp.int32(0))


def _go_on(state: Moment, action: Int[Array, ""]) -> Moment:
    return Moment(state.time + 1, state.cue, jnp.where(state.time == 0, action, state.choice))


def _names(action: Int[Array, ""], cue: Float[Array, ""]) -> Bool[Array, ""]:
    return (action == 1) == (cue > 0)


def _seen(*numbers: float | Array) -> dict[str, Array]:
    return {"vector": jnp.asarray(numbers, jnp.float32)}


def _timestep(observation: dict[str, Array], reward: float | Array, terminal: bool | Array) -> TimeStep:
    ends = jnp.asarray(terminal, bool)
    return TimeStep(
        observation, jnp.asarray(reward, jnp.float32), is_first=jnp.zeros((), bool), is_last=ends, is_terminal=ends
    )
