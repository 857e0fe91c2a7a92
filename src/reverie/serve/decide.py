"""One decision: from what the balancer tells to the weights that may be sent. Pure, so that an audit can make it again.

Arm `control` is the configured weights: the other half of a trial. All times are of the monotonic clock; a jump of the
wall clock changes nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from reverie.serve.balancer import Counts
from reverie.serve.guards import GUARDS, Guard, Situation, guard, scaled
from reverie.serve.rates import Rates, ended_since
from reverie.serve.settings import ServeConfig
from reverie.serve.trained import Seen

Arm = Literal["policy", "control"]

type Weigh = Callable[[Any, np.ndarray], np.ndarray]


@runtime_checkable
class Policy(Protocol):
    """What makes weights: a rule, or an agent. What it remembers (`known`) is its own affair."""

    @property
    def tau(self) -> float:
        """Seconds after which it forgets to 1/e."""
        ...

    def fresh(self, counts: Counts) -> Any:
        """What is remembered before anything was seen."""
        ...

    def watch(self, known: Any, last: Counts, counts: Counts) -> Any:
        """What is remembered after what was seen since `last`."""
        ...

    def estimate(self, known: Any, configured: np.ndarray) -> np.ndarray:
        """Requests a second of each server [N] while busy; `configured` weights stand for nominal speeds."""
        ...

    def weigh(self, known: Any, configured: np.ndarray) -> np.ndarray:
        """The weights [N], of any scale."""
        ...


@dataclass(frozen=True)
class Known:
    """What is carried from decision to decision."""

    at: float
    """When the last was made."""
    counts: Counts | None
    """What was seen then."""
    learned: Rates | Seen | None
    """What the policy remembers; nothing before it begins."""
    ended: tuple[float, ...]
    """Requests that ended lately at each server, and below how many of them failed; forgotten with time."""
    failed: tuple[float, ...]
    held: tuple[float, ...]
    """Weights as decided last, the largest at 256 or on its way there."""


@dataclass(frozen=True)
class Decision:
    """What was decided, and why."""

    raw: tuple[float, ...]
    """The policy's word."""
    weights: dict[str, int] | None
    """To be sent, for the servers whose weights are ours to set; None: the configured ones."""
    fired: tuple[str, ...]
    """Guards that changed it; the last one, where there are no weights; or `control`."""


def fresh(at: float, counts: Counts | None) -> Known:
    """What is known before anything was decided: the configured weights."""
    count = len(counts.names) if counts else 0
    none = (0.0,) * count
    return Known(at, counts, None, none, none, _configured(counts) if counts else ())


def decide(
    config: ServeConfig,
    rule: Policy,
    before: Known,
    counts: Counts,
    now: float,
    arm: Arm = "policy",
    halted: bool = False,
    weigh: Weigh | None = None,
    guards: Mapping[str, Guard] = GUARDS,
) -> tuple[Decision, Known]:
    """The decision at the time `now`, and what is known after it.

    Arguments: `counts`, the newest there are; `halted`, whether a trial was lost; `weigh` and `guards`, for tests.
    """
    last = before.counts
    if last is None or last.names != counts.names:
        before, last = fresh(before.at, counts), counts
    elif last.process != counts.process or counts.at - last.at > config.limits.age:
        last = counts  # counters begin anew, or nobody looked for a while; what was learned of the servers still holds
    gap = max(counts.at - last.at, 0.0)
    ended, failed = ended_since(last, counts)
    learned = rule.watch(rule.fresh(counts) if before.learned is None else before.learned, last, counts)
    kept = math.exp(-gap / config.limits.forgets)
    all_ended = kept * np.asarray(before.ended) + np.maximum(ended, failed)
    all_failed = kept * np.asarray(before.failed) + failed
    raw = (weigh or rule.weigh)(learned, np.asarray(counts.configured))
    since = now - before.at
    situation = Situation(
        config.limits,
        known=sorted(counts.names) == sorted(config.names),
        age=max(now - counts.at, since - 1 / config.hz),
        since=max(since, 0.0),
        held=np.asarray(before.held),
        failed=all_failed / np.maximum(all_ended, 1),
        failed_fleet=all_failed.sum() / max(all_ended.sum(), 1),
        halted=halted,
    )
    allowed, fired = guard(raw, situation, guards)
    if arm == "control":
        allowed, fired = None, ("control",)
    weights = None if allowed is None else _sent(counts, allowed)
    held = _configured(counts) if allowed is None else tuple(allowed.tolist())
    after = Known(now, counts, learned, tuple(all_ended.tolist()), tuple(all_failed.tolist()), held)
    return Decision(tuple(raw.tolist()), weights, fired), after


def _configured(counts: Counts) -> tuple[float, ...]:
    return tuple(scaled(np.asarray(counts.configured, float)).tolist())


def _sent(counts: Counts, allowed: np.ndarray) -> dict[str, int]:
    rounded = np.clip(np.rint(allowed), 1, 256).astype(int).tolist()
    rows = zip(counts.names, counts.takes, rounded, strict=True)
    return {name: weight for name, takes, weight in rows if takes}
