"""Worlds that live outside JAX, by name: Gymnasium, POPGym, bsuite, DeepMind Control, Memory Maze, Atari, Meta-World.

Their packages are extras of this one and are imported when a name asks for them.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, cast

import gymnasium

from reverie.envs.outside import meta_world
from reverie.envs.outside.atari import Atari, games
from reverie.envs.outside.tasks import TOLD, HalfCheetahVelocity, Together, tasks_of
from reverie.envs.outside.worlds import LIMIT, FromDmEnv, FromGymnasium, OutsideWorld, OutsideWorlds


def open_outside(
    name: str,
    copies: int,
    repeat: int = 1,
    limit: int = LIMIT,
    arguments: Mapping[str, Any] = MappingProxyType({}),
    judged: bool = False,
) -> OutsideWorlds:
    """Copies (B) of the world of that name, such as `gym:CartPole-v1`, `popgym:RepeatPreviousEasy`,
    `bsuite:memory_len/7`, `dmc:walker_walk`, `memory_maze:9x9`, `atari:Pong`, `metaworld:reach-v3`, or one of many
    tasks (`tasks.py`).

    Arguments: `repeat` and `limit`, see `OutsideWorlds`; `arguments`, what a Gymnasium world is made with, a game of
    Atari (`atari.py`) or a task of Meta-World (`meta_world.py`); `judged`, whether an agent is judged in them, in
    Meta-World by success.

    Raises:
        WorldError: one copy, tried with Gymnasium's own checks, broke the rules.
        ValueError: there is no such world, it cannot be presented as one of ours, or it takes no arguments.
        ModuleNotFoundError: its package is not installed.
    """
    source, _, world = name.removesuffix(TOLD).partition(":")
    if source not in SOURCES or not world:
        known = ", ".join(f"{each}:NAME" for each in SOURCES)
        raise ValueError(f"a world outside is called {known} (such as gym:CartPole-v1), got {name!r}")
    if arguments and source not in ARGUED:
        raise ValueError(
            f"arguments are for worlds of Gymnasium (gym:NAME), Atari (atari:NAME) and Meta-World (metaworld:NAME), "
            f"and {name} was given {dict(arguments)}"
        )
    if name.endswith(TOLD) and not tasks_of(name).shown:
        raise ValueError(f"{name} tells an agent which task it plays, and {source}:{world} is one")
    tasks, arguments = tasks_of(name), dict(JUDGED.get(source, {}) if judged else {}) | dict(arguments)
    if source == "atari" and tasks.names:
        arguments = {"whole": True} | arguments  # games know different actions
    make = partial(SOURCES[source], arguments=arguments) if source in ARGUED else SOURCES[source]

    def one() -> OutsideWorld:
        return Together(make, tasks.names) if tasks.names else make(world)

    try:
        worlds = OutsideWorlds([one() for _ in range(copies)], repeat, limit, name, tasks)
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


def _atari(name: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> OutsideWorld:
    known = games()
    if name not in known:
        raise _unknown("atari", name, known)
    try:
        return Atari(known[name], **arguments)
    except TypeError as error:  # an argument that there is none of
        raise ValueError(
            f"atari:{name} takes sticky, no_ops, lives and whole, got {dict(arguments)}: {error}"
        ) from error


def _meta_world(name: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> OutsideWorld:
    _draw_without_display()
    if name not in (known := meta_world.names()):
        raise _unknown("metaworld", name, known)
    try:
        return meta_world.MetaWorld(name, **arguments)
    except TypeError as error:  # an argument that there is none of, or not such a one
        raise ValueError(f"metaworld:{name} takes pays, got {dict(arguments)}: {error}") from error


def _velocity(name: str) -> OutsideWorld:
    _draw_without_display()
    if name != "half_cheetah":
        raise _unknown("velocity", name, ["half_cheetah"])
    return HalfCheetahVelocity()


def _draw_without_display() -> None:
    """Where there is no display, dm_control has to be told so before it is imported: it would look for one."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


SOURCES: Mapping[str, Callable[..., OutsideWorld]] = MappingProxyType(
    {
        "gym": _gymnasium,
        "popgym": _popgym,
        "bsuite": _bsuite,
        "dmc": _dmc,
        "memory_maze": _memory_maze,
        "atari": _atari,
        "metaworld": _meta_world,
        "velocity": _velocity,
    }
)
"""By the first part of a name: what makes a world of the rest of it."""
JUDGED: Mapping[str, Mapping[str, Any]] = MappingProxyType({"metaworld": MappingProxyType({"pays": "success"})})
"""What worlds are made with when an agent is judged in them, where that is not by what they pay in training."""
ARGUED = ("gym", "atari", "metaworld")
"""Those whose worlds take arguments."""


def _unknown(source: str, name: str, known: Iterable[str]) -> ValueError:
    """All names where they are few, else those nearest to the one that was given."""
    names = sorted(known)
    listed = names if len(names) <= 100 else difflib.get_close_matches(name, names, n=10, cutoff=0.0)
    told = "there are" if listed is names else f"of {len(names)} the nearest are"
    return ValueError(f"there is no world {source}:{name}; {told} {', '.join(listed)}")
