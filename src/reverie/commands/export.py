"""`reverie export`: the policy of a run in one file, to decide without trainer, replay or JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie.report.output import say
from reverie.runs.export import export_policy
from reverie.runs.folder import RunFolder


@dataclass(frozen=True)
class Export:
    """Write the policy of a run, as its newest checkpoint has it, into one file: networks, what they read and in which
    units, and where they come from. `reverie.load_policy(FILE)` decides with it, without JAX; `reverie compare` and
    `reverie evaluate` take it where they take a run.

    Example: reverie export runs/first first.safetensors
    """

    run: tyro.conf.Positional[Path]
    """The folder of the run."""
    policy: tyro.conf.Positional[Path]
    """The file, whose name ends in .safetensors."""


def parse(arguments: Sequence[str]) -> Export:
    asked = tyro.cli(Export, prog="reverie export", args=arguments)
    if asked.policy.suffix != ".safetensors":
        raise ValueError(f"the name of a policy ends in .safetensors, got {asked.policy}")
    return asked


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    step = export_policy(RunFolder.open(asked.run), asked.policy)
    say(f"written: {asked.policy} ({asked.policy.stat().st_size / 1e6:.1f} MB, after {step:,} environment steps)")
