"""What `reverie sweep` and `reverie verdict` share: a file of settings before options, and what is printed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from reverie.report.output import Output, print_json, print_lines, print_table, say
from reverie.report.run_page import brief, training_table
from reverie.report.tables import rich_table
from reverie.runs.config_json import read_settings, with_changes
from reverie.runs.folder import RunFolder
from reverie.sweep.sweep import Swept


@dataclass(frozen=True)
class _File:
    """What has to be known before the rest is read."""

    config: Path | None = None


def parse_after_file[T: Any](default: T, prog: str, arguments: Sequence[str]) -> T:
    """The command that `arguments` ask for, whose `config` begins with what stands in the file of --config.

    Raises:
        ValueError: the file cannot be read, or has another configuration.
    """
    path = tyro.cli(_File, args=arguments, add_help=False, return_unknown_args=True)[0].config
    if path is not None:
        try:
            default = replace(default, config=with_changes(default.config, read_settings(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    options = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(type(default), prog=prog, args=arguments, default=default, config=options)


def print_swept(run: RunFolder, swept: Swept, output: Output) -> None:
    """Print the verdict of a sweep; then raise for the runs that failed."""
    if output == "json":
        print_json({"about": swept.about, "rows": swept.judged, "report": str(run.report)})
    else:
        print_lines(swept.about)
        print_table(rich_table(brief(swept.judged)))
        print_table(rich_table(training_table(swept.trained)))
        say(f"the page: {run.report}")
    if swept.failed is not None:
        raise swept.failed
