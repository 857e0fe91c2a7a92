"""`reverie train`: train an agent into a run folder, with one seed or several, or go on with it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import tyro

from reverie import signals
from reverie.ranges import Seed, at_least, checked
from reverie.report.output import say
from reverie.runs.build import build, module_of, refuse_module, stored
from reverie.runs.checkpoint import latest
from reverie.runs.config_json import read_settings, with_changes
from reverie.runs.folder import RunFolder
from reverie.runs.folders import RunFolders
from reverie.runs.loop import Interrupted
from reverie.runs.mlflow import reported
from reverie.settings.config import TrainConfig
from reverie.settings.games import Player, game_plan
from reverie.settings.presets import Algorithm, ModelKind, OptimiserKind, Preset, preset, with_model, with_optimiser
from reverie.settings.suites import suite_plan
from reverie.sweep.training import LIMITS, beginning_of, check_step_size, create, go_on, train_run, train_seeds
from reverie.train.seeds import side_by_side


@dataclass(frozen=True)
@checked
class Choice:
    """What is read first, as it decides the defaults of all the rest."""

    agent: Algorithm = "dreamer"
    """The algorithm."""
    preset: Preset | None = None
    """The settings to begin with, `cpu` unless given; each of them can be changed by its own option below."""
    game: str | None = None
    """A game instead of a fleet, with settings of its own: one of memory such as repeat_previous/hard, or a world
    outside such as gym:CartPole-v1, dmc:walker_walk or, of many tasks, metaworld:MT10. A wrong name is answered by
    those there are."""
    suite: str | None = None
    """A suite of unlike fleets instead of one family, to learn all at once: `fleets` (16 tasks), `corners` (4
    of these), `schemas` (the same in unlike views) or `loads` (one fleet at 4 loads). The agent is that of the preset
    `cpu`, in `schemas` a mixture, unless --model is given."""
    model: ModelKind | None = None
    """Dreamer's kind of world model, instead of the preset's: `queue` and `counts` know what a queue is, `set_rssm`
    learns servers as a set; `rssm` (DreamerV3's), `s3m` (R2I's, with a long memory) and `storm` (a Transformer) read
    anything. In a suite, `mixture` has parts for each task, and `shared` is one for all that is told the task."""
    optimiser: OptimiserKind | None = None
    """Dreamer's kind of optimiser at its published values, instead of the preset's: `single` is DreamerV3's, for all
    networks at once; `groups` is R2I's, Adam with a learning rate and a clip of its own for each part."""
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """A file of settings, TOML or JSON, such as the config.json of a run: names and nesting are those of the options
    below, which come after it."""
    out: Path | None = None
    """The folder of the run, which must not exist yet; runs/AGENT-SEED unless given."""
    seeds: Annotated[int, *at_least(1, 1_000, "all are trained at once")] = 1
    """Seeds that train side by side in one program, from --seed on. Each leaves an ordinary run, in the folder OUT-SEED
    (runs/AGENT-SEED unless --out is given). This is for GPUs: on a CPU it is no faster than one after the other."""
    resume: bool = False
    """Go on with the run in that folder, to the same numbers as if it had never stopped. Limits, --evaluate-every and
    --save-every may be given anew, nothing else."""
    trust: bool = False
    """With --resume or --config: import the module that the game named there is in, such as MODULE in
    gym:MODULE:X-v0, which executes what is in it."""
    mlflow: str | None = None
    """An MLflow server that is sent settings and metrics too, such as http://127.0.0.1:5000 (`mlflow server`)."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self):
        if self.game is not None and (self.agent not in get_args(Player) or self.preset is not None):
            given = f"--preset {self.preset}" if self.preset else f"--agent {self.agent}"
            raise ValueError(
                f"--game {self.game} has settings of its own, for {', '.join(get_args(Player))}; {given} was given too"
            )
        if self.suite is not None:
            others = {
                "agent": self.agent if self.agent != "dreamer" else None,
                "preset": self.preset,
                "game": self.game,
            }
            for name, value in others.items():
                if value is not None:
                    raise ValueError(
                        f"--suite {self.suite} has settings of its own, for dreamer; --{name} {value} was given too"
                    )

    def plan(self, tasks: tuple[str, ...] = ()) -> TrainConfig:
        """The settings to begin with; `tasks` are those of a suite that are learned, all of them unless given."""
        if self.suite is not None:
            plan = suite_plan(self.suite, self.model, tasks)
        elif self.game is None:
            plan = preset(self.agent, self.preset or "cpu")
        else:
            plan = game_plan(self.game, cast(Player, self.agent))
        plan = plan if self.file is None else self._changed(plan, self.file)
        plan = with_model(plan, self.model) if self.model and self.suite is None else plan
        return with_optimiser(plan, self.optimiser) if self.optimiser else plan

    def _changed(self, plan: TrainConfig, path: Path) -> TrainConfig:
        """The plan with what stands in a file; with all of it, if that is a whole configuration."""
        changes = read_settings(path)
        for name, value in (("preset", self.preset), ("game", self.game), ("suite", self.suite)):
            if value is not None and "class" in changes:
                raise ValueError(f"{path} is a whole configuration, of which --{name} {value} would leave nothing")
        try:
            changed = with_changes(plan, changes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not self.trust and module_of(changed) != module_of(plan):
            refuse_module(changed, path)
        return changed

    def folder(self, name: str, seed: int) -> Path:
        """Of the run of one seed; `name` is what the agent is called."""
        if self.out is not None and self.seeds == 1:
            return self.out
        out = self.out or Path("runs") / name
        return out.with_name(f"{out.name}-{seed}")


@dataclass(frozen=True)
@checked
class Beginning(Choice):
    """What has to be known before the rest is read."""

    seed: Seed = 0
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(name="world.tasks")] = ()
    """Of a suite, whose settings are for so many."""


@dataclass(frozen=True)
class Train:
    """Train an agent. Progress is shown, metrics go to metrics.jsonl and TensorBoard, checkpoints to checkpoints/.

    Example: reverie train --preset cpu --minutes 10 --out runs/first

    Example: reverie train --agent a2c --world.family medium --seed 3

    Example: reverie train --config runs/first/config.json --seed 1 --out runs/second

    Example: reverie train --preset learned --model s3m

    Example: reverie train --game repeat_previous/medium

    Example: reverie train --game gym:CartPole-v1 --out runs/cartpole

    Example: reverie train --agent sac --game gym:Pendulum-v1 --steps 20000

    Example: reverie train --agent pearl --game point_robot

    Example: reverie train --agent metadreamer --game merging

    Example: reverie train --suite fleets --out runs/fleets

    Example: reverie train --suite fleets --model mixture --world.tasks equal/steady two-speeds/steady

    Example: reverie train --resume --out runs/first

    Example: reverie train --agent a2c --seeds 5 --out runs/a2c
    """

    choice: Annotated[Choice, tyro.conf.arg(name="")]
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]


def parse(arguments: Sequence[str]) -> Train:
    choice, _ = tyro.cli(
        Beginning, args=arguments, add_help=False, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if choice.resume:
        if choice.out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with")
        for name in ("preset", "model", "optimiser", "game", "suite", "file"):
            if (value := getattr(choice, name)) is not None:
                option = "config" if name == "file" else name
                raise ValueError(f"--{option} {value} is for a new run; one that goes on keeps what it began with")
        default = stored(RunFolder.open(choice.folder("", choice.seed)), choice.trust)
        _check_agent(default, arguments, "the run that is there")
    else:
        default = choice.plan(choice.tasks)
        if choice.file is not None:
            _check_agent(default, arguments, str(choice.file))
    asked = tyro.cli(
        Train,
        prog="reverie train",
        args=arguments,
        default=Train(Choice(), default),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )
    if not choice.resume or asked.config.loop != default.loop:
        check_step_size(asked.config, choice.out if choice.resume else None)
    return asked


def _check_agent(config: TrainConfig, arguments: Sequence[str], where: str) -> None:
    """Errors: ValueError where another algorithm is asked for than there is in a configuration from a file."""
    own: Any = config.agent.name.split("-")[0]
    asked, _ = tyro.cli(
        Beginning,
        args=arguments,
        default=Beginning(agent=own),
        add_help=False,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if asked.agent != own:
        raise ValueError(f"--agent {asked.agent}: {where} is of {own}")


def _go_on(path: Path, config: TrainConfig) -> RunFolder:
    """Errors: ValueError where something was changed that the numbers so far depend on; it names what can be done."""
    try:
        return go_on(path, config, free=LIMITS)
    except ValueError as error:
        if latest(RunFolder(path).checkpoints) is None:
            raise
        again = shlex.join(["reverie", "train", "--start", str(path), "--out"])
        raise ValueError(f"{error}\nAnother run can begin with what this one learned: {again} ANOTHER …") from error


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    choice, config = asked.choice, asked.config
    if choice.seeds > 1 and config.start is not None:
        raise ValueError(
            f"--start {config.start} is where one run begins from, and --seeds is {choice.seeds}: give one"
        )
    if choice.seeds > 1 and choice.mlflow is not None:
        raise ValueError(f"--mlflow is for one run, and --seeds is {choice.seeds}: train them one by one")
    if config.start is not None and not choice.resume:
        beginning_of(config, config.start)
    configs = [replace(config, seed=config.seed + i) for i in range(choice.seeds)]
    trainers = [build(c) for c in configs]  # a mistake in the configuration should leave no folder behind
    make = _go_on if choice.resume else create
    runs = [make(choice.folder(c.name, c.seed), c) for c in configs]
    command = ["reverie", "train", *arguments]
    out = runs[0].path if choice.seeds == 1 else choice.out or Path("runs") / config.name
    words = ["reverie", "train", "--resume", "--out", str(out)]
    words += [] if choice.seeds == 1 else ["--seeds", str(choice.seeds), "--seed", str(config.seed)]
    words += [] if module_of(config) is None else ["--trust"]
    again = f". Go on with: {shlex.join(words)}"
    try:
        with signals.told(again):
            if choice.seeds == 1:
                with reported(choice.mlflow, runs[0], config) as tell:
                    train_run(config, trainers[0], runs[0], command, choice.quiet, tell)
            else:
                train_seeds(configs, side_by_side(trainers), RunFolders(tuple(runs)), command, choice.quiet)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}{again}", stopped.number) from None
    say("\n".join(f"the run: {run.path}" for run in runs))
