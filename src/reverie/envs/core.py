"""What a world is: the types that every environment, policy, collector and agent agree on.

An environment is a pair of pure functions over a `task` (a pytree of arrays), so that a batch of different tasks is
one `jax.vmap`. Nothing here knows of queues, of learning or of files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from numpy.typing import ArrayLike

Task = PyTree[Array]
State = Any


class TimeStep(NamedTuple):
    """What an agent sees at one instant, the first and the last of an episode included.

    An episode that was cut off (truncated) has `is_last` without `is_terminal`: its value is to be bootstrapped.
    The reward is that of the transition *into* this observation; it is 0 where `is_first`.
    """

    observation: dict[str, Array]
    reward: Float[Array, "*B"]
    is_first: Bool[Array, "*B"]
    is_last: Bool[Array, "*B"]
    is_terminal: Bool[Array, "*B"]


@dataclass(frozen=True)
class ArraySpec:
    """One entry of an observation. `kind` chooses the encoder.

    - `vector` [D]: numbers in any unit (encoders apply symlog), or integers below `categories` where that is given;
    - `servers` [N, F]: a set, one row per server;
    - `image` [H, W, C]: bytes;
    - `mask` [A]: which actions are allowed. It is given to the policy, not encoded;
    - `task` []: the number of the task in a `Suite`, below `categories`. It is given, not encoded unless a model asks;
    - `descriptor` [D]: numbers of the order of 1 that describe it. Likewise.
    """

    shape: tuple[int, ...]
    kind: Literal["vector", "servers", "image", "mask", "task", "descriptor"] = "vector"
    categories: int | None = None


@dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n-1."""

    n: int

    @property
    def width(self) -> int:
        """Numbers (A) of an action as networks read it."""
        return self.n

    def encode(self, action: Array) -> Float[Array, "*B A"]:
        """An action as networks read it: one-hot."""
        return jax.nn.one_hot(action, self.n)

    def nothing(self, batch: int) -> Int[Array, " B"]:
        """What stands where nothing was done yet."""
        return jnp.zeros((batch,), jnp.int32)


@dataclass(frozen=True)
class Continuous:
    """Vectors of `size` numbers in [-1, 1]."""

    size: int

    @property
    def width(self) -> int:
        """Numbers (A) of an action as networks read it."""
        return self.size

    def encode(self, action: Array) -> Float[Array, "*B A"]:
        """An action as networks read it: itself."""
        return action

    def nothing(self, batch: int) -> Float[Array, "B A"]:
        """What stands where nothing was done yet."""
        return jnp.zeros((batch, self.size))


ActionSpec = Discrete | Continuous


@runtime_checkable
class Environment(Protocol):
    """A world of pure functions, written for one episode; a batch is `jax.vmap`.

    A world that has no variants takes any array as its task, so that the task still says how large a batch is.
    """

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]: ...

    def step(self, task: Task, state: State, action: Array, key: Key[Array, ""]) -> tuple[State, TimeStep]: ...


@runtime_checkable
class BatchEnvironment(Protocol):
    """A world that can only be stepped as a batch of B, because it is no pure function: one that lives outside JAX.

    `batch_reset` and `batch_step` hand over to it, so whoever uses those need not tell the two kinds apart. Any array
    [B] will do as its tasks; `jax.vmap` over its steps will not.
    """

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    def batch_reset(self, tasks: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]: ...

    def batch_step(
        self, tasks: Task, states: State, timesteps: TimeStep, actions: Array, key: Key[Array, ""]
    ) -> tuple[State, TimeStep]: ...

    def check(self) -> None:
        """Raise what went wrong in it, once a program that stepped it has ended: compiled code cannot."""
        ...


World = Environment | BatchEnvironment

TaskFamily = Callable[[np.random.Generator], Task]
"""A distribution over tasks: draws one, on the host. Training draws a pool of them once and keeps it on the device."""


def check(env: World) -> None:
    """Raise what went wrong in a world outside; other worlds cannot fail."""
    if isinstance(env, BatchEnvironment):
        env.check()


def first(observation: dict[str, Array]) -> TimeStep:
    """The `TimeStep` that opens an episode."""
    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    return TimeStep(observation, jnp.zeros(()), is_first=yes, is_last=no, is_terminal=no)


def later(
    observation: dict[str, Array], reward: Array, terminated: Bool[Array, ""], truncated: Bool[Array, ""] | bool = False
) -> TimeStep:
    """The `TimeStep` of a step: the episode goes on, ended (`terminated`) or is cut (`truncated`)."""
    no, is_last = jnp.zeros((), bool), terminated | truncated
    return TimeStep(observation, reward.astype(jnp.float32), is_first=no, is_last=is_last, is_terminal=terminated)


def select(condition: Bool[Array, "*B"], on_true: PyTree, on_false: PyTree) -> PyTree:
    """`jnp.where` over whole pytrees whose leaves begin with the axes of the condition."""

    def leaf(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf(jax.random.key_data(a), jax.random.key_data(b)))
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(leaf, on_true, on_false)


def stack_tasks(tasks: Sequence[Task]) -> Task:
    """Tasks [B] as one pytree with the axis B in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


class Numbered(NamedTuple):
    """A task of a `Suite`, and its number there."""

    index: Int[Array, "*B"]
    task: Task
    descriptor: Float[Array, "*B D"]
    """Numbers of the order of 1 that describe it; D is 0 where nothing does."""


@dataclass(frozen=True)
class Suite:
    """Named tasks in one world: an observation has an entry `task` beside those of the world, which says which it is,
    and where tasks are described an entry `descriptor`.

    Its tasks are `Numbered`; `suite` makes a batch of them. Everything else is as in the world.
    """

    world: Environment
    names: tuple[str, ...]
    described: int = 0
    """Numbers (D) of a descriptor."""

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        described = {"descriptor": ArraySpec((self.described,), "descriptor")} if self.described else {}
        return {**self.world.observation_spec, "task": ArraySpec((), "task", len(self.names)), **described}

    @property
    def action_spec(self) -> ActionSpec:
        return self.world.action_spec

    def reset(self, task: Numbered, key: Key[Array, ""]) -> tuple[State, TimeStep]:
        return self._numbered(task, *self.world.reset(task.task, key))

    def step(self, task: Numbered, state: State, action: Array, key: Key[Array, ""]) -> tuple[State, TimeStep]:
        return self._numbered(task, *self.world.step(task.task, state, action, key))

    def _numbered(self, task: Numbered, state: State, timestep: TimeStep) -> tuple[State, TimeStep]:
        told = {"task": task.index} | ({"descriptor": task.descriptor} if self.described else {})
        return state, timestep._replace(observation={**timestep.observation, **told})


def suite(
    named: Mapping[str, Sequence[Task]],
    stack: Callable[[Sequence[Task]], Task] = stack_tasks,
    describe: Callable[[Task], ArrayLike] = lambda task: (),
) -> Numbered:
    """All tasks of a suite as one batch [B, ...], numbered by their name's place in `named`.

    Arguments: the tasks under each name, one or more; `stack`, which makes a batch of all of them, by padding where
    their shapes differ (for fleets `stack_fleets`); `describe`, the numbers that describe one.
    """
    counts = [len(tasks) for tasks in named.values()]
    index = jnp.asarray(np.repeat(np.arange(len(named)), counts), jnp.int32)
    tasks = [task for tasks in named.values() for task in tasks]
    described = jnp.asarray(np.stack([np.asarray(describe(task), np.float32) for task in tasks]))
    return Numbered(index, stack(tasks), described)


def batch_reset(env: World, tasks: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]:
    """Open one episode for each of the B tasks (a pytree whose leaves begin with the axis B)."""
    if isinstance(env, BatchEnvironment):
        return env.batch_reset(tasks, key)
    keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
    return jax.vmap(env.reset)(tasks, keys)


def batch_step(
    env: World, tasks: Task, states: State, timesteps: TimeStep, actions: Array, key: Key[Array, ""]
) -> tuple[State, TimeStep]:
    """Step B environments; those whose last timestep closed an episode are reset instead and their action is ignored.

    The resets are computed only in steps in which at least one episode begins.
    """
    if isinstance(env, BatchEnvironment):
        return env.batch_step(tasks, states, timesteps, actions, key)
    step_key, reset_key = jax.random.split(key)
    keys = jax.random.split(step_key, timesteps.is_last.shape[0])
    stepped = jax.vmap(env.step)(tasks, states, actions, keys)
    return jax.lax.cond(
        timesteps.is_last.any(),
        lambda: select(timesteps.is_last, batch_reset(env, tasks, reset_key), stepped),
        lambda: stepped,
    )
