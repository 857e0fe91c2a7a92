"""Trained agents as contestants: from the folders of their runs, or from exported policies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reverie.evaluate.contestants import Contestant
from reverie.policies.core import Policy
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.export import load_policy
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig


def load_agents(paths: Sequence[Path], servers: int | None = None) -> list[Contestant]:
    """Agents taking their likeliest actions: those of runs as their newest checkpoints have them, of a folder of runs
    (a verdict, a sweep) all within it, and those of exported policies.

    Arguments: `servers`, the size of the fleet that they are to act for; that of their training unless given.

    Agents that differ in their seed alone are one agent, named after its algorithm; those of different settings are
    told apart by the name of the folder or file of the first.

    Raises:
        FileNotFoundError: a folder is not a run, or has no checkpoint yet.
        ValueError: two runs are the same, a checkpoint does not fit, or an agent is for one size of fleet only.
    """
    places = [place for path in paths for place in _places(path)]
    loaded = [load_policy(place, servers) if place.is_file() else _newest(place, servers) for place in places]
    settings = [replace(config, seed=0) for config, _ in loaded]
    contestants = []
    for (config, policy), setting in zip(loaded, settings, strict=True):
        rivals = {other for other in settings if other.name == config.name}
        name = config.name if len(rivals) == 1 else places[settings.index(setting)].name
        contestants.append(Contestant(name, policy, config.fleet.env, training_seed=config.seed))
    return contestants


def training_runs(run: RunFolder) -> list[RunFolder]:
    """The training runs that belong to a folder: itself, or those within it."""
    within = [RunFolder(path.parent) for path in sorted(run.path.glob("*/config.json"))]
    return within or [run]


def _places(path: Path) -> list[Path]:
    return [path] if path.is_file() else [run.path for run in training_runs(RunFolder.open(path))]


def _newest(path: Path, servers: int | None) -> tuple[TrainConfig, Policy]:
    run = RunFolder(path)
    config = run.config(TrainConfig)
    trainer = build(replace(config, world=config.fleet))  # never a game: its name could import a module
    return config, trainer.policy(loop.newest_state(trainer, run)[1], servers=servers)
