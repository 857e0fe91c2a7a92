"""What this machine can do, and what the main job, `reverie verdict`, will find there."""

from dataclasses import dataclass
from pathlib import Path

from reverie import machine, runtime
from reverie.sweep.plans import VerdictConfig

_ROOM = 2e9
"""Bytes of memory and of disk that the main job may need."""

_OVERHEAD = 600.0
"""Minutes x GFLOP/s that the main job takes beside training: compilation, examinations, pages; measured on 2 cores."""


@dataclass(frozen=True)
class Finding:
    """One line of what is found; `remedy` says what to do where something is wrong."""

    name: str
    value: str
    remedy: str = ""


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
