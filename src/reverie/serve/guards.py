"""What stands between a policy's word and the balancer: pure functions, each of which knows one danger.

A guard takes what is wanted (a positive number for each server, of any scale) and the situation, and gives what may be
wanted instead; None sends all servers back to their configured weights. They act in the order of `GUARDS`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from reverie.serve.settings import Limits

LARGEST = 256.0
"""Weights are given as if the largest were this."""

type Weights = np.ndarray  # [N]


class Situation(NamedTuple):
    """What guards judge by; servers (N) in the order of the balancer."""

    limits: Limits
    known: bool
    """Whether the balancer has the servers that the policy is configured for, and no others."""
    age: float
    """Seconds since what the policy knows was seen, or by which this decision is late."""
    since: float
    """Seconds since the last decision."""
    held: Weights
    """What was decided last."""
    failed: Weights
    """Share of failures among what ended lately at each server."""
    failed_fleet: float
    halted: bool
    """Whether a trial was lost (`trial.py`) and nobody has armed the policy again."""


type Guard = Callable[[Weights, Situation], Weights | None]


def scaled(weights: Weights) -> Weights:
    """The same shares, the largest weight at 256."""
    return weights / weights.max() * LARGEST


def halted(weights: Weights, now: Situation) -> Weights | None:
    """A policy that was worse than control stays out until a person says otherwise."""
    return None if now.halted else weights


def known(weights: Weights, now: Situation) -> Weights | None:
    """Numbers for other servers than those that are there mean nothing."""
    return weights if now.known else None


def fresh(weights: Weights, now: Situation) -> Weights | None:
    """Stale knowledge is no knowledge; nor is it while the process itself stood still."""
    return weights if now.age <= now.limits.age else None


def finite(weights: Weights, now: Situation) -> Weights | None:
    """Numbers, above 0."""
    return scaled(weights) if np.isfinite(weights).all() and (weights > 0).all() else None


def spread(weights: Weights, now: Situation) -> Weights | None:
    """At most half of the servers would be left with the least weight."""
    at_floor = scaled(weights) <= now.limits.floor
    return weights if at_floor.sum() <= len(weights) / 2 else None


def capped(weights: Weights, now: Situation) -> Weights:
    """No server has more than its largest share of all weight."""
    count = len(weights)
    cap = max(0.5, 2 / count) if now.limits.share is None else now.limits.share
    shares, order = weights / weights.sum(), np.argsort(-weights)
    for over in range(count):  # so many servers are held at the cap; the others keep their proportions
        rest = order[over:]
        left = (1 - over * cap) / shares[rest].sum()
        if shares[rest[0]] * left <= cap * (1 + 1e-12):
            break
    else:
        return np.ones(count)
    return np.where(np.isin(np.arange(count), rest), shares * left, cap)


def floored(weights: Weights, now: Situation) -> Weights:
    """Every server keeps being tried; a weight of 0 would drain it."""
    return np.maximum(scaled(weights), now.limits.floor)


def not_raised(weights: Weights, now: Situation) -> Weights:
    """A server that fails more than the fleet does gets no more than it has."""
    return np.where(now.failed > now.failed_fleet, np.minimum(weights, now.held), weights)


def stepped(weights: Weights, now: Situation) -> Weights:
    """Weights move slowly, so that what they do is seen before they do more of it."""
    factor = now.limits.step ** min(now.since, 1.0)
    return np.clip(weights, now.held / factor, now.held * factor)


GUARDS: Mapping[str, Guard] = {
    "finite": finite,
    "halted": halted,
    "known": known,
    "fresh": fresh,
    "spread": spread,
    "capped": capped,
    "floored": floored,
    "not_raised": not_raised,
    "stepped": stepped,
}


WHY: Mapping[str, str] = {
    "finite": "the policy's word is not a positive number for each server",
    "halted": "a trial was lost, and `reverie serve rearm` has not been given since",
    "known": "the balancer has other servers than the configuration",
    "fresh": "what is known is too old, or the process stood still",
    "spread": "the policy's weights lie so far apart that more than half of the servers would have the least one",
}
"""Why the configured weights act, by the guard that says so."""


def guard(
    weights: Weights, now: Situation, guards: Mapping[str, Guard] = GUARDS
) -> tuple[Weights | None, tuple[str, ...]]:
    """What may be sent, with the largest at 256 or on its way there, and the names of the guards that changed it."""
    fired, allowed = [], weights
    for name, of in guards.items():
        before = allowed
        allowed = of(before, now)
        if allowed is None:
            return None, (*fired, name)
        if allowed is not before and (np.abs(scaled(allowed) - scaled(before)) > 1e-9 * LARGEST).any():
            fired.append(name)
    return allowed, tuple(fired)
