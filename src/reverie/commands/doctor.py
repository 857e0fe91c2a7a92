"""`reverie doctor`: what this machine can do, and whether everything that Reverie needs is in order."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from reverie import runtime
from reverie.commands.output import Output, print_facts, print_json
from reverie.commands.verdict import VerdictConfig

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

    gflops = gemm_gflops()
    training = sum(plan.loop.minutes or 0.0 for plan in VerdictConfig().plans(0))
    return [
        *(
            Finding(name.replace("_", " "), "unknown" if value is None else str(value))
            for name, value in versions().items()
        ),
        Finding("cores for this process", str(_cores())),
        _room("free memory", _free_memory(), "close other programs"),
        _room(f"free disk at {folder.absolute()}", _free_disk(folder), "make room, or choose another folder"),
        Finding("compiled programs", f"kept in {prepared.compile_cache}" if prepared.compile_cache else "not kept"),
        Finding("freed memory", "kept by the C library (faster)" if prepared.fast_malloc else "given back at once"),
        Finding("matrix products, float32", f"{gflops:,.0f} GFLOP/s"),
        Finding("main job", f"at most about {training + _OVERHEAD / gflops:.0f} minutes"),
    ]


def gemm_gflops(size: int = 2048, seconds: float = 1.0) -> float:
    """The rate of float32 matrix products on the default device, in 1e9 operations per second: the best of many."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best, until = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2e-9 * size**3 / best


def _room(name: str, free: int | None, remedy: str) -> Finding:
    if free is None:
        return Finding(name, "unknown")
    return Finding(name, f"{free / 1e9:.1f} GB", remedy=remedy if free < _ROOM else "")


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _free_memory() -> int | None:
    """Bytes that programs can still take, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def _free_disk(folder: Path) -> int:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    return shutil.disk_usage(folder).free
