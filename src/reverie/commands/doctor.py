"""`reverie doctor`: what this machine can do, and whether everything that Reverie needs is in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie import machine, runtime
from reverie.report.output import Output, print_facts, print_json
from reverie.sweep.plans import VerdictConfig

_ROOM = 2e9
"""Bytes of memory and of disk that the main job may need."""

_OVERHEAD = 600.0
"""Minutes x GFLOP/s that the main job takes beside training: compilation, examinations, pages; measured on 2 cores."""


@dataclass(frozen=True)
class Doctor:
    """Report versions, devices, memory, disk, caches and speed, and what to expect of the main job.

    Example: reverie doctor
    """

    folder: Path = Path()
    """Where runs will be written."""
    output: Output = "table"
    """A table, or JSON."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` says what to do where something is wrong."""

    name: str
    value: str
    remedy: str = ""


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


def examine(folder: Path) -> list[Finding]:
    """Everything that is worth knowing; what is wrong has a remedy."""
    prepared = runtime.configure()
    from reverie.runs.versions import versions

    gflops = machine.gemm_gflops()
    training = sum(plan.loop.minutes or 0.0 for plan in VerdictConfig().plans())
    return [
        *(
            Finding(name.replace("_", " "), "unknown" if value is None else str(value))
            for name, value in versions().items()
        ),
        Finding("cores for this process", str(machine.cores())),
        _room("free memory", machine.free_memory(), "close other programs"),
        _room(f"free disk at {folder.absolute()}", machine.free_disk(folder), "make room, or choose another folder"),
        Finding("compiled programs", f"kept in {prepared.compile_cache}" if prepared.compile_cache else "not kept"),
        Finding("matrix products, float32", f"{gflops:,.0f} GFLOP/s"),
        Finding("main job", f"at most about {training + _OVERHEAD / gflops:.0f} minutes"),
    ]


def _room(name: str, free: int | None, remedy: str) -> Finding:
    if free is None:
        return Finding(name, "unknown")
    return Finding(name, f"{free / 1e9:.1f} GB", remedy=remedy if free < _ROOM else "")
