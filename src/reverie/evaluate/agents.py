"""Trained agents as contestants: from the folders of their runs, or from exported policies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from reverie.envs.fleet.weights import FleetWorld
from reverie.evaluate.contestants import Contestant
from reverie.policies.core import Policy
from reverie.runs import loop
from reverie.runs.build import build, stored
from reverie.runs.export import load_policy
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig


class Agent(NamedTuple):
    """A trained agent, taking its likeliest actions."""

    name: str
    """After its algorithm. Agents that differ in their seed alone are one; those of other settings are told apart by
    the name of the folder or file of the first, or by its whole path where names are alike."""
    config: TrainConfig
    policy: Policy


def load_agents(paths: Sequence[Path], servers: int | None = None) -> list[Contestant[FleetWorld]]:
    """Agents of fleets: those of runs as their newest checkpoints have them, of a folder of runs (a verdict, a sweep)
    all within it, and those of exported policies.

    Arguments: `servers`, the size of the fleet that they are to act for; that of their training unless given.

    Raises:
        FileNotFoundError: a folder is not a run, or has no checkpoint yet.
        ValueError: two runs are the same, a checkpoint does not fit, or an agent is for one size of fleet only.
    """

    def load(place: Path) -> tuple[TrainConfig, Policy]:
        if place.is_file():
            return load_policy(place, servers)
        config = RunFolder(place).config(TrainConfig)
        trainer = build(replace(config, world=config.fleet))  # never a game: its name could import a module
        return config, trainer.policy(loop.newest_state(trainer, RunFolder(place))[1], servers=servers)

    places = [place for path in paths for place in _places(path)]
    return [
        Contestant(agent.name, agent.policy, agent.config.fleet.env, training_seed=agent.config.seed)
        for agent in _named(places, [load(place) for place in places])
    ]


def load_trained(paths: Sequence[Path], trust: bool = False) -> list[Agent]:
    """Agents of runs, or of all runs in a folder, in the worlds that they were trained in.

    Raises:
        FileNotFoundError: a folder is not a run, or has no checkpoint yet.
        ValueError: two runs are the same, a checkpoint does not fit, or a game is in a module that is to be imported
            and there is no `trust`.
    """

    def load(run: RunFolder) -> tuple[TrainConfig, Policy]:
        config = stored(run, trust)
        trainer = build(config)
        return config, trainer.policy(loop.newest_state(trainer, run)[1])

    runs = [run for path in paths for run in training_runs(RunFolder.open(path))]
    return _named([run.path for run in runs], [load(run) for run in runs])


def training_runs(run: RunFolder) -> list[RunFolder]:
    """The training runs that belong to a folder: itself, or those within it."""
    within = [RunFolder(path.parent) for path in sorted(run.path.glob("*/config.json"))]
    return within or [run]


def _places(path: Path) -> list[Path]:
    return [path] if path.is_file() else [run.path for run in training_runs(RunFolder.open(path))]


def _named(places: Sequence[Path], loaded: Sequence[tuple[TrainConfig, Policy]]) -> list[Agent]:
    """Errors: ValueError where two have one configuration and seed."""
    met: dict[TrainConfig, Path] = {}
    first: dict[TrainConfig, Path] = {}
    for place, (config, _) in zip(places, loaded, strict=True):
        if config in met:
            raise ValueError(f"{met[config]} and {place} are the same run, or two of one configuration and seed")
        met[config] = place
        first.setdefault(replace(config, seed=0), place)
    alike = Counter(setting.name for setting in first)
    names = {setting: setting.name if alike[setting.name] == 1 else place.name for setting, place in first.items()}
    given = Counter(names.values())
    unique = {setting: name if given[name] == 1 else str(first[setting]) for setting, name in names.items()}
    return [Agent(unique[replace(config, seed=0)], config, policy) for config, policy in loaded]
