"""What can be tuned of a rule: its free constants as a vector of real numbers, and the rule that such a vector makes.

A vector of zeros is the rule as it stands in books. Positive constants are factors, exp(x) of what they were. How the
vector is searched is no business of this room (`train/evolve.py`).
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from reverie.policies.adaptive import AdaptiveLeastConnections, LittleConnections
from reverie.policies.rules import SizeIntervals, rules
from reverie.policies.scoring import HIDDEN, INPUTS, Correction, ScoredCounts, ScoredWork, no_correction
from reverie.policies.views import Rule
from reverie.policies.weights import AdaptiveWeights


@dataclass(frozen=True)
class Tunable:
    """A rule with free numbers."""

    names: tuple[str, ...]
    """Of the numbers, in the order of the vector (D)."""
    make: Callable[[Float[Array, " D"]], Rule]
    """The rule of a vector; may be traced."""
    spread: float
    """How far apart the first vectors that are tried lie."""


def tunable(name: str, speeds: ArrayLike, sizes: ArrayLike) -> Tunable:
    """The rule of that name with its numbers free.

    Arguments: what an operator knows of the fleet, as for `rules`: nominal `speeds` [N], a sample of job `sizes`.

    Raises:
        ValueError: there is no such rule, or it has nothing to tune; the message lists those that have.
    """
    known = _tunables(np.asarray(speeds, float), np.asarray(sizes, float))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"rule {name!r} cannot be tuned: {hint}those that can are {', '.join(known)}")
    return known[name]


def _tunables(speeds: Float[np.ndarray, " N"], sizes: Float[np.ndarray, " M"]) -> dict[str, Tunable]:
    known = rules(speeds, sizes, ["wait-plus-service", "fpi"])
    service = float(sizes.mean() / speeds[speeds > 0].mean())
    adaptive = AdaptiveLeastConnections(speeds, tau=20 * service)
    counts = ScoredCounts(jnp.ones(()), no_correction(), adaptive, service)
    work = ScoredWork(jnp.float32(0.3), no_correction(), service)
    return {
        "wait-plus-service": _constants(known["wait-plus-service"], "c"),
        "adaptive-least-connections": _constants(adaptive, "c", "tau"),
        "little": _constants(
            LittleConnections(np.where(speeds > 0, 1.0, 0.0), tau=20 * service), "tau", "power", "prior"
        ),
        "adaptive-weights": _constants(AdaptiveWeights(adaptive), "estimates.tau", "gain"),
        "fpi": _constants(known["fpi"], "prior_jobs", "split"),
        "sita": _intervals(speeds, sizes),
        "scored-work": _scored(work, "c"),
        "scored-counts": _scored(counts, "c", "estimates.tau"),
    }


def _constants(rule: Rule, *names: str) -> Tunable:
    """Some positive numbers of a rule, each multiplied by exp(x)."""
    return Tunable(names, lambda x: _scaled(rule, names, x), spread=0.5)


def _intervals(speeds: Float[np.ndarray, " N"], sizes: Float[np.ndarray, " M"]) -> Tunable:
    """Size intervals whose shares of the work are free: exp(x) of each server's speed. Fast servers take small jobs."""
    order = np.argsort(-speeds, kind="stable")
    fast = speeds[order]

    def make(x: Float[Array, " D"]) -> Rule:
        shares = fast * jnp.exp(x)
        return SizeIntervals.of_shares(shares / shares.sum(), order, sizes)

    return Tunable(tuple(f"share of server {i}" for i in order), make, spread=0.3)


def _scored(rule: ScoredWork | ScoredCounts, *names: str) -> Tunable:
    """A scoring rule: first its constants, then all weights of the network."""
    ends = np.cumsum([len(names), INPUTS * HIDDEN, HIDDEN, HIDDEN])

    def make(x: Float[Array, " D"]) -> Rule:
        constants, inner, bias, outer = jnp.split(x, ends[:-1])
        network = Correction(inner.reshape(INPUTS, HIDDEN), bias, outer)
        return eqx.tree_at(lambda rule: rule.correction, _scaled(rule, names, constants), network)

    return Tunable((*names, *(f"weight {i}" for i in range(ends[-1] - len(names)))), make, spread=0.3)


def _scaled[R: Rule](rule: R, names: tuple[str, ...], x: Float[Array, " D"]) -> R:
    def where(rule):
        return tuple(_at(rule, name) for name in names)

    return eqx.tree_at(where, rule, tuple(old * jnp.exp(x[i]) for i, old in enumerate(where(rule))))


def _at(rule, name: str):
    for part in name.split("."):
        rule = getattr(rule, part)
    return rule
