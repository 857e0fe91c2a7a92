"""The command `reverie`: finds the subcommand by its first word and turns errors into plain sentences.

Each subcommand is a module of `reverie.commands` with a function `main(arguments)`, imported when it is asked for, so
that `reverie --help` needs neither JAX nor the libraries that read arguments and draw.
"""

import difflib
import importlib
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TextIO

import reverie
from reverie import runtime, signals

COMMANDS = {
    "verdict": "train, evaluate and report: would a learned balancer beat the best rule, and by how much?",
    "simulate": "play the classical rules on a task family or on a trace",
    "train": "train an agent, or go on with a run that was stopped",
    "fit": "find from a balancer's log what its servers and requests are like, for all commands below",
    "tune": "tune a rule on a workload or a trace by evolution: a policy of a few numbers, without a neural network",
    "sweep": "train agents x families x seeds side by side, here or on Ray, and compare them",
    "evaluate": "play standard and adaptive trials with the agent of a run",
    "compare": "rank rules and trained agents on the same jobs, with paired statistics",
    "export": "write the policy of a run into one file that decides without trainer, replay or JAX",
    "report": "write the page of a run: learning curves, verdict, distributions, pictures",
    "serve": "set the weights of a real balancer (HAProxy, Envoy), in shadow first, within guards",
    "trace": "`reverie trace inspect FILE`: count, rate, burstiness and sizes of a recorded trace",
    "completion": "what bash and zsh need to complete commands and options",
    "doctor": "what this machine can do, and whether everything is in order",
}

HELP = Path(__file__).parent / "help"
"""What `--help` prints after the commands, and the first words of some, that docs/help.py names; it writes these texts,
as parsers that know all options import JAX."""

EXAMPLES = (
    "reverie verdict",
    "reverie simulate --family hard --policy sed --policy jsq",
    "reverie train --preset cpu --minutes 10 --out runs/first",
    "reverie sweep --agent dreamer --agent a2c --seeds 5",
    "reverie compare --trace conversation-like --run runs/first",
)

_GOES_ON = {"verdict", "sweep"}
"""When they are started again with the same words."""
_WITHOUT_JAX = {"trace", "serve", "completion"}
_HEARS_ITSELF = {"serve"}
"""SIGHUP means to it that its configuration is to be read again."""
_ERROR, _USAGE, _SIGNAL = 1, 2, 128
_TRACEBACK = "REVERIE_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` without the program's name, those of the process unless given.

    Returns the exit code: 0, 1 for an error, 2 for a wrong call, 128 + number where a signal ended the work.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _answer(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _ERROR


def _answer(words: list[str]) -> int:
    match words:
        case ["-h" | "--help", *_]:
            print(_help())
            return 0
        case ["--version", *_]:
            print(f"reverie {reverie.__version__}")
            return 0
        case [name, *_, "-h" | "--help"] if name in COMMANDS and (page := help_page(words[:-1])) in HELP.iterdir():
            print(page.read_text(encoding="utf-8"), end="")
            return 0
        case []:
            print(_help(), file=sys.stderr)
            return _USAGE
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"reverie: there is no command {name!r}; {hint}the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return _USAGE
    again = f". Go on with: {shlex.join(['reverie', *words])}" if name in _GOES_ON else ""
    warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]

    def run() -> None:
        with signals.at_once(name):
            if name not in _WITHOUT_JAX:
                runtime.configure()  # before anything computes
            command = importlib.import_module(f"reverie.commands.{name}")
        with nullcontext() if name in _HEARS_ITSELF else signals.heard(name), signals.told(again):
            command.main(rest)

    try:
        run()
    except KeyboardInterrupt as interrupt:  # training names the signal, and says what is saved
        print(f"reverie {name}: {str(interrupt) or 'interrupted'}{again}", file=sys.stderr)
        return _SIGNAL + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(_TRACEBACK) == "1" or not _is_plain(error):
            traceback.print_exc()
        else:
            print(f"reverie {name}: {_sentence(error)}", file=sys.stderr)
        return _ERROR
    return 0


def help_page(words: Sequence[str]) -> Path:
    """Where the help stands that follows these words, if it is one of those that are stored."""
    return HELP / f"{'_'.join(words)}.txt"


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"{reverie.__doc__}",
            "",
            "usage: reverie COMMAND [OPTIONS]",
            "       reverie COMMAND --help",
            "       reverie --version",
            "",
            "commands:",
            *(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()),
            "",
            "examples:",
            *(f"  {example}" for example in EXAMPLES),
            "",
            "environment:",
            f"  {_TRACEBACK}=1         show where in the code an error arose",
            "  REVERIE_COMPILE_CACHE=PATH  where compiled programs are kept; 0 keeps none",
        ]
    )


def _is_plain(error: Exception) -> bool:
    """Whether an error is the user's to mend: the system's, or one that Reverie raises and words itself.

    What other libraries raise is a mistake of ours and keeps its traceback.
    """
    ours = _raised_in(error.__traceback__).startswith("reverie.")
    worded = ValueError, ArithmeticError, ModuleNotFoundError
    return isinstance(error, OSError) or (ours and isinstance(error, worded))


def _raised_in(trace: TracebackType | None) -> str:
    """The module of the line that raised."""
    name = ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return name


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a plain sentence; the arguments are those of `warnings.showwarning`."""
    if runtime.remove_damaged_programs(str(message)):
        message = "a compiled program in the cache was damaged and is replaced"
    print(f"reverie: {message}", file=sys.stderr)
