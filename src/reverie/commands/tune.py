"""`reverie tune`: find the free numbers of a rule by evolution in the simulator, on a family or on one's own trace."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from reverie.commands.worlds import played
from reverie.envs.fleet.families import Load
from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.weights import USUAL, Proxy
from reverie.evaluate.tuning import tune
from reverie.ranges import Count, Positive, above, checked
from reverie.report.output import print_facts
from reverie.runs.tuned import TuneConfig
from reverie.settings.config import WorldConfig
from reverie.train.evolve import EvolveConfig


@dataclass(frozen=True)
@checked
class Tune:
    """Tune a rule on a workload: a policy of a few numbers, which `compare` and `simulate` take as `--policy FILE`.

    A search that was stopped goes on from its file when the same command is given again.

    Example: reverie tune --family hard --out runs/hard.safetensors

    Example: reverie tune --rule adaptive-least-connections --family drift --out runs/drift.safetensors

    Example: reverie tune --trace requests.csv --objective p99 --out runs/ours.safetensors

    Example: reverie tune --rule adaptive-weights --family shared --out runs/weights.safetensors
    """

    out: Path
    """The file of the tuned rule."""
    rule: str = "scored-work"
    """What is tuned: scored-work (waiting time + c x service time, corrected by a network of 84 numbers: needs work,
    sizes and speeds), scored-counts (the same about adaptive least-connections: needs jobs in progress alone), or the
    constants of wait-plus-service, adaptive-least-connections, little, fpi, sita (which sizes a server takes) or
    adaptive-weights (time constant and gain, for `reverie serve`)."""
    proxy: Annotated[Proxy, tyro.conf.arg(name="")] = field(default_factory=Proxy)
    """The proxy of adaptive-weights."""
    family: str = "hard"
    """The family of tasks to tune on."""
    trace: Path | None = None
    """Instead of a family, a trace: its first half. The second is left to be judged on (`compare --held-out`). A file,
    or `conversation-like`, the built-in one."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """How the trace is read."""
    own: Annotated[Own, tyro.conf.arg(name="")] = field(default_factory=Own)
    """Your own servers and jobs in place of the family's."""
    load: Annotated[Load, *above(0)] = 0.8
    """The offered load that the trace is brought to; `recorded` keeps its clock."""
    objective: str = "mean"
    """What is to be small: the mean, median, p95 or p99 response time of an episode, or late:DEADLINE, the share of
    jobs that take longer than that (in the units of the simulator)."""
    search: Annotated[EvolveConfig, tyro.conf.arg(name="")] = field(default_factory=EvolveConfig)
    """How it is searched."""
    generations: Count = 1000
    """Generations after which the search ends."""
    minutes: Positive = 10.0
    """Minutes after which it ends."""
    quiet: bool = False
    """Show no progress."""


def parse(arguments: Sequence[str]) -> Tune:
    return tyro.cli(Tune, prog="reverie tune", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    world = WorldConfig(asked.family, asked.trace, asked.reading, asked.own, asked.load, jobs=asked.search.jobs)
    if asked.rule == "adaptive-weights":
        world = replace(world, view="weights", reward="elapsed", proxy=asked.proxy)
    elif asked.proxy != USUAL:
        raise ValueError(f"hold, caps, late and span are about adaptive-weights, and rule is {asked.rule}")
    config = TuneConfig(asked.rule, world, asked.search, asked.objective)
    tuned, seconds = tune(config, asked.out, asked.generations, asked.minutes, asked.quiet)
    facts = [("rule", asked.rule), ("generations", f"{len(tuned.worths):,}"), ("seconds, this time", f"{seconds:.0f}")]
    if len(tuned.centre) <= 4:
        numbers = zip(tuned.free.names, np.exp(tuned.centre), strict=True)
        facts += [(name, f"{factor:.3g} times as large") for name, factor in numbers]
    facts += [("last generation", f"{np.exp(tuned.worths[-1].mean()):.3f} of the rule in books, on jobs tuned on")]
    rivals = ("adaptive-weights", "equal-weights") if world.view == "weights" else ("shortest-wait", "jsq")
    words = ["reverie", "compare", *played(world)]
    words += [word for name in (str(asked.out), *rivals) for word in ("--policy", name)]
    facts += [("judge it", shlex.join(words))]
    print_facts(f"Tuned: {asked.out}", facts)
