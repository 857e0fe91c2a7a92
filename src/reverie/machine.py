"""What this machine has: cores, memory, disk and the speed of its matrix products."""

import os
import shutil
import time
from pathlib import Path


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


def cores() -> int | None:
    """Those that this process may use, None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def free_memory() -> int | None:
    """Bytes that programs can still take, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder lies.

    Raises:
        NotADirectoryError: it is no folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    return shutil.disk_usage(folder).free
