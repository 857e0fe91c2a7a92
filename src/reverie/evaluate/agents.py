"""Trained agents as contestants: from the folders of their runs, as their newest checkpoints have them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reverie.evaluate.trials import Contestant
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig


def load_agents(folders: Sequence[Path], servers: int | None = None) -> list[Contestant]:
    """The agents of runs, as their newest checkpoints have them, taking their likeliest actions.

    Arguments: `servers`, the size of the fleet that they are to act for; that of their training unless given.

    Runs that differ in their seed alone are one agent, named after its algorithm; agents of different settings are told
    apart by the folder of their first run.

    Raises:
        FileNotFoundError: a folder is not a run, or has no checkpoint yet.
        ValueError: two runs are the same, a checkpoint does not fit, or an agent is for one size of fleet only.
    """
    runs = [RunFolder.open(folder) for folder in folders]
    configs = [run.config(TrainConfig) for run in runs]
    settings = [replace(config, seed=0) for config in configs]
    contestants = []
    for run, config, setting in zip(runs, configs, settings, strict=True):
        rivals = {other for other in settings if other.name == config.name}
        name = config.name if len(rivals) == 1 else folders[settings.index(setting)].name
        world, trainer = config.fleet, build(config)
        _, state = loop.newest_state(trainer, run)
        policy = trainer.policy(state, servers=servers)
        contestants.append(Contestant(name, policy, world.view, training_seed=config.seed, reward=world.reward))
    return contestants


def training_runs(run: RunFolder) -> list[RunFolder]:
    """The training runs that belong to a folder: itself, or those within it."""
    within = [RunFolder(path.parent) for path in sorted(run.path.glob("*/config.json"))]
    return within or [run]
