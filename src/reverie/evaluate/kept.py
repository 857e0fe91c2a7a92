"""Tables that judging the agent of a training run leaves in its folder."""

from collections.abc import Callable, Mapping

from jaxtyping import PyTree

from reverie.files import locked, seal
from reverie.runs import loop
from reverie.runs.build import build, stored
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.tables import Row, write_csv
from reverie.train.trainers import WorldTrainer


def training_of(run: RunFolder) -> TrainConfig | None:
    """The configuration of a training run; None where it is none, such as that of a verdict."""
    described = run.config_json()
    if not isinstance(described, dict) or described.get("class") != TrainConfig.__name__:
        return None
    return run.config(TrainConfig)


def kept(
    run: RunFolder, trust: bool, make: Callable[[TrainConfig, WorldTrainer, int, PyTree], Mapping[str, list[Row]]]
) -> Mapping[str, list[Row]]:
    """The tables, by name, that `make` says of a run as its newest checkpoint has it: of the configuration, the
    trainer, the step and the state. They are written and sealed.

    Errors: FileNotFoundError where there is no checkpoint yet, ValueError where the game is in a module that is to be
    imported and there is no `trust`, BlockingIOError where another process evaluates the run.
    """
    run.tables.mkdir(exist_ok=True)
    with locked(run.tables / "lock", str(run.tables)):
        config = stored(run, trust)
        trainer = build(config)
        step, state = loop.newest_state(trainer, run)
        tables = make(config, trainer, step, state)
        for name, rows in tables.items():
            write_csv(run.tables / name, rows)
        seal(run.tables, list(tables))
    return tables
