"""Copies of a world outside as one `BatchEnvironment`, which compiled programs step as they step built-in worlds: an
ordered callback steps the copies on the host, one after the other."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax.experimental import io_callback
from jaxtyping import Array, Key, Shaped

from reverie import signals
from reverie.envs.core import ActionSpec, ArraySpec, Discrete, State, Task, TimeStep
from reverie.envs.outside.spaces import MASK, Seen, ShownError, actions_of, dm_space, dtype, entries, mask_entry
from reverie.envs.outside.tasks import ONE, ManyTasks

LIMIT = 10_000
"""Steps after which an episode that has not ended is cut off."""
TRIED = 8
"""Steps that a world is tried for before it is trained in."""


class WorldError(ValueError):
    """A world outside did what no world may do. The message names it, when that was, and what it said itself."""


@runtime_checkable
class OutsideWorld(Protocol):
    """One world on the host, described by Gymnasium's spaces."""

    @property
    def observation_space(self) -> spaces.Space: ...

    @property
    def action_space(self) -> spaces.Space: ...

    @property
    def masks(self) -> bool:
        """Whether it says with each observation which of its actions are allowed (`Seen.mask`)."""
        ...

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        """Open an episode. A seed starts the world's own random numbers anew; without one they go on. A world of many
        tasks is told which one it is (`tasks.py`)."""
        ...

    def step(self, action: Any) -> Seen: ...


class FromGymnasium:
    """A Gymnasium environment. One that has the method `action_masks()` of sb3-contrib is asked for its masks."""

    def __init__(self, env: gymnasium.Env):
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._env = env
        self.masks = env.has_wrapper_attr("action_masks")

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        observation, _ = self._env.reset(seed=seed)
        return Seen(observation, mask=self._mask())

    def step(self, action: Any) -> Seen:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return Seen(observation, float(reward), bool(terminated or truncated), bool(terminated), self._mask())

    def _mask(self) -> Any:
        return self._env.get_wrapper_attr("action_masks")() if self.masks else None


class FromDmEnv:
    """An environment of dm_env's interface. Those take their seed when they are made: `make` is given it."""

    masks = False

    def __init__(self, make: Callable[[int], Any]):
        self._make, self._made = make, None

    @property
    def observation_space(self) -> spaces.Space:
        return dm_space(self._env.observation_spec())

    @property
    def action_space(self) -> spaces.Space:
        return dm_space(self._env.action_spec())

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        if seed is not None:
            self._made = self._make(seed)
        return Seen(self._env.reset().observation)

    def step(self, action: Any) -> Seen:
        timestep = self._env.step(action)
        is_last = bool(timestep.last())
        return Seen(timestep.observation, float(timestep.reward), is_last, is_last and timestep.discount == 0)

    @property
    def _env(self) -> Any:
        if self._made is None:
            self._made = self._make(0)
        return self._made


class OutsideWorlds:
    """B copies of a world outside, as one `BatchEnvironment`. What they are like is in the copies, not in a state.

    So only one stretch of experience can be going on in them, and a checkpoint does not hold where it stands. Each
    `batch_reset` seeds the copies, differently, from its key: all that follows is decided by keys and actions.
    A discrete action is one number, a continuous one is clipped to [-1, 1] and scaled to the bounds of the world.

    Arguments: `worlds`, the copies; `repeat`, how often each action is done in a row, while the episode or a life
    lasts, for the sum of the rewards; `limit`, the steps after which an episode that has not ended is cut off; `name`,
    what errors call the world; `tasks`, those that there are, where there are several: an episode is that of the task
    at hand when it opens.
    Errors: ValueError for observations or actions that have no counterpart here, and for no copy or no step at all.
    """

    def __init__(
        self,
        worlds: Sequence[OutsideWorld],
        repeat: int = 1,
        limit: int = LIMIT,
        name: str = "the world",
        tasks: ManyTasks = ONE,
    ):
        if not worlds or min(repeat, limit) < 1:
            raise ValueError(
                f"at least 1 copy of a world, 1 step for an action and 1 for an episode, got {len(worlds)}, {repeat} "
                f"and {limit}"
            )
        self._worlds, self._repeat, self._limit, self._name = tuple(worlds), repeat, limit, name
        self._of = tasks
        self._begun, self._seed = False, None
        self._steps = np.zeros(len(worlds), int)  # of the episode, in each copy
        self._was_cut = False
        self._fault: BaseException | None = None
        # What draws pictures is used from the thread that it was made in; callbacks come from any.
        self._thread = ThreadPoolExecutor(1, "outside")
        self._action_spec, self._in_world = actions_of(self._host(lambda: worlds[0].action_space))
        self._entries = entries(self._host(lambda: worlds[0].observation_space), self._action_spec)
        if worlds[0].masks and MASK not in self._entries and isinstance(self._action_spec, Discrete):
            self._entries[MASK] = mask_entry((self._action_spec.n,), lambda seen: seen.mask)

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        specs = {name: entry.spec for name, entry in self._entries.items()}
        return {**specs, **self._of.shown}

    @property
    def factors(self) -> tuple[str, ...]:
        """What the numbers of a task are called, where it is some."""
        return self._of.factors

    @property
    def action_spec(self) -> ActionSpec:
        return self._action_spec

    @property
    def tasks(self) -> Shaped[Array, "B ..."]:
        """B tasks for `batch_reset` and `batch_step`, in turn of those to learn from."""
        return jnp.resize(self._of.tasks, (len(self._worlds), *self._of.tasks.shape[1:]))

    def batch_reset(self, tasks: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]:
        self._check(tasks)
        open_ = partial(self._host, self._open)
        return (), self._saying(tasks, io_callback(open_, self._shapes, jax.random.bits(key), tasks, ordered=True))

    def batch_step(
        self, tasks: Task, states: State, timesteps: TimeStep, actions: Array, key: Key[Array, ""]
    ) -> tuple[State, TimeStep]:
        self._check(tasks)
        step = partial(self._host, self._step)
        seen = io_callback(step, self._shapes, actions, timesteps.is_last, tasks, ordered=True)
        return (), self._saying(tasks, seen)

    def go_on(self, seed: int) -> None:
        """Be stepped next in the place of copies of another process, all of whose episodes have ended: open the next
        ones, with this seed."""
        self._begun, self._seed = False, seed

    def check(self) -> None:
        """Say what happened in the copies since they were opened.

        Errors: WorldError where one of them failed, `Stopped` where a signal ended the stepping. What the copies showed
        from then on (nothing, and the end of each episode) means nothing.
        """
        if self._fault is not None:
            raise self._fault

    def try_out(self, steps: int = TRIED) -> None:
        """Step the copies with actions at random. Errors: as for `check`."""
        rng = np.random.default_rng(0)
        tasks = np.asarray(self.tasks)
        timestep = self._host(self._open, 0, tasks)
        for _ in range(steps):
            self.check()
            if isinstance(self._action_spec, Discrete):
                free = timestep.observation.get(MASK, np.ones((len(self._worlds), self._action_spec.n), bool))
                actions = np.array([rng.choice(np.flatnonzero(row)) for row in free])
            else:
                actions = rng.uniform(-1, 1, (len(self._worlds), self._action_spec.size)).astype(np.float32)
            timestep = self._host(self._step, actions, timestep.is_last, tasks)
        self.check()

    def _check(self, tasks: Task) -> None:
        if (batch := jax.tree.leaves(tasks)[0].shape[0]) != len(self._worlds):
            raise ValueError(f"{len(self._worlds)} copies of a world were opened, and {batch} are asked for")

    def _saying(self, tasks: Task, timestep: TimeStep) -> TimeStep:
        """With what observations say of the task."""
        return timestep._replace(observation={**timestep.observation, **self._of.say(tasks)})

    # --- on the host ---

    def _host[R](self, function: Callable[..., R], *arguments: Any) -> R:
        return self._thread.submit(function, *arguments).result()

    def _open(self, seed: Any, tasks: Any) -> TimeStep:
        seeds = np.random.SeedSequence(int(seed)).generate_state(len(self._worlds))
        self._begun, self._fault = True, None
        tasks = np.asarray(tasks)
        every = np.ones(len(self._worlds), bool)
        return self._seen(lambda copy: self._reset(copy, tasks[copy], int(seeds[copy])), every)

    def _step(self, actions: Any, closed: Any, tasks: Any) -> TimeStep:
        actions, closed, tasks = np.asarray(actions), np.asarray(closed), np.asarray(tasks)
        if not self._begun:
            if self._seed is None or not closed.all():
                raise RuntimeError("these episodes were begun in another process: end them, and call `go_on`")
            return self._open(self._seed, tasks)

        def look(copy: int) -> Seen:
            return self._reset(copy, tasks[copy]) if closed[copy] else self._act(copy, actions[copy])

        return self._seen(look, closed)

    def _reset(self, copy: int, task: Any, seed: int | None = None) -> Seen:
        self._steps[copy] = 0
        return self._worlds[copy].reset(seed, task)

    def _act(self, copy: int, action: Any) -> Seen:
        world, done = self._worlds[copy], self._in_world(action)
        self._steps[copy] += 1
        seen, reward = world.step(done), 0.0
        for _ in range(self._repeat - 1):
            if seen.is_last or seen.is_terminal:  # what ends nothing but a life is told too
                break
            reward += seen.reward
            seen = world.step(done)
        cut = self._steps[copy] >= self._limit and not seen.is_last
        if cut and not self._was_cut:
            self._was_cut = True
            warnings.warn(
                f"{self._name}: an episode had not ended after {self._limit:,} steps and was cut off there, as all are "
                "that take longer; --world.limit sets another limit",
                stacklevel=2,
            )
        return seen._replace(reward=reward + seen.reward, is_last=seen.is_last or bool(cut))

    def _seen(self, look: Callable[[int], Seen], is_first: Any) -> TimeStep:
        """What all copies show. An exception may not leave a callback, as the compiled program would not survive it:
        it is kept for `check`, and from then on the copies show nothing and the end of each episode."""
        copies = len(self._worlds)
        if self._fault is None and signals.is_overdue():
            self._fault = signals.Stopped()
        observation: dict[str, Any] = {
            name: np.zeros((copies, *entry.spec.shape), dtype(entry.spec)) for name, entry in self._entries.items()
        }
        reward: Any = np.zeros(copies, np.float32)
        is_last: Any = np.ones(copies, bool)
        is_terminal: Any = np.zeros(copies, bool)
        for copy in range(copies if self._fault is None else 0):
            try:
                seen = look(copy)
                for name, entry in self._entries.items():
                    observation[name][copy] = entry.checked(name, seen)
                if not math.isfinite(seen.reward):
                    raise ShownError(f"its reward is {seen.reward}")
                reward[copy], is_last[copy], is_terminal[copy] = seen.reward, seen.is_last, seen.is_terminal
            except (Exception, SystemExit) as error:
                self._fault = self._named(copy, error)
                break
        return TimeStep(observation, reward, is_first, is_last, is_terminal)

    def _named(self, copy: int, error: BaseException) -> WorldError:
        when = f"in step {self._steps[copy]:,} of an episode" if self._steps[copy] else "when an episode began"
        said = str(error) if isinstance(error, ShownError) else f"it failed with {type(error).__name__}: {error}"
        fault = WorldError(f"{self._name}, copy {copy + 1} of {len(self._worlds)}, {when}: {said}")
        fault.__cause__ = error
        return fault

    @property
    def _shapes(self) -> TimeStep:
        copies = len(self._worlds)
        observation: dict[str, Any] = {
            name: jax.ShapeDtypeStruct((copies, *entry.spec.shape), dtype(entry.spec))
            for name, entry in self._entries.items()
        }
        reward: Any = jax.ShapeDtypeStruct((copies,), np.float32)
        flag: Any = jax.ShapeDtypeStruct((copies,), np.bool_)
        return TimeStep(observation, reward, flag, flag, flag)
