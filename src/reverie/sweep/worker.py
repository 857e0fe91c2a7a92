"""What a worker process does: train one run, alone and on one thread, until it is finished, fails or is told to stop.

On this machine a worker is `python -m reverie.sweep.worker FOLDER [COMMAND ...]`; on a Ray cluster it is a process
of Ray's that calls `work`. The folder has the configuration, so nothing else need be sent. Nothing heavy is imported
before `work`, as settings of the process come first.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

LOG = "worker.log"
"""In the run's folder: warnings, tracebacks, and what the system's libraries say."""

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def work(folder: Path, command: Sequence[str]) -> str | None:
    """Train the run in a folder to its end; returns None, or in a sentence why that failed.

    Arguments: `command`, put on record in the run.
    Errors: Interrupted (a KeyboardInterrupt) where a signal stopped it; all is saved.
    """
    # Workers share the cores. It is read when JAX first computes, and the numbers must not depend on who is beside us.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    try:
        from reverie import runtime
        from reverie.runs.build import build, stored
        from reverie.runs.folder import RunFolder
        from reverie.sweep.training import train_run

        runtime.configure()
        run = RunFolder.open(folder)
        config = stored(run)
        train_run(config, build(config), run, command, quiet=True)
    except Exception as error:
        with (folder / LOG).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return str(error) or type(error).__name__
    return None


def main() -> int:
    """Work on the folder that the first word names; the exit code is 0, 1 for a failure, 128 + number for a signal.

    Standard input is a pipe from whoever started this process: when that closes, it is gone, and so should we be.
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        words = work(Path(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt as interrupt:
        return 128 + getattr(interrupt, "number", signal.SIGINT)
    if words is not None:
        print(words)
    return int(words is not None)


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
