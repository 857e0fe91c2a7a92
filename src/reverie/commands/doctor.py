"""`reverie doctor`: what this machine can do, and whether everything that Reverie needs is in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie.report.output import Output, print_facts, print_json
from reverie.sweep.doctor import examine


@dataclass(frozen=True)
class Doctor:
    """Report versions, devices, memory, disk, caches and speed, and what to expect of the main job.

    Example: reverie doctor
    """

    folder: Path = Path()
    """Where runs will be written."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Doctor:
    return tyro.cli(Doctor, prog="reverie doctor", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    findings = examine(asked.folder)
    if asked.output == "json":
        print_json([vars(finding) for finding in findings])
    else:
        print_facts("This machine", [(f.name, f.value) for f in findings])
    if wrong := [f"{f.name}: {f.remedy}" for f in findings if f.remedy]:
        raise OSError("; ".join(wrong))
