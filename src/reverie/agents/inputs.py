"""What agents without a world model read: vectors and servers, as numbers of moderate size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reverie.envs.core import ActionSpec, ArraySpec
from reverie.models.core import Features
from reverie.models.encoders import Entries
from reverie.models.queue import SLOWEST
from reverie.nn.distributions import symlog

Reading = Literal["flat", "set", "queue"]
"""Servers as one long vector; as a set, one row each; or as a set whose rows tell besides what follows from work, speed
and the job's size (`queue_scores`), so that an agent is told as much of queues as the world model `queue` is."""


@dataclass(frozen=True)
class Inputs:
    """How the observations of one kind of world become `Features`."""

    entries: Entries
    servers: Reading
    """How servers are read."""

    @classmethod
    def of(cls, observation_spec: Mapping[str, ArraySpec], action_spec: ActionSpec, servers: Reading) -> "Inputs":
        """Check that the observation can be read.

        Errors: ValueError where it has images, or servers are to be a set and it does not have exactly one, with a row
        for each discrete action or each number of a continuous one, or are to be queues and it does not show their
        work and speed, and the job's size.
        """
        entries = Entries.of(observation_spec)
        if entries.images:
            names = [name for name, _ in entries.images]
            raise ValueError(f"agents without a model read vectors and servers; the observation has images: {names}")
        sets = entries.servers
        if servers != "flat" and (len(sets) != 1 or sets[0][1].shape[0] != action_spec.width):
            shapes = {name: entry.shape for name, entry in sets}
            raise ValueError(
                f"servers={servers!r} needs one entry of kind 'servers' with a row for each of the {action_spec.width} "
                f"actions; the observation has {shapes or 'none'}: use servers='flat'"
            )
        widths = [entry.shape[-1] for kind in (sets, entries.vectors) for _, entry in kind]
        if servers == "queue" and widths != [2, 2]:
            raise ValueError(
                "servers='queue' reads (backlog, speed) of each server and (size, gap) of one job, which is a fleet's "
                f"view `full`; got {dict(observation_spec)}: use servers='set'"
            )
        return cls(entries, servers)

    @property
    def as_set(self) -> bool:
        """Whether servers are kept apart, one row each, or are part of one long vector."""
        return self.servers != "flat"

    @property
    def context(self) -> int:
        """Width of the context."""
        width = sum(math.prod(spec.shape) * (spec.categories or 1) for _, spec in self.entries.vectors)
        return width + (0 if self.as_set else sum(math.prod(spec.shape) for _, spec in self.entries.servers))

    @property
    def rows(self) -> int:
        """Width of a server's row, 0 where there are no rows."""
        if not self.as_set:
            return 0
        return self.entries.servers[0][1].shape[1] + (SCORES if self.servers == "queue" else 0)

    def see(self, observation: dict[str, Array]) -> Features:
        """An observation as networks read it: numbers by their symlog, integers one-hot."""
        vectors = []
        for name, spec in self.entries.vectors:
            x = observation[name]
            hot = None if spec.categories is None else jax.nn.one_hot(x, spec.categories)
            vectors.append(symlog(x) if hot is None else hot.reshape(*x.shape[:-1], -1))
        sets = {name: symlog(observation[name]) for name, _ in self.entries.servers}
        if not self.as_set:
            flat = [x.reshape(*x.shape[:-2], -1) for x in sets.values()]
            return Features(jnp.concatenate([*vectors, *flat], -1))
        ((name, rows),) = sets.items()
        if self.servers == "queue":
            ((job, _),) = self.entries.vectors
            rows = jnp.concatenate([rows, queue_scores(observation[name], observation[job])], -1)
        context = jnp.concatenate([*vectors, rows[..., 0, :0]], -1)
        return Features(context, rows, self.entries.present(observation, name))

    def allowed(self, observation: dict[str, Array]) -> Bool[Array, "*B A"] | None:
        """The actions that are allowed; None for all."""
        return None if self.entries.mask is None else observation[self.entries.mask]


SCORES = 4
"""Numbers of `queue_scores` for each server."""


def queue_scores(servers: Float[Array, "*B N 2"], job: Float[Array, "*B 2"]) -> Float[Array, "*B N 4"]:
    """What the rules in full view look at: waiting time, the job's service time and their sum, by their symlog, and
    whether the server is idle. From backlog and speed of each server, and size and gap of the job."""
    backlog, speed = servers[..., 0], jnp.maximum(servers[..., 1], SLOWEST)
    wait, service = backlog / speed, job[..., None, 0] / speed
    times = symlog(jnp.stack([wait, service, wait + service], -1))
    return jnp.concatenate([times, (backlog == 0)[..., None].astype(jnp.float32)], -1)
