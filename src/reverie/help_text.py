"""What `--help` of a command prints, kept on disk: to make it anew imports JAX, which takes seconds.

A kept text is used only by the very same files of the package, words, width and kind of terminal.
"""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from reverie import files

KEPT = 100
"""Texts, of which the oldest go."""


def answer(words: Sequence[str], make: Callable[[], object]) -> None:
    """Print the help that `words` ask for; `make` prints it, and exits, where it is not known yet.

    Raises:
        SystemExit: from `make`.
    """
    path = _folder() / f"{_key(words)}.txt"
    try:
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    except OSError:
        pass
    screen, sys.stdout = sys.stdout, _Copy(sys.stdout)
    copy = sys.stdout
    try:
        make()
    except SystemExit as end:
        if not end.code:
            _keep(path, copy.getvalue())
        raise
    finally:
        sys.stdout = screen


class _Copy(io.StringIO):
    """What is written goes to the screen as well, which is still asked what it is."""

    def __init__(self, screen: TextIO):
        super().__init__()
        self._screen = screen

    def write(self, text: str) -> int:
        self._screen.write(text)
        return super().write(text)

    def flush(self) -> None:
        self._screen.flush()

    def isatty(self) -> bool:
        return self._screen.isatty()


def _keep(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(path.parent.glob("*.txt"), key=os.path.getmtime)[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        files.write_text(path, text)
    except OSError:  # it is asked for again some day
        return


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie" / "help"


def _key(words: Sequence[str]) -> str:
    root = Path(__file__).parent
    sources = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*.py"))]
    terminal = shutil.get_terminal_size(), sys.stdout.isatty(), os.environ.get("NO_COLOR"), os.environ.get("TERM")
    return hashlib.sha256(repr((sources, words, terminal, sys.version)).encode()).hexdigest()[:32]
