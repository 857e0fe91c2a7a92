"""A sweep: agents are trained, examined beside the rules, and compared on a page. `reverie verdict` is a small one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reverie.evaluate.about import about_view
from reverie.evaluate.agents import load_agents, training_runs
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.results import Examination, Results
from reverie.report.output import say
from reverie.report.run_page import write_report
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig
from reverie.sweep.engines import Engine
from reverie.sweep.plans import SweepConfig, VerdictConfig
from reverie.sweep.side_by_side import RunsFailedError, train_all
from reverie.sweep.training import go_on, open_or_create
from reverie.tables import Row


class Swept(NamedTuple):
    """What came of a sweep."""

    about: list[str]
    """What is to be known before the verdict: how the trace is played, and what is seen."""
    judged: list[Row]
    """The verdict, as `evaluate.statistics.verdict` has it."""
    trained: list[RunFolder]
    """The runs that are finished, in the order of the plans."""
    failed: RunsFailedError | None
    """Those that are not."""


def open_sweep(path: Path, config: SweepConfig | VerdictConfig) -> RunFolder:
    """The folder of a sweep, new or begun before with the same configuration, maybe with fewer seeds: what is there is
    kept.

    Raises:
        FileExistsError, ValueError: the folder holds something else.
    """
    if (path / "config.json").exists() and config.seeds > RunFolder(path).config(type(config)).seeds:
        return go_on(path, config, free=("seeds:",))
    return open_or_create(path, config)


def _check_names(run: RunFolder) -> None:
    """Errors: ValueError where a run within a sweep is called otherwise than its agent: names have changed since."""
    for each in training_runs(run):
        config = each.config(TrainConfig) if each.path != run.path else None
        if config and each.path.name != f"{config.name}-{config.seed}":
            raise ValueError(
                f"{each.path} is of an older version, and its agent is called {config.name} now: give another --out"
            )


def sweep(
    run: RunFolder,
    plans: Sequence[TrainConfig],
    examination: Examination,
    engine: Engine,
    *,
    title: str,
    command: Sequence[str],
    one_by_one: bool = False,
    quiet: bool = False,
) -> Swept:
    """Train the plans in folders within `run`, examine the agents, and write the page; go on with what is there.

    Arguments: `title` of the page; `command`, put on record in each run (as in `sys.argv`); `one_by_one`, examine each
    agent as soon as it is trained, so that the page has first answers early; `quiet`, show no progress.

    Raises:
        RunsFailedError: no run could be trained.
        ValueError, FileExistsError, KeyboardInterrupt: as `train_all`.
    """
    examination.read()  # a mistake in it should not be found after training
    view = plans[0].fleet.view  # presets of one name agree on it
    _check_names(run)
    folders = {run.path / f"{plan.name}-{plan.seed}": plan for plan in plans}
    batches = [{folder: plan} for folder, plan in folders.items()] if one_by_one else [folders]
    trained: list[RunFolder] = []
    failures: dict = {}
    first: dict[str, Contestant] = {}
    with run.writer(command):
        results = Results(run.tables, examination)
        about = [*results.about, about_view(view)]
        say("\n".join(about))
        say("examining the classical rules")
        results.examine_rules(view)
        if not run.report.exists():
            results.watch([], view)
            write_report(run, [], results, title, view)
            say(f"first pictures: {run.report}")
        for batch in batches:
            try:
                done = train_all(batch, engine, command=command, quiet=quiet)
            except RunsFailedError as error:
                failures |= error.failures
                done = [RunFolder.open(folder) for folder in batch if folder not in error.failures]
            for each in done:
                (agent,) = load_agents([each.path])
                first.setdefault(agent.name, agent)
                say(f"examining {agent.name}, seed {agent.training_seed}")
                results.examine_agent(agent)
            trained += done
            if batch is not batches[-1]:
                write_report(run, trained, results, title)
        failed = RunsFailedError(failures, len(plans)) if failures else None
        if failed is not None and not trained:
            raise failed
        results.watch([*first.values()], view)
        return Swept(about, write_report(run, trained, results, title), trained, failed)
