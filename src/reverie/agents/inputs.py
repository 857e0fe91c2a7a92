"""What agents without a world model read: vectors and servers, as numbers of moderate size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from reverie.envs.core import ActionSpec, ArraySpec
from reverie.models.core import Features
from reverie.models.encoders import Entries
from reverie.nn.distributions import symlog


@dataclass(frozen=True)
class Inputs:
    """How the observations of one kind of world become `Features`."""

    entries: Entries
    as_set: bool
    """Whether servers are kept apart, one row each, or are part of one long vector."""

    @classmethod
    def of(
        cls, observation_spec: Mapping[str, ArraySpec], action_spec: ActionSpec, servers: Literal["flat", "set"]
    ) -> "Inputs":
        """Check that the observation can be read.

        Errors: ValueError where it has images, or servers are to be a set and it does not have exactly one, with a row
        for each discrete action or each number of a continuous one.
        """
        entries, as_set = Entries.of(observation_spec), servers == "set"
        if entries.images:
            names = [name for name, _ in entries.images]
            raise ValueError(f"agents without a model read vectors and servers; the observation has images: {names}")
        sets = entries.servers
        if as_set and (len(sets) != 1 or sets[0][1].shape[0] != action_spec.width):
            shapes = {name: entry.shape for name, entry in sets}
            raise ValueError(
                f"servers='set' needs one entry of kind 'servers' with a row for each of the {action_spec.width} "
                f"actions; the observation has {shapes or 'none'}: use servers='flat'"
            )
        return cls(entries, as_set)

    @property
    def context(self) -> int:
        """Width of the context."""
        width = sum(math.prod(spec.shape) * (spec.categories or 1) for _, spec in self.entries.vectors)
        return width + (0 if self.as_set else sum(math.prod(spec.shape) for _, spec in self.entries.servers))

    @property
    def rows(self) -> int:
        """Width of a server's row, 0 where there are no rows."""
        return self.entries.servers[0][1].shape[1] if self.as_set else 0

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
        context = jnp.concatenate([*vectors, rows[..., 0, :0]], -1)
        return Features(context, rows, self.entries.present(observation, name))

    def allowed(self, observation: dict[str, Array]) -> Bool[Array, "*B A"] | None:
        """The actions that are allowed; None for all."""
        return None if self.entries.mask is None else observation[self.entries.mask]
