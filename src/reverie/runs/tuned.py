"""A tuned rule as a file: its numbers, what the operator knew, and the worths of all that was tried, to go on from.

A safetensors file, as checkpoints are, so that nothing in it is executed when it is read. It is written whole after
each generation that is saved; `train/evolve.py` finds the numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reverie.policies.objectives import objective
from reverie.policies.tunable import Tunable, tunable
from reverie.policies.views import Rule
from reverie.ranges import checked
from reverie.runs import checkpoint
from reverie.runs.config_json import config_from_json, config_to_json
from reverie.settings.config import WorldConfig
from reverie.train.evolve import EvolveConfig

KIND = "tuned rule"
"""Under `kind` in the metadata, which tells these files from checkpoints and policies."""


@dataclass(frozen=True)
@checked
class TuneConfig:
    """What is tuned, on what, for what."""

    rule: str
    """One of `policies/tunable.py`."""
    world: WorldConfig
    """The traffic and the fleets: a family, or the first half of a trace."""
    search: EvolveConfig
    """How it is searched."""
    objective: str = "mean"
    """What is to be small: mean, median, p95, p99 or late:DEADLINE."""

    def __post_init__(self):
        objective(self.objective)


class _Saved(NamedTuple):
    centre: Float[np.ndarray, " D"]
    worths: Float[np.ndarray, "G P"]
    speeds: Float[np.ndarray, " N"]
    sizes: Float[np.ndarray, " Q"]


@dataclass(frozen=True)
class TunedRule:
    """A rule and how it came to its numbers."""

    config: TuneConfig
    centre: Float[np.ndarray, " D"]
    """Its numbers, as `Tunable` has them."""
    worths: Float[np.ndarray, "G P"]
    """Of every vector that was tried, by generation."""
    speeds: Float[np.ndarray, " N"]
    """Nominal speeds of the servers, for the rules that do not see them."""
    sizes: Float[np.ndarray, " Q"]
    """Quantiles of the job sizes."""
    seconds: float | None = None
    """In a time unit of the world it was tuned in; None where that has none in the real one."""

    @property
    def free(self) -> Tunable:
        return tunable(self.config.rule, self.speeds, self.sizes)

    @property
    def rule(self) -> Rule:
        return self.free.make(jnp.asarray(self.centre, jnp.float32))


def save_rule(path: Path, tuned: TunedRule) -> None:
    """Write the file, whole or not at all."""
    arrays = _Saved(tuned.centre, tuned.worths, tuned.speeds, tuned.sizes)
    names = list(tuned.free.names)
    shapes = [array.shape for array in arrays]
    described = {"kind": KIND, "config": config_to_json(tuned.config), "names": names, "shapes": shapes}
    checkpoint.save(path, arrays, {**described, "seconds": tuned.seconds})


def load_rule(path: Path) -> TunedRule:
    """Read it.

    Raises:
        ValueError: the file is damaged, or is no tuned rule.
    """
    described = checkpoint.read_metadata(path)
    if described.get("kind") != KIND:
        raise ValueError(f"{path} is no tuned rule; make one with `reverie tune --out {path}`")
    config = config_from_json(TuneConfig, described["config"])
    like = _Saved(*(np.zeros(shape) for shape in described["shapes"]))
    return TunedRule(config, *checkpoint.load(path, like), described.get("seconds"))
