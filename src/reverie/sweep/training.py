"""Training in a run folder, with the learning curve that is put down there: one seed, or several in one program."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.dreamer import DreamerConfig
from reverie.evaluate.curve import LearningCurve, learning_curve, write_curve_rules
from reverie.evaluate.returns import ReturnCurve, return_curve
from reverie.evaluate.suites import SuiteCurve, suite_curve
from reverie.files import locked, write_text
from reverie.nn.optimiser import OptimiserConfig
from reverie.policies.core import Policy
from reverie.report.output import say
from reverie.runs import checkpoint, loop
from reverie.runs.build import build, module_of, stored
from reverie.runs.config_json import config_differences, config_to_json
from reverie.runs.folder import RunFolder
from reverie.runs.folders import RunFolders
from reverie.runs.loop import Outcome
from reverie.settings.config import TrainConfig
from reverie.train.seeds import SeedsTrainer
from reverie.train.trainers import InWorld, WorldTrainer

type _Curve = LearningCurve | ReturnCurve | SuiteCurve

SHOWN = (
    "episode/return",
    "evaluation/ratio",
    "evaluation/return",
    "evaluation/score",
    "evaluation/score_new",
    "model/reward",
    "actor/loss",
    "actor/entropy",
    "critic/loss",
)


def train_run(
    config: TrainConfig,
    trainer: WorldTrainer,
    run: RunFolder,
    command: Sequence[str],
    quiet: bool = False,
    tell: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> Outcome:
    """Train, or go on training, until the configuration says stop. `trainer` is what `build` makes of `config`; `tell`
    is called with the step and all that is logged."""

    @cache
    def curve() -> _Curve:  # only where there is something to train: the rules take some seconds
        return _judge(config, [run])

    def evaluate(policy: Policy) -> dict[str, float]:
        return curve()(policy)

    def continued() -> tuple[InWorld, int]:
        assert config.start is not None
        before, other = beginning_of(config, config.start)
        _, state = loop.newest_state(build(other), before)
        begun, step = trainer.place(trainer.continued(state, config.seed)), 0
        if not trainer.remembers(state):
            step = trainer.first_steps
            if not quiet:
                say(
                    f"{title}: experience begins anew, as {before.path} has other tasks, or streams, episodes or "
                    "replay of other sizes"
                )
        return begun, step

    beginning = None if config.start is None else continued
    title = f"training {config.name}, seed {config.seed}"
    limits, seed = config.loop, config.seed
    return loop.train(
        trainer, limits, run, command, seed, evaluate, beginning, tell=tell, title=title, shown=SHOWN, quiet=quiet
    )


def beginning_of(config: TrainConfig, start: Path) -> tuple[RunFolder, TrainConfig]:
    """The run that training begins from, and its configuration.

    Raises:
        FileNotFoundError: there is no run, or it has no checkpoint.
        ValueError: it is damaged, or its game is of a module that `config` does not name.
    """
    before = RunFolder.open(start)
    loop.newest_checkpoint(before)
    trust = module_of(config) == module_of(before.config(TrainConfig))  # its name was given for this training
    return before, stored(before, trust)


def check_step_size(config: TrainConfig, run: Path | None) -> None:
    """Errors: ValueError where more steps, or more updates for each, were asked for than the step size falls over;
    that of a `run` cannot be changed any more."""
    steps, experience = config.loop.steps, config.agent.experience
    match config.agent.algorithm:
        case DreamerConfig(optimiser=OptimiserConfig(warmup=warmup, decay=decay)) if decay and steps is not None:
            updates = _made_before(config.start) + steps // experience.env_steps * experience.repeats
            last = warmup + decay
        case _:
            return
    if updates > last:
        decay = f"--agent.optimiser.decay {updates - warmup}"
        begin = "give" if run is None else f"begin another run with --start {run} and"
        raise ValueError(
            f"the step size of the optimiser is 0 after {last} updates, and {steps} steps end after {updates} updates: "
            f"{begin} {decay} or more, or 0 for a step size that stays"
        )


def _made_before(start: Path | None) -> int:
    """Updates of the run that training begins from, and of those that it began from: the optimiser counts on."""
    if start is None or not (run := RunFolder(start)).metrics():
        return 0
    return int(run.metrics()[-1]["updates"]) + _made_before(run.config(TrainConfig).start)


def train_seeds(
    configs: Sequence[TrainConfig],
    trainer: SeedsTrainer,
    runs: RunFolders,
    command: Sequence[str],
    quiet: bool = False,
) -> Outcome:
    """`train_run` for several seeds at once. `configs` differ in their seed alone; `trainer` is made of all of them."""

    @cache
    def curve() -> _Curve:  # its episodes are the same for all seeds
        return _judge(configs[0], runs.runs)

    def evaluate(policies: tuple[Policy, ...]) -> dict[str, np.ndarray]:
        judged = [curve()(policy) for policy in policies]
        return {name: np.array([each[name] for each in judged]) for name in judged[0]}

    seeds = [config.seed for config in configs]
    title = f"training {configs[0].name}, seeds {seeds[0]} to {seeds[-1]}"
    limits = configs[0].loop
    return loop.train(trainer, limits, runs, command, seeds, evaluate, title=title, shown=SHOWN, quiet=quiet)


def _judge(config: TrainConfig, runs: Sequence[RunFolder]) -> _Curve:
    """The learning curve of a configuration; what the rules achieve in a fleet is put down in the runs."""
    if config.game is not None:
        return return_curve(config.game, config.curve)
    if config.suite is not None:
        return suite_curve(config, config.suite)
    judged = learning_curve(config)
    write_curve_rules(judged, runs)
    return judged


LIMITS = ("loop.",)
"""What may change when a run goes on, as no number so far depends on it: how long it trains, and how often it is judged
and saved."""


def go_on(path: Path, config: object, free: tuple[str, ...] = ()) -> RunFolder:
    """The run in a folder, which must be of the same configuration but for the fields `free`; these are put on record.

    Arguments: `free`, how the paths of these fields begin: `loop.` for all of a part, `seeds:` for one.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: another field differs; all that do are named.
        BlockingIOError: another process writes there.
    """
    run = RunFolder.open(path, config, free)
    new = config_to_json(config)
    if config_differences(run.config_json(), new):
        with locked(path / "lock", str(path)):
            write_text(path / "config.json", json.dumps(new, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return run


def create(path: Path, config: object) -> RunFolder:
    """The folder of a new run, or of one that failed before its first checkpoint and is of the same configuration, but
    maybe for how long it was to train."""
    if (path / "config.json").exists() and checkpoint.latest(RunFolder(path).checkpoints) is None:
        return go_on(path, config, free=LIMITS)
    return RunFolder.create(path, config)


def open_or_create(path: Path, config: object, free: tuple[str, ...] = ()) -> RunFolder:
    """`go_on` with the run in a folder, or a new one."""
    return go_on(path, config, free) if (path / "config.json").exists() else RunFolder.create(path, config)
