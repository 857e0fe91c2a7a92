"""`reverie verdict`, the main job: train, evaluate and report, from nothing to an honest verdict on real traffic."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from reverie.commands.swept import parse_after_file, print_swept
from reverie.report.output import Output
from reverie.runs.build import build
from reverie.sweep.engines import Here
from reverie.sweep.plans import VerdictConfig
from reverie.sweep.sweep import open_sweep, sweep

_TITLE = "Would a learned balancer beat the best rule?"


@dataclass(frozen=True)
class Verdict:
    """Train Dreamer with its RL2 policy and A2C, A2C once for as many environment steps and once for longer; examine
    them beside all classical rules at three loads, under loads that change without warning, and on a trace; print the
    verdict and write a page. A verdict that was stopped goes on where it was when started again.

    With a trace of your own, `--view counts` asks what a balancer could do that sees what a proxy sees; without it
    agents and rules are told sizes and speeds.

    Example: reverie verdict

    Example: reverie verdict --trace conversation-like --view counts --out runs/proxy

    Example: reverie verdict --trace conversation-like --load recorded --speeds 1,1,0.5 --view counts --out runs/ours
    """

    config: Annotated[VerdictConfig, tyro.conf.arg(name="")] = field(default_factory=VerdictConfig)
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """A file of settings, TOML or JSON, such as the config.json of another verdict; the options come after it."""
    out: Path = Path("runs/verdict")
    """The folder for everything; report.html is the page, and shows first pictures early."""
    quiet: bool = False
    """Show no progress."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Verdict:
    return parse_after_file(Verdict(), "reverie verdict", arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    examination, plans = asked.config.examination, asked.config.plans()
    examination.read()  # a mistake in it should leave no folder behind
    for plan in plans:
        if plan.seed == 0:
            build(plan)  # nor should a view that the preset cannot read
    run = open_sweep(asked.out, asked.config)
    command = ["reverie", "verdict", *arguments]
    engine = Here(asked.quiet)
    swept = sweep(run, plans, examination, engine, title=_TITLE, command=command, one_by_one=True, quiet=True)
    print_swept(run, swept, asked.output)
