"""The built-in worlds as Gymnasium environments, one at a time and as vector environments.

Any `reverie.envs.core.Environment` with a family of tasks becomes one; importing this module registers
`reverie/Fleet-v0`, the fleet simulator, and `reverie/ParkLoadBalance-v0`, Park's original. Training of our own agents
does not come this way: it stays on the device.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jax._src import xla_bridge  # nothing public tells whether JAX works already
from jaxtyping import Array, Key, UInt8

from reverie.envs.core import (
    ActionSpec,
    ArraySpec,
    Discrete,
    Environment,
    State,
    Task,
    TaskFamily,
    TimeStep,
    batch_reset,
    batch_step,
    stack_tasks,
)
from reverie.envs.fleet import picture
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import FleetEnv, FleetState, Reward, View, members
from reverie.envs.fleet.env import Task as FleetTask
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.sources import read_source

Observation = dict[str, np.ndarray]
ACTION_MASK = "action_mask"
"""What `info` calls the mask of actions."""
Info = Callable[[State], dict[str, Array]]
"""What is told of a state beside the observation, by name."""


StepInfo = dict[str, Any]
"""The info of one step."""
Draw = Callable[[Any, Task, Any, Sequence[StepInfo]], UInt8[np.ndarray, "H W 3"]]
"""A picture of a world, its task and its state, and of what the steps of the episode told."""


def no_info(state: State) -> dict[str, Array]:
    """Nothing."""
    return {}


def job_info(state: FleetState) -> dict[str, Array]:
    """What became of the job dispatched last: `server`, `size`, `arrival`, `response`, and `clock`, the time of now.

    Where jobs slow each other down, its response is not known yet, and NaN."""
    return {**state.record._asdict(), "clock": state.clock.coarse}


def draw_fleet(
    world: FleetEnv, task: FleetTask, state: FleetState, told: Sequence[StepInfo]
) -> UInt8[np.ndarray, "H W 3"]:
    """The fleet, the jobs at each server and the one at the door, see `picture.draw`; `told` is `job_info` of each.

    Errors: ValueError where servers share.
    """
    if task.sharing is not None:
        raise ValueError(
            "a picture shows until when each job will be served, which is not known where servers serve several at "
            "once: make this world without a render_mode"
        )
    server, size, arrival, response = (
        np.array([job[name] for job in told], float) for name in ("server", "size", "arrival", "response")
    )
    speed, there = (np.asarray(column) for column in _present(task, state))
    order = [server for server in np.argsort(-np.asarray(task.speed.value)[:, 0], kind="stable") if task.mask[server]]
    door = None if len(told) == world.jobs else float(state.job.size)
    seen = server.astype(int), size, arrival, response, door, world.jobs, speed, there, np.array(order)
    return picture.draw(picture.Scene(float(state.clock.coarse), *seen))


@jax.jit
def _present(task: FleetTask, state: FleetState) -> tuple[Array, Array]:
    """The speed of each server now, and which are there: [N] each."""
    return jax.vmap(schedules.at, (0, None))(task.speed, state.clock), members(task, state.clock)


class ReverieEnv(gymnasium.Env[Any, Any]):
    """A built-in world. Each episode draws its task from `family`, and everything random from the seed of `reset`.

    Arguments: `world`, which is stepped in compiled code; `family`, the distribution over its tasks; `info`, what each
    step tells beside the observation; `draw`, what `render` shows with the `render_mode` rgb_array. Where the
    observation has a mask, reset and step tell it as `action_mask` too.
    Errors: ValueError for an action that the space does not hold or the observation's mask forbids, and for a mode of
    rendering that there is not; ResetNeeded for a step after the end of an episode.
    """

    def __init__(
        self,
        world: Environment,
        family: TaskFamily,
        info: Info = no_info,
        draw: Draw | None = None,
        render_mode: str | None = None,
    ):
        self.metadata = _metadata(draw)
        self.render_mode, self._draw, self._past = _checked_mode(render_mode, draw), draw, []
        self.observation_space = observation_space(world.observation_spec)
        self.action_space = action_space(world.action_spec)
        self._world, self._family, self._info = world, family, info
        self._mask, self._dtypes = _mask_name(world), _dtypes(world)
        self._timestep: TimeStep | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a task and open an episode; without a seed the stream of tasks and episodes goes on."""
        _refuse_forks()
        super().reset(seed=seed)
        self._task = self._family(self.np_random)
        self._state, self._timestep, self._key = _reset(self._world, self._task, _key(self.np_random))
        self._past = []
        return _as_numpy(self._timestep, self._dtypes), self._told({})

    def action_masks(self) -> np.ndarray:
        """Which actions are allowed now, [A], as sb3-contrib asks for it. All are where the world has no mask.

        Errors: AttributeError, as of an environment without the method, where actions are not discrete.
        """
        if self._timestep is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before asking for masks")
        return _masks(self._timestep, self._mask, self.action_space)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act once: observation, reward, terminated, truncated, info."""
        if self._timestep is None or self._timestep.is_last:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before the next step()")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in the action space {self.action_space}")
        if self._mask and not np.asarray(self._timestep.observation[self._mask])[action]:
            raise ValueError(f"action {action!r} is forbidden by the observation's entry {self._mask!r}")
        self._state, self._timestep, info, self._key = _step(
            self._world, self._info, self._task, self._state, _as_jax(action, self._world), self._key
        )
        terminal, last = bool(self._timestep.is_terminal), bool(self._timestep.is_last)
        info = self._told({name: value.item() for name, value in info.items()})
        if self.render_mode:
            self._past.append(info)
        observation = _as_numpy(self._timestep, self._dtypes)
        return observation, float(self._timestep.reward), terminal, last and not terminal, info

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """What has become of the episode, as pixels; None, with a warning, without a `render_mode`."""
        if self._timestep is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before render()")
        if self._draw is None or self.render_mode is None:
            return _warn_no_mode()
        return self._draw(self._world, self._task, self._state, self._past)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {ACTION_MASK: self.action_masks()} if self._mask else info


class ReverieVectorEnv(VectorEnv):
    """B built-in worlds of different tasks, stepped together in one compiled call.

    Autoreset is NEXT_STEP: a step after the end of an episode ignores that row's action, draws a new task for it from
    `family` and returns the opening observation with reward 0.

    Arguments: as for `ReverieEnv`, and `num_envs`, B. `render` gives a picture of each.
    Errors: ValueError for actions of another shape, that the space does not hold or that a mask forbids, and for fewer
    than one environment; ResetNeeded before the first reset.
    """

    def __init__(
        self,
        world: Environment,
        family: TaskFamily,
        num_envs: int,
        info: Info = no_info,
        draw: Draw | None = None,
        render_mode: str | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.metadata = _metadata(draw) | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode, self._draw, self._past = _checked_mode(render_mode, draw), draw, []
        self.num_envs = num_envs
        self.single_observation_space = observation_space(world.observation_spec)
        self.single_action_space = action_space(world.action_spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._world, self._family, self._info = world, family, info
        self._mask, self._dtypes = _mask_name(world), _dtypes(world)
        self._timesteps: TimeStep | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw B tasks and open an episode of each; without a seed the stream of tasks and episodes goes on."""
        _refuse_forks()
        super().reset(seed=seed)
        self._rows = [self._family(self.np_random) for _ in range(self.num_envs)]
        self._tasks = stack_tasks(self._rows)
        self._states, self._timesteps, self._key = _batch_reset(self._world, self._tasks, _key(self.np_random))
        self._past = [[] for _ in range(self.num_envs)]
        return _as_numpy(self._timesteps, self._dtypes), self._told({})

    def action_masks(self) -> np.ndarray:
        """Which actions are allowed now, [B, A]."""
        if self._timesteps is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before asking for masks")
        return _masks(self._timesteps, self._mask, self.single_action_space)

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act once in each world: observations, rewards [B], terminated [B], truncated [B], infos."""
        if self._timesteps is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before the first step()")
        begins = np.asarray(self._timesteps.is_last)
        self._check(np.asarray(actions), self._timesteps)
        if begins.any():
            for row in np.flatnonzero(begins):
                self._rows[row] = self._family(self.np_random)
            self._tasks = stack_tasks(self._rows)
        self._states, self._timesteps, info, self._key = _batch_step(
            self._world,
            self._info,
            self._tasks,
            self._states,
            self._timesteps,
            _as_jax(actions, self._world),
            self._key,
        )
        reward = np.array(self._timesteps.reward, np.float64)
        terminal, last = np.array(self._timesteps.is_terminal), np.array(self._timesteps.is_last)
        infos: dict[str, Any] = {}
        for name, values in info.items():
            infos |= {name: np.array(values), f"_{name}": ~begins}
        if self.render_mode:
            for row, past in enumerate(self._past):
                past.append({name: infos[name][row].item() for name in info})
                if begins[row]:
                    past.clear()
        observation = _as_numpy(self._timesteps, self._dtypes)
        return observation, reward, terminal, last & ~terminal, self._told(infos)

    def render(self) -> tuple[UInt8[np.ndarray, "H W 3"], ...] | None:
        """A picture of each episode, [B]; None, with a warning, without a `render_mode`."""
        if self._timesteps is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before render()")
        if self._draw is None or self.render_mode is None:
            return _warn_no_mode()
        states = [jax.tree.map(lambda leaf, row=row: leaf[row], self._states) for row in range(self.num_envs)]
        return tuple(map(partial(self._draw, self._world), self._rows, states, self._past))

    def _told(self, infos: dict[str, Any]) -> dict[str, Any]:
        if self._mask:
            infos |= {ACTION_MASK: self.action_masks(), f"_{ACTION_MASK}": np.ones(self.num_envs, bool)}
        return infos

    def _check(self, actions: np.ndarray, timesteps: TimeStep) -> None:
        if not self.action_space.contains(actions):
            raise ValueError(f"actions {actions!r} are not in the action space {self.action_space}")
        if self._mask:
            allowed = np.asarray(timesteps.observation[self._mask])[np.arange(self.num_envs), actions]
            wrong = np.flatnonzero(~(allowed | np.asarray(timesteps.is_last))).tolist()
            if wrong:
                raise ValueError(
                    f"the actions {actions[wrong].tolist()} of the environments {wrong} are forbidden by the "
                    f"observation's entry {self._mask!r}"
                )


_FRAMES_PER_SECOND = 10
"""Jobs, that is: slow enough to be followed."""


def _metadata(draw: Draw | None) -> dict[str, Any]:
    return {"render_modes": ["rgb_array"] if draw else [], "render_fps": _FRAMES_PER_SECOND}


def _checked_mode(mode: str | None, draw: Draw | None) -> str | None:
    if mode is not None and (draw is None or mode != "rgb_array"):
        there_is = "there is rgb_array, which gymnasium.wrappers.HumanRendering shows in a window"
        raise ValueError(f"render_mode {mode!r}: {there_is if draw else 'this world has no pictures'}")
    return mode


def _warn_no_mode() -> None:
    gymnasium.logger.warn("render() was called without a mode: make the environment with render_mode='rgb_array'")


def observation_space(spec: Mapping[str, ArraySpec]) -> spaces.Space:
    """The Gymnasium space of observations: numbers are float32 without bounds, masks bits, images bytes."""
    return spaces.Dict({name: _entry_space(array) for name, array in spec.items()})


def _entry_space(array: ArraySpec) -> spaces.Space:
    if array.kind == "image":
        return spaces.Box(0, 255, array.shape, np.uint8)
    if array.kind == "mask":
        return spaces.MultiBinary(array.shape)
    if array.kind == "task" and array.categories is not None:
        return spaces.Discrete(array.categories)
    if array.categories is not None:
        return spaces.MultiDiscrete(np.full(array.shape, array.categories))
    return spaces.Box(-np.inf, np.inf, array.shape, np.float32)


def action_space(spec: ActionSpec) -> spaces.Space:
    """The Gymnasium space of actions."""
    if isinstance(spec, Discrete):
        return spaces.Discrete(spec.n)
    return spaces.Box(-1.0, 1.0, (spec.size,), np.float32)


# --- names -----------------------------------------------------------------------------------------------------------


def make_fleet(
    family: str | TaskFamily = "hard",
    servers: int = 10,
    jobs: int = 1000,
    view: View = "full",
    reward: Reward = "admission",
    load: float | None = None,
    deadline: float | None = None,
    render_mode: str | None = None,
    **own: Any,
) -> ReverieEnv:
    """The fleet simulator, `reverie/Fleet-v0`: each step dispatches one job.

    Arguments: `family`, a name (see `reverie.envs.fleet.families`) or a function that draws tasks of `servers` rows;
    `jobs`, `view`, `reward` and `deadline`, see `FleetEnv`; `load`, at which the tasks are offered in place of theirs;
    `render_mode`, rgb_array for pictures; `own`, your servers and jobs in place of the family's: `speeds` (a list of
    numbers), `fleet` (a file), `arrivals`, `sizes` (see `Own`) and `trace` (a file or `conversation-like`, at load 0.8
    unless given).
    """
    draw, servers = _fleets(family, servers, load, jobs, **own)
    return ReverieEnv(FleetEnv(servers, jobs, view, reward, deadline), draw, job_info, draw_fleet, render_mode)


def make_fleet_vector(
    num_envs: int,
    family: str | TaskFamily = "hard",
    servers: int = 10,
    jobs: int = 1000,
    view: View = "full",
    reward: Reward = "admission",
    load: float | None = None,
    deadline: float | None = None,
    render_mode: str | None = None,
    **own: Any,
) -> ReverieVectorEnv:
    """`num_envs` fleets in one compiled step; the other arguments are those of `make_fleet`."""
    draw, servers = _fleets(family, servers, load, jobs, **own)
    return ReverieVectorEnv(
        FleetEnv(servers, jobs, view, reward, deadline), draw, num_envs, job_info, draw_fleet, render_mode
    )


def _fleets(
    family: str | TaskFamily,
    servers: int,
    load: float | None,
    jobs: int,
    *,
    speeds: Sequence[float] | None = None,
    fleet: str | Path | None = None,
    arrivals: str | None = None,
    sizes: str | None = None,
    trace: str | None = None,
) -> tuple[TaskFamily, int]:
    """The tasks, and how many servers they have."""
    mine = Own(
        None if speeds is None else ",".join(map(str, speeds)), None if fleet is None else Path(fleet), arrivals, sizes
    )
    own_servers = mine.servers()
    servers = servers if own_servers is None else len(own_servers.member)
    if trace is not None:
        return mine.play(read_source(trace), 0.8 if load is None else load, jobs), servers
    return mine.tasks(family, load, jobs), servers


def _register() -> None:
    here = __name__
    gymnasium.register("reverie/Fleet-v0", f"{here}:make_fleet", vector_entry_point=f"{here}:make_fleet_vector")
    gymnasium.register("reverie/ParkLoadBalance-v0", "reverie.envs.fleet.park:ParkLoadBalance")


_register()


_working: set[int] = set()
"""Processes that were forked from after JAX had begun to work in them; their children find this here."""


def _before_fork() -> None:
    if xla_bridge.backends_are_initialized():
        _working.add(os.getpid())


os.register_at_fork(before=_before_fork)


def _refuse_forks() -> None:
    """Errors: RuntimeError in a process that was forked after JAX had begun to work, where it waits for ever."""
    if _working and os.getpid() not in _working:
        raise RuntimeError(
            "this process was forked from one in which JAX had begun to work, as it does where a world of Reverie is "
            "opened, and it would wait for ever here: start processes anew, as by AsyncVectorEnv(..., "
            "context='spawn'), or use gymnasium.make_vec, which steps all copies in one compiled program"
        )


# --- compiled steps, shared by all instances of equal worlds ---------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def _reset(world: Environment, task: Task, key: Key[Array, ""]) -> tuple[State, TimeStep, Key[Array, ""]]:
    key, now = jax.random.split(key)
    return *world.reset(task, now), key


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    world: Environment, info: Info, task: Task, state: State, action: Array, key: Key[Array, ""]
) -> tuple[State, TimeStep, dict[str, Array], Key[Array, ""]]:
    key, now = jax.random.split(key)
    state, timestep = world.step(task, state, action, now)
    return state, timestep, info(state), key


@partial(jax.jit, static_argnums=0)
def _batch_reset(world: Environment, tasks: Task, key: Key[Array, ""]) -> tuple[State, TimeStep, Key[Array, ""]]:
    key, now = jax.random.split(key)
    return *batch_reset(world, tasks, now), key


@partial(jax.jit, static_argnums=(0, 1))
def _batch_step(
    world: Environment,
    info: Info,
    tasks: Task,
    states: State,
    timesteps: TimeStep,
    actions: Array,
    key: Key[Array, ""],
) -> tuple[State, TimeStep, dict[str, Array], Key[Array, ""]]:
    key, now = jax.random.split(key)
    states, timesteps = batch_step(world, tasks, states, timesteps, actions, now)
    return states, timesteps, info(states), key


# --- between NumPy and JAX -------------------------------------------------------------------------------------------


def _key(rng: np.random.Generator) -> Key[Array, ""]:
    return jax.random.key(int(rng.integers(2**31)))


def _dtypes(world: Environment) -> dict[str, np.dtype]:
    return {name: np.dtype(_entry_space(array).dtype) for name, array in world.observation_spec.items()}


def _as_numpy(timestep: TimeStep, dtypes: dict[str, np.dtype]) -> Observation:
    # Copies, because callers keep and change what they are given.
    return {name: np.array(value, dtype=dtypes[name]) for name, value in timestep.observation.items()}


def _as_jax(action: Any, world: Environment) -> Array:
    return jnp.asarray(action, jnp.int32 if isinstance(world.action_spec, Discrete) else jnp.float32)


def _masks(timestep: TimeStep, name: str | None, space: spaces.Space) -> np.ndarray:
    """Which actions of a space are allowed, in the last axis, as bytes: Gymnasium's spaces ask for these."""
    if not isinstance(space, spaces.Discrete):
        raise AttributeError(f"only discrete actions have masks; here are {space}")
    if name is None:
        return np.ones((*timestep.reward.shape, int(space.n)), np.int8)
    return np.array(timestep.observation[name], np.int8)


def _mask_name(world: Environment) -> str | None:
    return next((name for name, array in world.observation_spec.items() if array.kind == "mask"), None)
