"""Worlds outside of many tasks: which there are is known by name, before one is made.

A task is some numbers that a world is told when an episode begins (`velocity:half_cheetah`), or the number of one of
several worlds with the same observations and actions, which observations say (`metaworld:MT10`, `atari:26`, or any that
are joined by +, such as `atari:Pong+Boxing`).
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Shaped

from reverie.envs.core import ArraySpec
from reverie.envs.outside.spaces import Seen

Tasks = Shaped[np.ndarray, "_ ..."]


class ManyTasks(NamedTuple):
    """What there is to learn and to be judged on."""

    tasks: Tasks
    """Those to learn from: [K, F] of factors, or the numbers [K] of named tasks."""
    tests: Mapping[str, Tasks] = MappingProxyType({})
    """As those of `envs/games.py`."""
    factors: tuple[str, ...] = ()
    """What the numbers (F) of a task are called."""
    names: tuple[str, ...] = ()
    """Of tasks that are other worlds."""
    told: bool = False
    """Whether observations have an entry with the factors, or with the number for agents that do not read which task it
    is otherwise: for oracles, and for agents without a world model."""

    @property
    def shown(self) -> Mapping[str, ArraySpec]:
        """What observations say of the task."""
        if self.factors:
            return {"factors": ArraySpec((len(self.factors),))} if self.told else {}
        if not self.names:
            return {}
        number = {"number": ArraySpec((1,), categories=len(self.names))} if self.told else {}
        return {"task": ArraySpec((), "task", len(self.names)), **number}

    def say(self, tasks: Array) -> dict[str, Array]:
        """The same entries, of these tasks [B, ...]."""
        values = {"factors": tasks, "task": tasks, "number": tasks[..., None]}
        return {name: values[name] for name in self.shown}


ONE = ManyTasks(np.zeros(1, np.float32))
"""Of a world that is always the same: no factors, no names."""

_SLOW, _FAST = np.linspace(0.0, 0.5, 6), np.linspace(3.0, 3.5, 6)
VELOCITIES = ManyTasks(
    tasks=np.concatenate([_SLOW, _FAST]).astype(np.float32)[:, None],
    tests=MappingProxyType(
        {
            "interpolated": np.linspace(0.25, 3.25, 7, dtype=np.float32)[:, None],
            "extrapolated": np.array([[3.75], [4.0]], np.float32),
        }
    ),
    factors=("velocity",),
)
"""Those of LDM (Lee & Chung 2021): learned are [0, .5] and [3, 3.5], here a grid of each, judged are .25, .75 .. 3.25.
What lies outside is ours."""

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
"""Meta-World's (Yu et al. 2019)."""
ATARI_26 = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand"),
    *("CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull"),
    *("KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown"),
)
"""The games of Atari-100k (Kaiser et al. 2020)."""
SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType({"metaworld:MT10": MT10, "atari:26": ATARI_26})
TOLD = "/told"
NAMED = ("atari", "metaworld")
"""Sources whose worlds can be played together."""


def tasks_of(name: str) -> ManyTasks:
    """The tasks of the world outside of that name; those of NAME/told are told."""
    if name.endswith(TOLD):
        return tasks_of(name.removesuffix(TOLD))._replace(told=True)
    if name == "velocity:half_cheetah":
        return VELOCITIES
    source, _, joined = name.partition(":")
    names = SUITES.get(name) or (tuple(joined.split("+")) if source in NAMED and "+" in joined else ())
    return ManyTasks(np.arange(len(names), dtype=np.int32), names=names) if names else ONE


class Together:
    """Several worlds in the place of one: the task of an episode is the number of the one that is played. Each is made
    when it is first played.

    Errors: ValueError where their observations or actions differ.
    """

    masks = False

    def __init__(self, make: Callable[[str], Any], names: Sequence[str]):
        """`make` makes an `OutsideWorld` without masks."""
        if len(set(names)) < len(names):
            raise ValueError(f"worlds that are played together have different names, got {', '.join(names)}")
        self._make, self._names = make, tuple(names)
        self._made: dict[int, Any] = {}
        self._seeds: dict[int, int] = {}
        self._now: Any = None

    @property
    def observation_space(self) -> spaces.Space:
        return self._one.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self._one.action_space

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        if seed is not None:
            self._seeds = dict(enumerate(np.random.SeedSequence(seed).generate_state(len(self._names)).tolist()))
        self._now = self._world(int(task))
        return self._now.reset(self._seeds.pop(int(task), None))

    def step(self, action: Any) -> Seen:
        return self._now.step(action)

    @property
    def _one(self) -> Any:
        """Any of them: they are alike."""
        return next(iter(self._made.values())) if self._made else self._world(0)

    def _world(self, number: int) -> Any:
        if number not in self._made:
            made = self._make(self._names[number])
            for other, of in self._made.items():
                alike = made.observation_space.shape == of.observation_space.shape
                if not alike or made.action_space != of.action_space:
                    raise ValueError(
                        f"{self._names[number]} cannot be played together with {self._names[other]}: it shows "
                        f"{made.observation_space} and takes {made.action_space}, and {self._names[other]} "
                        f"{of.observation_space} and {of.action_space}"
                    )
            self._made[number] = made
        return self._made[number]


class HalfCheetahVelocity:
    """Gymnasium's half-cheetah, paid for running at the speed that the task names, not for the fastest (Finn et al.
    2017): -|v - v*| - 0.05 |a|² a step, for 200 steps."""

    masks = False

    def __init__(self):
        mujoco: Any = import_module("mujoco")
        told = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda said: None)  # that a setting of Gymnasium's model grows old, once a copy
        try:
            self._env = gymnasium.make("HalfCheetah-v5", max_episode_steps=200, disable_env_checker=True)
        finally:
            mujoco.set_mju_user_warning(told)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self._wanted = 0.0

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        self._wanted = float(task[0])
        observation, _ = self._env.reset(seed=seed)
        return Seen(observation)

    def step(self, action: Any) -> Seen:
        observation, _, terminated, truncated, info = self._env.step(action)
        reward = -abs(info["x_velocity"] - self._wanted) - 0.05 * float(np.square(action).sum())
        return Seen(observation, reward, terminated or truncated, terminated)
