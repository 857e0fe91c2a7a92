"""The policy that makes weights: adaptive least-connections, the rule of `policies/adaptive.py`, for a proxy.

A proxy's `leastconn` sends a request to the server with the least (requests there + 1) / weight. With each server's
rate for its weight that is the rule, at c = 1; `slots` (maxconn) come before it. A rate is requests answered over time
busy, both forgotten exponentially, with one answer at the fleet's mean rate added. A poll catches a server busy for
just the share of time that it is busy, so a gap counts for busy where requests are there at its end. Tuned, weights may
be a power of the rates (`gain`; `AdaptiveWeights` in `policies/weights.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reverie.serve.balancer import Counts
from reverie.serve.settings import ServeConfig


@dataclass(frozen=True)
class Rates:
    """What is remembered of each server (N)."""

    answered: tuple[float, ...]
    """Requests answered without failure; forgotten with time, as is the next."""
    busy: tuple[float, ...]
    """Seconds in which requests were there, and what failures count for."""


@dataclass(frozen=True)
class Rule:
    """What the policy is, in full: enough to make its decisions again."""

    tau: float
    """Seconds after which an observation counts for 1/e."""
    failure: float
    """Seconds that a failure counts for."""
    gain: float = 1.0
    """Weights are rates to this power."""

    def fresh(self, counts: Counts) -> Rates:
        return nothing_known(len(counts.names))

    def watch(self, known: Rates, last: Counts, counts: Counts) -> Rates:
        """What is known after what was seen since `last`."""
        gap = max(counts.at - last.at, 0.0)
        return watch(self, known, gap, np.asarray(counts.in_progress), *ended_since(last, counts))

    def estimate(self, known: Rates, configured: np.ndarray) -> np.ndarray:
        """Requests a second [N] while busy."""
        return estimate(known, configured)

    def weigh(self, known: Rates, configured: np.ndarray) -> np.ndarray:
        """The weights [N], of any scale."""
        return estimate(known, configured) ** self.gain


def nothing_known(servers: int) -> Rates:
    return Rates((0.0,) * servers, (0.0,) * servers)


def ended_since(last: Counts, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Requests that ended, and those that failed [N], from one look at the balancer to the next."""
    ended = np.subtract(counts.started, counts.in_progress) - np.subtract(last.started, last.in_progress)
    return np.maximum(ended, 0), np.maximum(np.subtract(counts.failed, last.failed), 0)


def failures_as_slow(
    done: np.ndarray, failed: np.ndarray, busy: np.ndarray, failure: float
) -> tuple[np.ndarray, np.ndarray]:
    """Requests answered and time busy [N], with each failure as so many seconds without an answer: a server that fails
    at once would pass for a fast one."""
    return np.maximum(done - failed, 0), busy + failure * failed


def watch(rule: Rule, rates: Rates, gap: float, in_progress: np.ndarray, done: np.ndarray, failed: np.ndarray) -> Rates:
    """What is known after `gap` seconds, in which requests ended (`done`) or failed [N]."""
    answered, busy = failures_as_slow(done, failed, np.where(in_progress > 0, gap, 0.0), rule.failure)
    kept = math.exp(-gap / rule.tau)
    return Rates(
        tuple((kept * np.asarray(rates.answered) + answered).tolist()),
        tuple((kept * np.asarray(rates.busy) + busy).tolist()),
    )


def estimate(rates: Rates, configured: np.ndarray) -> np.ndarray:
    """Requests a second [N] while busy; `configured` weights stand for nominal speeds."""
    return estimated(np.asarray(rates.answered), np.asarray(rates.busy), configured)


def estimated(answered: np.ndarray, busy: np.ndarray, configured: np.ndarray) -> np.ndarray:
    """The same of what was counted [N]: as `estimated_rates` in `envs/fleet/weights.py`."""
    capacity = (busy * configured).sum()
    if answered.sum() < 1e-9 or capacity < 1e-9:
        return configured.astype(float)
    nominal = configured * (answered.sum() / capacity)
    return (answered + 1) / (busy + 1 / nominal)


def tuned_rule(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], config: ServeConfig) -> Rule:
    """The rule of a file of `reverie tune`."""
    speeds, sizes = arrays[".speeds"], arrays[".sizes"]
    service = sizes.mean() / speeds[speeds > 0].mean()  # as in `policies/tunable.py`
    found = dict(zip(described["names"], np.exp(arrays[".centre"]).tolist(), strict=True))
    tau = 20 * float(service) * found.get("tau", found.get("estimates.tau"))
    return Rule(tau * (config.unit or described.get("seconds") or 1.0), config.limits.failure, found.get("gain", 1.0))
