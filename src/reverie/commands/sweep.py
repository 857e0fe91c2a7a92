"""`reverie sweep`: agents x families x seeds, trained side by side on this machine or on Ray, examined and compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from reverie.commands.swept import parse_after_file, print_swept
from reverie.report.output import Output
from reverie.sweep.engines import Engine, Local, Ray
from reverie.sweep.plans import SweepConfig
from reverie.sweep.sweep import open_sweep, sweep

_TITLE = "Which learned balancer beats the best rule?"


@dataclass(frozen=True)
class Sweep:
    """Train agents in task families with several seeds, side by side, each run in a process of its own; then examine
    them as `reverie verdict` does, print the verdict and write a page. What was stopped goes on where it was when
    started again with the same words; finished runs cost nothing.

    Example: reverie sweep --agent dreamer --agent a2c --agent a2c-rl2 --seeds 5

    Example: reverie sweep --agent a2c --family hard --family levels --workers 2 --out runs/families

    Example: reverie sweep --agent dreamer --engine ray --address auto --out runs/cluster
    """

    config: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """A file of settings, TOML or JSON, such as the config.json of another sweep; the options come after it."""
    out: Path = Path("runs/sweep")
    """The folder for everything: each run, the tables, report.html. With Ray, on a disk that all its machines share."""
    engine: Literal["local", "ray"] = "local"
    """Processes on this machine, or a Ray cluster (pip install 'reverie[ray]')."""
    address: str | None = None
    """Of the Ray cluster, such as `auto` or HOST:6379; a new one on this machine unless there is one."""
    workers: int | None = None
    """Runs at a time; as many as there are cores unless given."""
    quiet: bool = False
    """Show no progress."""
    output: Output = "table"
    """A table, or JSON."""

    def on(self) -> Engine:
        """The engine that was asked for.

        Raises:
            ValueError: Ray is not installed, or an option does not belong to the engine, or no worker is allowed.
        """
        if self.engine == "ray":
            return Ray(self.address, self.workers)
        if self.address is not None:
            raise ValueError(f"--address {self.address} is that of a Ray cluster: add --engine ray, or leave it out")
        return Local(self.workers)


def parse(arguments: Sequence[str]) -> Sweep:
    return parse_after_file(Sweep(), "reverie sweep", arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    engine, plans = asked.on(), asked.config.plans()
    asked.config.examination.read()  # a mistake in it should leave no folder behind
    run = open_sweep(asked.out, asked.config)
    command = ["reverie", "sweep", *arguments]
    swept = sweep(run, plans, asked.config.examination, engine, title=_TITLE, command=command, quiet=asked.quiet)
    print_swept(run, swept, asked.output)
