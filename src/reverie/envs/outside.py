"""Worlds that live outside JAX: Gymnasium, POPGym, bsuite, the DeepMind Control Suite and Memory Maze, by name.

`open_outside` makes B copies of one a `BatchEnvironment`, which compiled programs step as they step the built-in
worlds: an ordered callback steps the copies on the host, one after the other. Their packages are extras of this one and
are imported when a name asks for them.
"""

import difflib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax.experimental import io_callback
from jaxtyping import Array, Float, Key

from reverie import signals
from reverie.envs.core import ActionSpec, ArraySpec, Continuous, Discrete, State, Task, TimeStep

LIMIT = 10_000
"""Steps after which an episode that has not ended is cut off."""
MASK, MASKS = "mask", ("mask", "action_mask")
"""What we call the entry of an observation that says which actions are allowed, and what others do."""
TRIED = 8
"""Steps that a world is tried for before it is trained in."""
MAX_ACTIONS = 4096
"""The largest product of separate discrete actions that is offered as one."""
MIN_SIDE = 32
"""Bytes [H, W, C] of a smaller height or width are read as numbers: they are symbols, not a picture."""


class WorldError(ValueError):
    """A world outside did what no world may do. The message names it, when that was, and what it said itself."""


class Seen(NamedTuple):
    """What one world says after a step, in its own terms."""

    observation: Any
    reward: float = 0.0
    is_last: bool = False
    is_terminal: bool = False
    mask: Any = None
    """Which actions are allowed, where the world says so beside its observation."""


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

    def reset(self, seed: int | None = None) -> Seen:
        """Open an episode. A seed starts the world's own random numbers anew; without one they go on."""
        ...

    def step(self, action: Any) -> Seen: ...


class FromGymnasium:
    """A Gymnasium environment. One that has the method `action_masks()` of sb3-contrib is asked for its masks."""

    def __init__(self, env: gymnasium.Env):
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._env = env
        self.masks = env.has_wrapper_attr("action_masks")

    def reset(self, seed: int | None = None) -> Seen:
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
        return _dm_space(self._env.observation_spec())

    @property
    def action_space(self) -> spaces.Space:
        return _dm_space(self._env.action_spec())

    def reset(self, seed: int | None = None) -> Seen:
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

    Arguments: `worlds`, the copies; `repeat`, how often each action is done in a row, while the episode lasts, for the
    sum of the rewards; `limit`, the steps after which an episode that has not ended is cut off; `name`, what errors
    call the world.
    Errors: ValueError for observations or actions that have no counterpart here, and for no copy or no step at all.
    """

    def __init__(self, worlds: Sequence[OutsideWorld], repeat: int = 1, limit: int = LIMIT, name: str = "the world"):
        if not worlds or min(repeat, limit) < 1:
            raise ValueError(
                f"at least 1 copy of a world, 1 step for an action and 1 for an episode, got {len(worlds)}, {repeat} "
                f"and {limit}"
            )
        self._worlds, self._repeat, self._limit, self._name = tuple(worlds), repeat, limit, name
        self._begun, self._seed = False, None
        self._steps = np.zeros(len(worlds), int)  # of the episode, in each copy
        self._was_cut = False
        self._fault: BaseException | None = None
        # What draws pictures is used from the thread that it was made in; callbacks come from any.
        self._thread = ThreadPoolExecutor(1, "outside")
        self._action_spec, self._in_world = _actions(self._host(lambda: worlds[0].action_space))
        self._entries = _entries(self._host(lambda: worlds[0].observation_space), self._action_spec)
        if worlds[0].masks and MASK not in self._entries and isinstance(self._action_spec, Discrete):
            self._entries[MASK] = _mask((self._action_spec.n,), lambda seen: seen.mask)

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        return {name: entry.spec for name, entry in self._entries.items()}

    @property
    def action_spec(self) -> ActionSpec:
        return self._action_spec

    @property
    def tasks(self) -> Float[Array, " B"]:
        """Stands for the B tasks of `batch_reset` and `batch_step`: there are no variants."""
        return jnp.zeros((len(self._worlds),))

    def batch_reset(self, tasks: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]:
        self._check(tasks)
        return (), io_callback(partial(self._host, self._open), self._shapes, jax.random.bits(key), ordered=True)

    def batch_step(
        self, tasks: Task, states: State, timesteps: TimeStep, actions: Array, key: Key[Array, ""]
    ) -> tuple[State, TimeStep]:
        self._check(tasks)
        step = partial(self._host, self._step)
        return (), io_callback(step, self._shapes, actions, timesteps.is_last, ordered=True)

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
        timestep = self._host(self._open, 0)
        for _ in range(steps):
            self.check()
            if isinstance(self._action_spec, Discrete):
                free = timestep.observation.get(MASK, np.ones((len(self._worlds), self._action_spec.n), bool))
                actions = np.array([rng.choice(np.flatnonzero(row)) for row in free])
            else:
                actions = rng.uniform(-1, 1, (len(self._worlds), self._action_spec.size)).astype(np.float32)
            timestep = self._host(self._step, actions, timestep.is_last)
        self.check()

    def _check(self, tasks: Task) -> None:
        if (batch := jax.tree.leaves(tasks)[0].shape[0]) != len(self._worlds):
            raise ValueError(f"{len(self._worlds)} copies of a world were opened, and {batch} are asked for")

    # --- on the host ---

    def _host[R](self, function: Callable[..., R], *arguments: Any) -> R:
        return self._thread.submit(function, *arguments).result()

    def _open(self, seed: Any) -> TimeStep:
        seeds = np.random.SeedSequence(int(seed)).generate_state(len(self._worlds))
        self._begun, self._fault = True, None
        return self._seen(lambda copy: self._reset(copy, int(seeds[copy])), np.ones(len(self._worlds), bool))

    def _step(self, actions: Any, closed: Any) -> TimeStep:
        actions, closed = np.asarray(actions), np.asarray(closed)
        if not self._begun:
            if self._seed is None or not closed.all():
                raise RuntimeError("these episodes were begun in another process: end them, and call `go_on`")
            return self._open(self._seed)
        return self._seen(lambda copy: self._reset(copy) if closed[copy] else self._act(copy, actions[copy]), closed)

    def _reset(self, copy: int, seed: int | None = None) -> Seen:
        self._steps[copy] = 0
        return self._worlds[copy].reset(seed)

    def _act(self, copy: int, action: Any) -> Seen:
        world, done = self._worlds[copy], self._in_world(action)
        self._steps[copy] += 1
        seen, reward = world.step(done), 0.0
        for _ in range(self._repeat - 1):
            if seen.is_last:
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
            name: np.zeros((copies, *entry.spec.shape), _dtype(entry.spec)) for name, entry in self._entries.items()
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
                    raise _ShownError(f"its reward is {seen.reward}")
                reward[copy], is_last[copy], is_terminal[copy] = seen.reward, seen.is_last, seen.is_terminal
            except Exception as error:
                self._fault = self._named(copy, error)
                break
        return TimeStep(observation, reward, is_first, is_last, is_terminal)

    def _named(self, copy: int, error: Exception) -> WorldError:
        when = f"in step {self._steps[copy]:,} of an episode" if self._steps[copy] else "when an episode began"
        said = str(error) if isinstance(error, _ShownError) else f"it failed with {type(error).__name__}: {error}"
        fault = WorldError(f"{self._name}, copy {copy + 1} of {len(self._worlds)}, {when}: {said}")
        fault.__cause__ = error
        return fault

    @property
    def _shapes(self) -> TimeStep:
        copies = len(self._worlds)
        observation: dict[str, Any] = {
            name: jax.ShapeDtypeStruct((copies, *entry.spec.shape), _dtype(entry.spec))
            for name, entry in self._entries.items()
        }
        reward: Any = jax.ShapeDtypeStruct((copies,), np.float32)
        flag: Any = jax.ShapeDtypeStruct((copies,), np.bool_)
        return TimeStep(observation, reward, flag, flag, flag)


# --- observations and actions ----------------------------------------------------------------------------------------


class _ShownError(Exception):
    """What a world shows is not what its spaces say."""


class _Entry(NamedTuple):
    """One entry of an observation, and how it is read from what the world shows."""

    spec: ArraySpec
    read: Callable[[Seen], Any]

    def checked(self, name: str, seen: Seen) -> np.ndarray:
        """Errors: _ShownError for another shape than the spec's, what float32 cannot hold, and unknown categories."""
        value = np.asarray(self.read(seen))
        if value.shape != self.spec.shape:
            raise _ShownError(f"its observation {name!r} has shape {value.shape}, and its space says {self.spec.shape}")
        if self.spec.categories is not None:
            wrong = (value < 0) | (value >= self.spec.categories)
        elif value.dtype.kind == "f":
            wrong = ~(np.abs(value) <= np.finfo(np.float32).max)
        else:
            return value
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise _ShownError(f"its observation {name!r} is {value.ravel()[at]} at place {at}")
        return value


def _entries(space: spaces.Space, actions: ActionSpec) -> dict[str, _Entry]:
    """What an observation consists of: numbers, pictures, integers of which all of an entry have one range, and the
    mask of actions, by the usual names."""
    found = _parts(space)
    if given := [name for name in MASKS if name in found and isinstance(space, spaces.Dict)]:
        spec, read = found.pop(given[0])
        if len(given) > 1 or not isinstance(actions, Discrete) or spec.shape != (actions.n,):
            raise ValueError(
                f"an observation's entry {given[0]!r} says which actions are allowed, one bit for each of them; "
                f"here are {actions} and {', '.join(given)} of shape {spec.shape}: wrap the world and rename it"
            )
        found[MASK] = _mask(spec.shape, read)
    return found


def _mask(shape: tuple[int, ...], read: Callable[[Seen], Any]) -> _Entry:
    def allowed(seen: Seen) -> np.ndarray:
        mask = np.asarray(read(seen)).astype(bool)
        if not mask.any():
            if seen.is_last:  # nothing is chosen any more
                return np.ones_like(mask)
            raise _ShownError("its mask allows no action")
        return mask

    return _Entry(ArraySpec(shape, "mask"), allowed)


def _parts(space: spaces.Space, path: tuple[str, ...] = ()) -> dict[str, _Entry]:
    if isinstance(space, spaces.Dict) or (isinstance(space, spaces.Tuple) and _categories(space) is None):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {
            name: _Entry(
                entry.spec,
                lambda seen, key=key, read=entry.read: read(seen._replace(observation=seen.observation[key])),
            )
            for key, part in parts
            for name, entry in _parts(part, (*path, str(key))).items()
        }
    name = "/".join(path)
    if (found := _categories(space)) is not None:
        counts, start = found
        spec = ArraySpec(counts.shape, categories=int(counts.max()))
        return {name or "vector": _Entry(spec, lambda seen: _flat(seen.observation) - start)}
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3 and min(space.shape[:2]) >= MIN_SIDE:
            return {name or "image": _Entry(ArraySpec(space.shape, "image"), lambda seen: seen.observation)}
        return {name or "vector": _Entry(ArraySpec((math.prod(space.shape),)), lambda seen: np.ravel(seen.observation))}
    raise ValueError(
        f"observations of the space {space} have no counterpart here: there are Box, Discrete, MultiDiscrete, "
        "MultiBinary, and Dict and Tuple of them"
    )


def _categories(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """How many values each integer of a space has, and the least of them; None where there is more than integers."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel(), space.start.ravel()
    if isinstance(space, spaces.MultiBinary):
        size = math.prod(space.shape)
        return np.full(size, 2), np.zeros(size, int)
    if isinstance(space, spaces.Tuple) and space.spaces:
        found = [each for part in space.spaces if (each := _categories(part)) is not None]
        if len(found) == len(space.spaces):
            counts, starts = zip(*found, strict=True)
            return np.concatenate(counts), np.concatenate(starts)
    return None


def _flat(seen: Any) -> np.ndarray:
    """The integers of an observation in a row, in the order of `_categories`."""
    return np.concatenate([_flat(part) for part in seen]) if isinstance(seen, tuple) else np.ravel(seen)


def _actions(space: spaces.Space) -> tuple[ActionSpec, Callable[[Any], Any]]:
    """What the agent chooses from, and what the world is told of it."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: int(action + space.start)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        found = _categories(space)
        assert found is not None
        counts, start = found
        if (product := math.prod(counts.tolist())) > MAX_ACTIONS:
            raise ValueError(
                f"separate actions are offered as one, up to {MAX_ACTIONS:,} in all; {space} has {product:,}"
            )

        def separate(action: Any) -> np.ndarray:
            return (np.stack(np.unravel_index(action, counts)) + start).reshape(space.shape).astype(space.dtype)

        return Discrete(product), separate
    if isinstance(space, spaces.Box):
        if not space.is_bounded():
            raise ValueError(f"the actions {space} are not bounded: wrap the world so that they are")
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        middle, reach = (low + high) / 2, (high - low) / 2

        def scaled(action: np.ndarray) -> np.ndarray:
            return (middle + reach * np.clip(action.reshape(space.shape), -1, 1)).astype(space.dtype)

        return Continuous(math.prod(space.shape)), scaled
    raise ValueError(
        f"actions of the space {space} have no counterpart here: there are Box, Discrete, MultiDiscrete and MultiBinary"
    )


def _dtype(spec: ArraySpec) -> type[np.generic]:
    if spec.kind == "mask":
        return np.bool_
    if spec.kind == "image":
        return np.uint8
    return np.float32 if spec.categories is None else np.int32


def _dm_space(spec: Any) -> spaces.Space:
    """Gymnasium's space for a specification of dm_env."""
    specs = import_module("dm_env.specs")
    if isinstance(spec, Mapping):
        return spaces.Dict({name: _dm_space(part) for name, part in spec.items()})
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(spec.num_values)
    dtype = spec.dtype if spec.dtype == np.uint8 or np.issubdtype(spec.dtype, np.floating) else np.float64
    if isinstance(spec, specs.BoundedArray):
        low, high = (np.broadcast_to(bound, spec.shape).astype(dtype) for bound in (spec.minimum, spec.maximum))
        return spaces.Box(low, high, spec.shape, dtype)
    return spaces.Box(-np.inf, np.inf, spec.shape, dtype)


# --- names -----------------------------------------------------------------------------------------------------------


def open_outside(
    name: str, copies: int, repeat: int = 1, limit: int = LIMIT, arguments: Mapping[str, Any] = MappingProxyType({})
) -> OutsideWorlds:
    """Copies (B) of the world of that name, such as `gym:CartPole-v1`, `popgym:RepeatPreviousEasy`,
    `bsuite:memory_len/7`, `dmc:walker_walk` or `memory_maze:9x9`.

    Arguments: `repeat` and `limit`, see `OutsideWorlds`; `arguments`, what a Gymnasium world is made with.

    Raises:
        WorldError: one copy, tried with Gymnasium's own checks, broke the rules.
        ValueError: there is no such world, it cannot be presented as one of ours, or it takes no arguments.
        ModuleNotFoundError: its package is not installed.
    """
    source, _, world = name.partition(":")
    if source not in SOURCES or not world:
        known = ", ".join(f"{each}:NAME" for each in SOURCES)
        raise ValueError(f"a world outside is called {known} (such as gym:CartPole-v1), got {name!r}")
    if arguments and source != "gym":
        raise ValueError(f"arguments are for worlds of Gymnasium (gym:NAME), and {name} was given {dict(arguments)}")
    make = partial(_gymnasium, arguments=arguments) if source == "gym" else SOURCES[source]
    try:
        worlds = OutsideWorlds([make(world) for _ in range(copies)], repeat, limit, name)
        if source == "gym":  # one copy more, of which Gymnasium checks what it says
            OutsideWorlds([FromGymnasium(gymnasium.make(world, **arguments))], name=name).try_out()
        return worlds
    except ModuleNotFoundError as error:
        if source == "gym":  # which of the many packages it is, the error says
            raise ModuleNotFoundError(f"{name} cannot be made: {error}", name=error.name) from error
        extra = source.replace("_", "-")
        raise ModuleNotFoundError(
            f"{name} needs packages that are not installed ({error}): pip install 'reverie[{extra}]'", name=error.name
        ) from error


def _import_from_here(module: str) -> None:
    """Import a module that may lie in the working directory, where the command `reverie` would not look."""
    sys.path.append(os.getcwd())
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"there is no module {module!r}, neither installed nor in {os.getcwd()}") from error
    finally:
        sys.path.remove(os.getcwd())


def _gymnasium(name: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> OutsideWorld:
    module, named, _ = name.partition(":")
    if named:
        _import_from_here(module)
    try:
        return FromGymnasium(gymnasium.make(name, disable_env_checker=True, **arguments))
    except gymnasium.error.UnregisteredEnv as error:
        raise _unknown("gym", name, gymnasium.registry) from error
    except gymnasium.error.Error as error:  # an outdated version, a missing package
        raise ValueError(f"gym:{name} cannot be made: {error}") from error
    except TypeError as error:  # an argument that it does not take
        raise ValueError(f"gym:{name} cannot be made with the arguments {dict(arguments)}: {error}") from error


def _popgym(name: str) -> OutsideWorld:
    import_module("popgym")  # registers its environments
    known = {each.removeprefix("popgym-").removesuffix("-v0"): each for each in gymnasium.registry if "popgym-" in each}
    if name not in known:
        raise _unknown("popgym", name, known)
    return FromGymnasium(gymnasium.make(known[name], disable_env_checker=True))


def _bsuite(name: str) -> OutsideWorld:
    settings = import_module("bsuite.sweep").SETTINGS
    if name not in settings:
        raise _unknown("bsuite", name, settings)
    makers = import_module("bsuite.bsuite").EXPERIMENT_NAME_TO_ENVIRONMENT
    load = cast(Callable[..., Any], makers[name.partition("/")[0]])  # each takes other arguments
    seeded = "seed" in signature(load).parameters  # a few take none: all but `deep_sea_stochastic` draw nothing
    return FromDmEnv(lambda seed: load(**(settings[name] | {"seed": seed} if seeded else settings[name])))


def _dmc(name: str) -> OutsideWorld:
    _draw_without_display()
    suite = import_module("dm_control.suite")
    known = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    if name not in known:
        raise _unknown("dmc", name, known)
    return FromDmEnv(lambda seed: suite.load(*known[name], task_kwargs={"random": seed}))


def _memory_maze(name: str) -> OutsideWorld:
    _draw_without_display()
    tasks = import_module("memory_maze.tasks")
    known = ("9x9", "11x11", "13x13", "15x15")
    if name not in known:
        raise _unknown("memory_maze", name, known)
    make = getattr(tasks, f"memory_maze_{name}")
    return FromDmEnv(lambda seed: make(image_only_obs=True, seed=seed))


def _draw_without_display() -> None:
    """Where there is no display, dm_control has to be told so before it is imported: it would look for one."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


SOURCES: Mapping[str, Callable[[str], OutsideWorld]] = MappingProxyType(
    {"gym": _gymnasium, "popgym": _popgym, "bsuite": _bsuite, "dmc": _dmc, "memory_maze": _memory_maze}
)
"""By the first part of a name: what makes a world of the rest of it."""


def _unknown(source: str, name: str, known: Iterable[str]) -> ValueError:
    """All names where they are few, else those nearest to the one that was given."""
    names = sorted(known)
    listed = names if len(names) <= 100 else difflib.get_close_matches(name, names, n=10, cutoff=0.0)
    told = "there are" if listed is names else f"of {len(names)} the nearest are"
    return ValueError(f"there is no world {source}:{name}; {told} {', '.join(listed)}")
