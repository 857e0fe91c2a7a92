"""What a result depends on besides its configuration: the versions, the revision of the code and the machine.

Same versions, same machine, same configuration: same numbers. Collecting never fails; what cannot be found is None.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

import reverie
from reverie.runtime import cpu_model

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")


def versions() -> dict[str, str | int | bool | None]:
    """Versions of Python and of the packages that compute, revision of the code, operating system, CPU and device."""
    devices = jax.devices()
    revision, modified = code_revision(Path(reverie.__file__).parent)
    return {
        "python": platform.python_version(),
        "reverie": reverie.__version__,
        **{package: metadata.version(package) for package in _PACKAGES},
        "git_revision": revision,
        "git_modified": modified,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "device": f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})",
    }


def code_revision(folder: Path) -> tuple[str | None, bool | None]:
    """The git revision of the code in `folder`, and whether the code there differs from it.

    (None, None) where the folder is not part of a git checkout: an installed package, say, or one that merely lies in
    somebody's repository and is not tracked by it.
    """
    tracked = _git(folder, "ls-files", "--", ".")
    revision = _git(folder, "rev-parse", "--verify", "HEAD")
    if not tracked or not revision:
        return None, None
    return revision, bool(_git(folder, "status", "--porcelain", "--", "."))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
