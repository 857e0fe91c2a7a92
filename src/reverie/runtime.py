"""Set-up of the process, done once before JAX is first used: platform, compilation cache; and memory that it kept.

Importing this module does not import JAX, so that the command line can answer `--help` without it.
"""

import ctypes
import hashlib
import os
import platform as machine
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CACHE_LIMIT = 2**30
"""Bytes to which the compilation cache is cut back when a process starts; what was compiled first goes first."""


@dataclass(frozen=True)
class Runtime:
    """What `configure` has done."""

    compile_cache: Path | None
    """The folder of compiled programs, None where there is none."""


def configure(compile_cache: bool = True, platform: Literal["cpu", "cuda", "tpu"] | None = None) -> Runtime:
    """Set up this process; to be called before anything computes with JAX. Calling it again is harmless.

    Arguments:
        compile_cache: keep compiled programs on disk, so that the next start is quick: in the user's cache folder, by
            version of jaxlib and kind of CPU. `REVERIE_COMPILE_CACHE=0` switches it off, `REVERIE_COMPILE_CACHE=PATH`
            puts it elsewhere; a folder chosen by `JAX_COMPILATION_CACHE_DIR` is left as it is.
        platform: what to compute on; None takes the fastest that JAX finds.

    Raises:
        ValueError: the platform is not there, or JAX is already at work on another one.
        OSError: the cache folder cannot be made.
    """
    import jax

    if platform is not None:
        _choose_platform(platform)
    if not compile_cache or os.environ.get("REVERIE_COMPILE_CACHE") == "0":
        return Runtime(None)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs too: there are many
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Runtime(Path(jax.config.jax_compilation_cache_dir))


def release_memory() -> None:
    """Hand back to the system what this process has freed; to be called between compiling and a long computation.

    A compiler leaves hundreds of megabytes of freed memory in pieces too small for the buffers of a training step, and
    glibc would keep them beside those to the end.
    """
    if machine.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def remove_damaged_programs(warning: str) -> bool:
    """Whether a warning is JAX's about a damaged program in the compilation cache; it is then removed.

    JAX compiles the program anew, but writes over no file: without this it would warn at each start.
    """
    found = re.match(r"Error reading persistent compilation cache entry for '([\w.<>-]+)'", warning)
    if found is None:
        return False
    import jax

    for path in Path(jax.config.jax_compilation_cache_dir).glob(f"{found[1]}-*-cache"):
        path.unlink(missing_ok=True)
    return True


def cpu_model() -> str:
    """The name of this machine's processor."""
    return _cpuinfo("model name") or machine.processor() or machine.machine()


def _choose_platform(platform: str) -> None:
    import jax

    # The CPU stays reachable beside an accelerator.
    jax.config.update("jax_platforms", platform if platform == "cpu" else f"{platform},cpu")
    try:
        available = jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(f"the platform {platform!r} is not available: {error}") from error
    if jax.devices()[0] not in available:
        raise ValueError(
            f"JAX already works on {jax.devices()[0].platform!r}; choose {platform!r} before its first use"
        )


def _cache_folder() -> Path:
    """Make the folder for this version and processor, and cut the whole cache back to its limit.

    Programs compiled for another processor could use instructions that this one lacks, and homes are shared.
    """
    import jaxlib

    chosen = os.environ.get("REVERIE_COMPILE_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(chosen).expanduser().absolute() if chosen else Path(user) / "reverie" / "xla"
    processor = f"{machine.machine()} {cpu_model()} {_cpuinfo('flags|Features')}"
    folder = root / f"jaxlib-{jaxlib.__version__}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = (
            f"cannot make the compilation cache {folder} ({error.strerror}); set REVERIE_COMPILE_CACHE to 0 or a path"
        )
        raise OSError(error.errno, message) from error
    _trim(root, CACHE_LIMIT)
    return folder


def _trim(root: Path, limit: int) -> None:
    """Remove the oldest programs under `root` until the rest takes at most `limit` bytes."""
    entries = []
    for path in root.glob("*/*-cache"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process trims as well
            continue
        entries.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def _cpuinfo(field: str) -> str:
    """A line of Linux's description of the processor, empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^(?:{field})\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""
