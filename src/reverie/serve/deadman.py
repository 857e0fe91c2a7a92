"""The dead-man's switch: a process of its own that sets the configured weights where the agent shows no sign of life.

    python -m reverie.serve.deadman STATE SECONDS DRIVER SOCKET BACKEND ENDPOINTS [--now | PID]

The agent writes into STATE/alive, at each decision that went well, the time of the monotonic clock, which all processes
of a machine share, and whether weights of its own may be in the balancer. With the agent's PID the switch ends with it,
once nothing is left behind. Standard library alone.
"""

import fcntl
import os
import sys
import time
from pathlib import Path

from reverie.serve.balancer import Balancer
from reverie.serve.drivers import DRIVERS

ALIVE, LOCK = "alive", "deadman.lock"
_EVERY = 0.1
"""Seconds between two looks."""


class SignOfLife:
    """What the agent writes."""

    def __init__(self, state: Path):
        state.mkdir(parents=True, exist_ok=True)
        self._file = os.open(state / ALIVE, os.O_WRONLY | os.O_CREAT, 0o644)

    def give(self, at: float, armed: bool) -> None:
        """I lived at that time; `armed`, whether weights of mine may be in the balancer."""
        os.pwrite(self._file, f"{at:020.6f} {armed:d}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._file)


def is_dead(text: str, now: float, seconds: float) -> bool:
    """Whether weights have been left behind, by what the agent wrote last. A time to come is of before a reboot."""
    if len(text) != len(f"{0:020.6f} 0\n"):
        return False  # it has not begun
    at, armed = text.split()
    return armed == "1" and not 0 <= now - float(at) <= seconds


def restore(balancer: Balancer) -> bool:
    """Set the configured weights where others are; whether they are there now."""
    try:
        if not balancer.observe().at_defaults:
            balancer.defaults()
        return balancer.observe().at_defaults
    except (OSError, ValueError):
        return False


def watch(balancer: Balancer, state: Path, seconds: float, parent: int | None) -> None:
    """Look, for ever; or until the process that began this one, `parent`, is gone and has left nothing behind."""
    restored = ""
    while True:
        text = _read(state / ALIVE)
        dead = text != restored and is_dead(text, time.monotonic(), seconds)
        if dead and restore(balancer):
            print(f"deadman: no sign of life for {seconds} s; the configured weights are back", file=sys.stderr)
            restored, dead = text, False
        if parent is not None and os.getppid() != parent and (text == restored or not text.endswith("1\n")):
            return
        time.sleep(_EVERY)


def is_on_duty(state: Path) -> bool:
    """Whether a switch is running for this folder."""
    with (state / LOCK).open("a") as lock:
        return not _taken(lock.fileno())


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def main(arguments: list[str]) -> int:
    state, seconds, driver, path, backend, endpoints, *how = arguments
    balancer = DRIVERS[driver].connect(Path(path), backend, Path(endpoints) if endpoints else None)
    if how == ["--now"]:
        return 0 if restore(balancer) else 1
    Path(state).mkdir(parents=True, exist_ok=True)
    with (Path(state) / LOCK).open("a") as lock:
        if not _taken(lock.fileno()):
            return 0  # another one is on duty
        watch(balancer, Path(state), float(seconds), int(how[0]) if how else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
