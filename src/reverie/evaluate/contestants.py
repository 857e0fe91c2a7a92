"""Who is judged, and in which world: what the judging of fleets, of suites and of games has in common."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Key

from reverie.envs.core import Task, World
from reverie.policies.core import Policy

Role = Literal["agent", "rule", "oracle"]
"""What is judged (something was trained), what it is compared with, and what was told more than the agents are."""


@dataclass(frozen=True)
class Contestant[W: World]:
    """A policy with frozen weights, and the world as it was made for it."""

    name: str
    """Runs of one algorithm share it and differ in their training seed."""
    policy: Policy
    """Its memory starts empty in each trial and lives through the episodes of the trial."""
    world: W
    """As it was made for the policy: what it shows and what it pays, which matters to a policy that remembers rewards.
    How many servers and jobs a fleet has is the trial's affair."""
    role: Role = "agent"
    training_seed: int | None = None
    """None where nothing was trained."""
    knows: str | None = None
    """What has to be known of a fleet to do the same, where that is not the view."""


def programs[W: World](contestants: Sequence[Contestant[W]]) -> dict[tuple[W, int | None], list[int]]:
    """Who plays in one compiled program: all that is not trained and sees the same; what is trained plays alone, as its
    runs differ in their weights only and share the compilation."""
    programs: dict[tuple[W, int | None], list[int]] = {}
    for number, c in enumerate(contestants):
        alone = None if c.training_seed is None else number
        programs.setdefault((c.world, alone), []).append(number)
    return programs


def check_sides(contestants: Sequence[Contestant], tasks: Mapping[str, Task]) -> None:
    """Errors: ValueError where there is no contestant or no task, or one contestant stands there twice."""
    if not contestants or not tasks:
        raise ValueError(f"a trial needs contestants and tasks, got {len(contestants)} and {len(tasks)}")
    seen: dict[str, list[Contestant]] = {}
    for c in contestants:
        for other in seen.setdefault(c.name, []):
            if other.training_seed == c.training_seed:
                raise ValueError(f"contestant {c.name!r} with training seed {c.training_seed} stands there twice")
            if other.role != c.role:
                raise ValueError(f"contestant {c.name!r} stands there both as {other.role} and as {c.role}")
        seen[c.name].append(c)


def key_of(key: Key[Array, ""], task: str) -> Key[Array, ""]:
    """The key of a task's trials; it does not depend on which other tasks are played."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(task.encode())))
