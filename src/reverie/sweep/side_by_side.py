"""Many training runs side by side, each in a folder and a process of its own: for `reverie sweep` and for experiments.

A run that is finished is recognised and costs nothing, a half-done one goes on from its checkpoint, and one whose
worker was killed is taken up again. Where the workers live is said in `engines.py`, what is shown in `board.py`.
"""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.runs.loop import is_finished
from reverie.settings.config import TrainConfig
from reverie.sweep.board import Board
from reverie.sweep.engines import Engine, Poll

_PAUSE = 0.1  # seconds between two looks at the workers


class RunsFailedError(ValueError):
    """Some runs could not be trained; all others are finished."""

    def __init__(self, failures: Mapping[Path, str], total: int):
        """Arguments: `failures`, by folder why; `total`, the number of all runs."""
        lines = "".join(f"\n  {folder}: {words}" for folder, words in failures.items())
        super().__init__(f"{len(failures)} of {total} runs failed, the others are finished:{lines}")
        self.failures = dict(failures)


def train_all(
    plans: Mapping[Path, TrainConfig], engine: Engine, *, command: Sequence[str], retries: int = 3, quiet: bool = False
) -> list[RunFolder]:
    """Train each configuration in its folder, as many at a time as the engine has workers; go on with what is there.

    Arguments: `plans`, what is trained in which folder; `command`, put on record in each run (as in `sys.argv`);
    `retries`, how often a run whose worker was killed is taken up again, by this call; `quiet`, show no progress.
    Returns the runs, in the order of `plans`.

    Raises:
        ValueError: a configuration is impossible, or another one than its folder was begun with; nothing was begun.
        FileExistsError: a folder holds something else.
        RunsFailedError: runs that failed, or whose worker was killed too often; all others are finished.
        KeyboardInterrupt: from the keyboard; all runs are saved, and go on when this is called again.
    """
    runs = _open_all(plans)
    waiting = deque(folder for folder in plans if not is_finished(plans[folder].loop, runs[folder]))
    if not waiting:
        return list(runs.values())
    working: dict[Path, Poll] = {}
    killed: Counter[Path] = Counter()
    failures: dict[Path, str] = {}
    with Board(plans, waiting, quiet=quiet) as board, engine:
        while waiting or working:
            while waiting and len(working) < engine.workers:
                folder = waiting.popleft()
                working[folder] = engine.launch(folder, command)
                board.tell(folder, "running")
            for folder, poll in list(working.items()):
                if (ending := poll()) is None:
                    continue
                del working[folder]
                if ending.how == "done":
                    board.tell(folder, "done")
                elif ending.how == "killed" and killed[folder] < retries:
                    killed[folder] += 1
                    waiting.appendleft(folder)
                    board.tell(folder, "waiting", f"{ending.words}; it is taken up again")
                else:
                    times = f", {killed[folder] + 1} times" if ending.how == "killed" else ""
                    failures[folder] = ending.words + times
                    board.tell(folder, "failed", failures[folder])
            board.refresh()
            time.sleep(_PAUSE)
    if failures:
        raise RunsFailedError(failures, len(plans))
    return list(runs.values())


def _open_all(plans: Mapping[Path, TrainConfig]) -> dict[Path, RunFolder]:
    """The runs, old and new; new folders are made only when all else was found to be in order."""
    if len({folder.resolve() for folder in plans}) < len(plans):
        raise ValueError(f"each run needs a folder of its own, got {', '.join(map(str, plans))}")
    old = {folder: RunFolder.open(folder, plans[folder]) for folder in plans if (folder / "config.json").exists()}
    for setting in dict.fromkeys(replace(config, seed=0, label=None) for config in plans.values()):
        build(setting)
    return {folder: old.get(folder) or RunFolder.create(folder, config) for folder, config in plans.items()}
