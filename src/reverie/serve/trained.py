"""Exported agents that set weights (view `weights`): what a proxy tells becomes what their world showed them.

That world is `envs/fleet/weights.py`, and this its twin in numpy: intervals of the same length, the same numbers, as
late, forgotten as fast. Decisions come oftener than intervals end: the weights of one stay until the next.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reverie.runs.config_json import current
from reverie.serve import rates
from reverie.serve.actor_critic import ActorCriticTwin
from reverie.serve.balancer import Counts
from reverie.serve.layers import Array, Weights
from reverie.serve.policy import read_described
from reverie.serve.settings import ServeConfig

LEAST, FEATURES = 8 / 256, 7
"""The least weight beside a largest of 1, and the numbers that are shown of a server: as in that world."""

type Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Seen:
    """What is remembered of the proxy; servers (N)."""

    passed: float
    """Seconds since the interval began."""
    came: float
    """Requests that came in it."""
    ended: tuple[float, ...]
    """Those that were answered in it without failure."""
    lost: tuple[float, ...]
    """Time units that failures in it count for."""
    so_far: Rows
    """Completions, time found busy, and requests found times that time; in time units, forgotten with time [3, N]."""
    told: tuple[tuple[Rows, tuple[float, ...]], ...]
    """Of the last intervals, servers [N, F] and proxy [3], the one that is shown first."""
    weights: tuple[float, ...]
    """The agent's word since the interval began."""

    @property
    def answered(self) -> tuple[float, ...]:
        return self.so_far[0]


@dataclass(frozen=True)
class Trained:
    """What the policy is: a file, and what it was told of this proxy. Decisions can be made again while it is there."""

    path: Path
    sha: str
    """Of the file."""
    unit: float
    """Seconds in a time unit of the world."""
    hold: float
    """Time units for which weights are held."""
    late: int
    span: float
    """As in that world's `Proxy`."""
    gain: float
    correction: float | None
    """As in that world."""
    failure: float
    """Seconds that a failure counts for."""

    @property
    def tau(self) -> float:
        """Seconds after which what is shown as `so far` counts for 1/e."""
        return self.span * self.hold * self.unit

    @cached_property
    def _weights(self) -> Weights:
        """Errors: ValueError where the file is another one by now."""
        if _sha(self.path) != self.sha:
            raise ValueError(f"{self.path} is not the policy that it was: its contents have changed")
        return Weights(read_described(self.path)[1])

    def fresh(self, counts: Counts) -> Seen:
        """Nothing is known, and what the agent says to that."""
        none = (0.0,) * len(counts.names)
        nothing = (((0.0,) * FEATURES,) * len(none), (0.0,) * 3)
        return self._heard(Seen(0.0, 0.0, none, none, (none,) * 3, (nothing,) * (1 + self.late), none))

    def watch(self, known: Seen, last: Counts, counts: Counts) -> Seen:
        """What is known after what was seen since `last`, and another word of the agent where an interval has ended."""
        gap, (ended, failed) = max(counts.at - last.at, 0.0), rates.ended_since(last, counts)
        done, lost = rates.failures_as_slow(ended, failed, np.zeros(len(ended)), self.failure / self.unit)
        done, lost, passed = known.ended + done, known.lost + lost, known.passed + gap
        came = known.came + max(sum(counts.started) - sum(last.started) + counts.waiting - last.waiting, 0)
        over = passed - self.hold * self.unit
        if over + gap / 2 < 0:  # another look will be nearer to the interval's end
            return replace(known, passed=passed, came=came, ended=_floats(done), lost=_floats(lost))
        there, none = np.asarray(counts.in_progress), (0.0,) * len(done)
        found = np.stack([done, np.where(there > 0, self.hold, 0.0) + lost, there * self.hold])
        so_far = math.exp(-1 / self.span) * np.asarray(known.so_far) + found
        rule = rates.estimated(so_far[0], so_far[1], np.ones(len(there)))
        rows = np.column_stack(
            [there, done, action_of(np.asarray(counts.weights)), so_far.T, action_of(rule**self.gain)]
        )
        told = (*known.told[1:], (tuple(map(_floats, rows)), (float(counts.waiting), float(came), self.hold)))
        passed = over if abs(over) < gap else 0.0  # the next one begins when this one should have ended
        return self._heard(Seen(passed, 0.0, none, none, tuple(map(_floats, so_far)), told, none))

    def estimate(self, known: Seen, configured: Array) -> Array:
        """Requests a second [N] while busy."""
        completed, busy, _ = np.asarray(known.so_far)
        return rates.estimated(completed, busy * self.unit, configured)

    def weigh(self, known: Seen, configured: Array) -> Array:
        """The weights [N], of any scale."""
        return np.asarray(known.weights)

    def _heard(self, seen: Seen) -> Seen:
        """With the agent's word for the interval that begins."""
        rows, proxy = (np.array(each, np.float32) for each in seen.told[0])
        network = {"servers": "set", "memory": 0}  # of actors without memory all are alike
        twin = ActorCriticTwin({"network": network, "reward_scale": 1.0}, self._weights, len(rows))
        action = np.tanh(twin.logits({"servers": rows.T, "proxy": proxy}, None, None)).astype(float)
        if self.correction is None:
            return replace(seen, weights=_floats(LEAST ** ((1 - action) / 2)))
        return replace(seen, weights=_floats(self.correction**action * LEAST ** ((1 - rows[:, -1]) / 2)))


def trained(path: Path, described: Mapping[str, Any], config: ServeConfig) -> Trained:
    """The policy of a file of `reverie export`, for what the configuration says.

    Raises:
        ValueError: it is of an older version, or decides by JAX alone, or nobody says how long a time unit is, or
            intervals are too short.
    """
    config_of: Any = current(described["config"])
    algorithm, seen = config_of["agent"]["algorithm"], described["observation"]["servers"]["shape"]
    world = config_of["world"]
    if "gain" not in world:
        raise ValueError(
            f"{path} is of an older version, whose agents saw other numbers of a server; train one anew: "
            "`reverie train --preset weights --agent sac`"
        )
    if (algorithm["class"], algorithm.get("servers"), seen[-1]) != ("SACConfig", "set", FEATURES):
        raise ValueError(
            f"{path}: a policy of {algorithm['class']} that reads servers as {algorithm.get('servers', seen)} decides "
            "by JAX alone (`reverie compare`); those that set weights without it are of this version's `reverie train "
            "--preset weights --agent sac`"
        )
    unit, proxy = config.unit or described.get("seconds"), world["proxy"]
    if unit is None or proxy["hold"] * unit < 0.99 / config.hz:
        raise ValueError(
            f"unit: {path} holds weights for {proxy['hold']:g} time units of its world: say with `unit` how many "
            f"seconds one is, so that this takes at least as long as a decision, {1 / config.hz:g} s; got {unit}"
        )
    told, meant = (proxy["hold"], proxy["late"], proxy["span"]), (world["gain"], world["correction"])
    return Trained(path, _sha(path), unit, *told, *meant, config.limits.failure)


def action_of(weights: Array) -> Array:
    """Weights [N] of any scale as an action of that world says them."""
    return 1 - 2 * np.log(np.maximum(weights / weights.max(), LEAST)) / math.log(LEAST)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _floats(x: Array) -> tuple[float, ...]:
    return tuple(x.tolist())
