"""How a dispatch rule reads an observation and chooses: the views by name, and one way of breaking ties.

Shared by the classical rules; the rules themselves live in `rules.py` and `adaptive.py`.
"""

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from reverie.envs.core import TimeStep
from reverie.envs.fleet.weights import View
from reverie.policies.core import Policy
from reverie.ranges import check


@runtime_checkable
class Rule(Policy, Protocol):
    """A policy without learned parameters that names the view of the fleet it reads."""

    view: ClassVar[View]


class Checked(eqx.Module):
    """Of a rule, that its numbers are held against the ranges that are declared for them."""

    def __check_init__(self) -> None:
        check(self)


def pick(score: Float[Array, "*B N"], speed: Float[Array, "*#B N"], mask: Bool[Array, "*#B N"]) -> Int[Array, "*B"]:
    """The allowed server with the lowest score; ties go to the fastest server, then to the lowest index.

    Scores that differ by no more than one part in a million are ties, so that float32 rounding does not decide:
    3 / 0.15 and 21 / 1.05 are one number. Where no server is allowed the answer means nothing.
    """
    score = jnp.where(mask, score, jnp.inf)
    best = score.min(-1, keepdims=True)
    ties = mask & (score <= best + 1e-6 * jnp.abs(best))
    return jnp.where(ties, speed, -1.0).argmax(-1).astype(jnp.int32)


class FullView(NamedTuple):
    """What the view `full` shows."""

    work: Float[Array, "B N"]
    """Remaining work, the job in service included."""
    speed: Float[Array, "B N"]
    """Work per time unit; 1 at failed servers and padding, which are not allowed."""
    size: Float[Array, "B 1"]
    """Work that the incoming job brings."""
    gap: Float[Array, " B"]
    """Time since the last arrival."""
    allowed: Bool[Array, "B N"]


class CountsView(NamedTuple):
    """What the view `counts` shows, beside the speeds that the rule was configured with."""

    jobs: Float[Array, "B N"]
    """Jobs in progress, waiting or in service."""
    speed: Float[Array, " N"]
    """Nominal work per time unit; 1 at padding, which is not allowed."""
    gap: Float[Array, "B 1"]
    """Time since the last arrival."""
    allowed: Bool[Array, "B N"]


class LatencyView(NamedTuple):
    """What the view `latency` shows: what any proxy sees without being told anything."""

    jobs: Float[Array, "B N"]
    """Jobs in progress."""
    finished: Float[Array, "B N"]
    """Jobs that ended since the last arrival."""
    total: Float[Array, "B N"]
    """The sum of their response times."""
    longest: Float[Array, "B N"]
    """The longest of them."""
    gap: Float[Array, "B 1"]
    """Time since the last arrival."""
    allowed: Bool[Array, "B N"]


def full_view(timestep: TimeStep) -> FullView:
    """Name the parts of a `full` observation; failed servers are not allowed while another one runs.

    Errors: ValueError where the observation is of another view.
    """
    servers, job = _entries(timestep, "full", features=2, of_job=2)
    work, speed = servers[..., 0], servers[..., 1]
    allowed = _running(timestep.observation["mask"], speed)
    return FullView(work, _nonzero(speed), job[..., :1], job[..., 1], allowed)


def counts_view(timestep: TimeStep, speeds: Float[Array, " N"]) -> CountsView:
    """Name the parts of a `counts` observation, beside nominal `speeds` (0 for padding).

    Errors: ValueError where the observation is of another view or fleet size.
    """
    servers, job = _entries(timestep, "counts", features=1, of_job=1)
    return CountsView(servers[..., 0], _nonzero(speeds), job, allowed_servers(timestep, speeds))


def latency_view(timestep: TimeStep, servers: Float[Array, " N"]) -> LatencyView:
    """Name the parts of a `latency` observation; `servers` is 0 for padding.

    Errors: ValueError where the observation is of another view or fleet size.
    """
    rows, job = _entries(timestep, "latency", features=6, of_job=1)
    jobs, finished, total, longest = (rows[..., i] for i in range(4))
    return LatencyView(jobs, finished, total, longest, job, allowed_servers(timestep, servers))


def allowed_servers(timestep: TimeStep, speeds: Float[Array, " N"]) -> Bool[Array, "B N"]:
    """Which servers may be chosen, by the mask (any view) and by nominal speeds or weights above 0.

    Errors: ValueError where the fleet has not as many servers as there are speeds.
    """
    mask = timestep.observation["mask"]
    if mask.shape[-1] != speeds.shape[0]:
        raise ValueError(
            f"this rule was configured with {speeds.shape[0]} speeds (or weights), but the fleet has {mask.shape[-1]} "
            f"servers: give one for each, 0 for padding"
        )
    return _running(mask, speeds)


def as_speeds(values: ArrayLike) -> Float[Array, " N"]:
    """Check nominal speeds or weights [N]: finite, not negative, not all 0.

    Errors: ValueError otherwise.
    """
    speeds = np.asarray(values, np.float32)
    if speeds.ndim != 1 or not (np.isfinite(speeds).all() and (speeds >= 0).all() and speeds.any()):
        raise ValueError(
            f"speeds (or weights) must be one number for each server, positive (0 for padding only), got {values!r}"
        )
    return jnp.asarray(speeds)


def _entries(
    timestep: TimeStep, view: View, features: int, of_job: int
) -> tuple[Float[Array, "B N F"], Float[Array, "B D"]]:
    shapes = {name: entry.shape for name, entry in timestep.observation.items()}
    if any(shapes.get(name, ())[-1:] != (width,) for name, width in (("servers", features), ("job", of_job))):
        raise ValueError(
            f"this rule reads the view {view!r} (servers [B, N, {features}], job [B, {of_job}]), but the observation "
            f"has {shapes}: run it on an environment with view={view!r}"
        )
    return timestep.observation["servers"], timestep.observation["job"]


def _running(mask: Bool[Array, "B N"], speed: Float[Array, "*#B N"]) -> Bool[Array, "B N"]:
    running = mask & (speed > 0)
    return jnp.where(running.any(-1, keepdims=True), running, mask)


def _nonzero(speed: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    return jnp.where(speed > 0, speed, 1.0)
