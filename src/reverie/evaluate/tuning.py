"""Tuning a rule until its time is up, with progress, in a file that can be used and gone on with at any time."""

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reverie.envs.fleet.env import Task
from reverie.evaluate.opponents import nominal_speeds, typical_sizes
from reverie.policies.objectives import objective
from reverie.policies.tunable import tunable
from reverie.runs.progress import Progress
from reverie.runs.tuned import TuneConfig, TunedRule, load_rule, save_rule
from reverie.settings.config import stream_seed
from reverie.train.evolve import evolve

_KNOWN_TASKS, _KNOWN_SIZES = 64, 1000
"""How many tasks an operator knows the speeds and sizes of, and by how many quantiles."""


class Tuning(NamedTuple):
    """What came of it."""

    tuned: TunedRule
    seconds: float
    """On the wall clock, of this call."""


def tune(config: TuneConfig, path: Path, generations: int, minutes: float, quiet: bool = False) -> Tuning:
    """Search until either limit is reached, from where the file at `path` left off if there is one.

    Raises:
        ValueError: the file is of another search, or the rule, objective or trace cannot be had.
    """
    began, tuned = time.monotonic(), _begun(config, path)
    if (done := len(tuned.worths)) >= generations:
        return Tuning(tuned, 0.0)

    def draw(count: int, seed: int) -> Task:
        return config.world.draw(count, stream_seed(seed, "tuning"))

    search = evolve(
        config.search, tuned.free, draw, objective(config.objective), list(tuned.worths), config.world.proxy
    )
    used = 0.0
    with Progress(generations, "generations", f"tuning {config.rule}", done=done, quiet=quiet) as shown:
        while used < 1:
            found = next(search)
            tuned = replace(tuned, centre=found.centre, worths=np.vstack([tuned.worths, found.worths]))
            save_rule(path, tuned)
            used = max((time.monotonic() - began) / (60 * minutes), found.number / generations)
            ratios = np.exp(found.worths)
            metrics = {"ratio/members": float(ratios.mean()), "ratio/best": float(ratios.min())}
            shown.update(found.number, metrics, share=min(used, 1.0))
    return Tuning(tuned, time.monotonic() - began)


def _begun(config: TuneConfig, path: Path) -> TunedRule:
    if path.exists():
        tuned = load_rule(path)
        if tuned.config != config:
            raise ValueError(
                f"{path} was tuned otherwise ({tuned.config}); go on with the same settings, or choose another file"
            )
        return tuned
    tasks = config.world.draw(_KNOWN_TASKS, stream_seed(config.search.seed, "what an operator knows"))
    speeds = nominal_speeds(tasks)
    sizes = np.quantile(typical_sizes(tasks), (np.arange(_KNOWN_SIZES) + 0.5) / _KNOWN_SIZES)
    free = tunable(config.rule, speeds, sizes)
    nothing = np.zeros(len(free.names)), np.zeros((0, config.search.members))
    return TunedRule(config, *nothing, speeds, sizes, config.world.seconds)
