"""Write src/reverie/help/COMMAND.txt, what `reverie COMMAND --help` prints: `python docs/help.py`.

To make these texts imports JAX, which takes seconds; to print them takes none. A test holds them to what this program
would write.
"""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module

from reverie.cli import COMMANDS, HELP


def texts() -> Iterator[tuple[str, str]]:
    """Each command with its help, as wide as the terminal."""
    for name in COMMANDS:
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                import_module(f"reverie.commands.{name}").main(["--help"])
        except SystemExit:
            yield name, "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    for name, text in texts():
        (HELP / f"{name}.txt").write_text(text, encoding="utf-8")
