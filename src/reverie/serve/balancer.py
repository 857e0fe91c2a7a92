"""What a balancer in front of real servers tells and takes: the contract of every driver.

Standard library alone, as the dead-man's switch (`deadman.py`) uses it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Counts:
    """What a balancer knows at one moment, of servers in its own order (N)."""

    at: float
    """When it was asked, in seconds of the monotonic clock."""
    process: str
    """Which process answered: another one has begun to count anew, and knows no weights but its configured ones."""
    names: tuple[str, ...]
    in_progress: tuple[int, ...]
    """Requests at the servers, without those that wait in the balancer."""
    started: tuple[int, ...]
    """Requests that were sent to them since the process began."""
    failed: tuple[int, ...]
    """Failures since then: refused or broken connections, retries and answers of 500 and above."""
    weights: tuple[int, ...]
    """As they are now."""
    configured: tuple[int, ...]
    """As the balancer's own configuration has them."""
    takes: tuple[bool, ...]
    """Whether weights are ours to set: not where a server is down, drained or in maintenance."""
    waiting: int = 0
    """Requests that wait in the balancer; none where it has no queue."""

    @property
    def at_defaults(self) -> bool:
        """Whether all weights that are ours to set are the configured ones."""
        triples = zip(self.takes, self.weights, self.configured, strict=True)
        return all(weight == configured for takes, weight, configured in triples if takes)


@runtime_checkable
class Balancer(Protocol):
    """A driver. All calls raise OSError where the balancer does not answer, ValueError where it answers nonsense."""

    def observe(self) -> Counts: ...

    def apply(self, weights: Mapping[str, int]) -> None:
        """Set weights (1 to 256) by the names of servers."""
        ...

    def defaults(self) -> None:
        """Set the configured weights again, of all servers whose weights are ours to set."""
        ...

    def identity(self) -> str:
        """Which process answers now (`Counts.process`)."""
        ...
