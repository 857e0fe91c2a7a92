"""Write src/reverie/help/, what `reverie COMMAND --help` prints: `python docs/help.py`.

To make these texts imports JAX, which takes seconds; to print them takes none. A test holds them to what this program
would write.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import get_args, get_type_hints

from reverie.cli import COMMANDS, help_page
from reverie.settings.presets import PRESETS

_, *OF_SERVE = get_args(get_type_hints(import_module("reverie.commands.serve").parse)["return"])
PARTS = (("trace", "inspect"), *(("serve", part.__name__.lower()) for part in OF_SERVE))
AGENTS = tuple(("train", "--agent", agent) for agent in PRESETS if agent != "dreamer")
"""Other agents than Dreamer that learn fleets: their options differ."""


def texts() -> Iterator[tuple[Sequence[str], str]]:
    """What stands before `--help`, and what it prints then, as wide as the terminal."""
    for words in (*((name,) for name in COMMANDS), *PARTS, *AGENTS):
        name, *rest = words
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                import_module(f"reverie.commands.{name}").main([*rest, "--help"])
        except SystemExit:
            yield words, "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    for words, text in texts():
        help_page(words).write_text(text, encoding="utf-8")
