"""`reverie train`: train one agent into a run folder, or go on with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reverie.commands.output import say
from reverie.commands.training import train_run
from reverie.train.config import TrainConfig
from reverie.train.presets import Algorithm, Preset, preset
from reverie.train.run import RunFolder
from reverie.train.trainers import build


@dataclass(frozen=True)
class Choice:
    """What is read first, as it decides the defaults of all the rest."""

    agent: Algorithm = "dreamer"
    """The algorithm."""
    preset: Preset = "cpu"
    """The settings to begin with; each of them can be changed by its own option below."""
    out: Path | None = None
    """The folder of the run, which must not exist yet; runs/AGENT-SEED unless given."""
    resume: bool = False
    """Go on with the run in that folder, to the same numbers as if it had never stopped."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class Train:
    """Train an agent. Progress is shown, metrics go to metrics.jsonl and TensorBoard, checkpoints to checkpoints/.

    Example: reverie train --preset cpu --minutes 10 --out runs/first

    Example: reverie train --agent a2c --world.family medium --seed 3

    Example: reverie train --resume --out runs/first
    """

    choice: Annotated[Choice, tyro.conf.arg(name="")]
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]


def parse(arguments: Sequence[str]) -> Train:
    choice, _ = tyro.cli(
        Choice, args=arguments, add_help=False, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if choice.resume:
        if choice.out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with")
        default = RunFolder.open(choice.out).config(TrainConfig)
    else:
        default = preset(choice.agent, choice.preset)
    return tyro.cli(
        Train,
        prog="reverie train",
        args=arguments,
        default=Train(Choice(), default),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    choice, config = asked.choice, asked.config
    out = choice.out or Path("runs") / f"{config.name}-{config.seed}"
    trainer = build(config)  # a mistake in the configuration should leave no folder behind
    run = RunFolder.open(out, config) if choice.resume else RunFolder.create(out, config)
    train_run(config, trainer, run, ["reverie", "train", *arguments], choice.quiet)
    say(f"the run: {run.path}")
