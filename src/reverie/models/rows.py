"""Servers as a set in STORM and its mixture: each has variables of z of its own, and one net serves all of them.

The first variables of z are the world's, then come those of each server in turn. What a server was before and whether
it got the action is carried on beside h, for itself: it need not pass through the Transformer, which is told a summary
of all servers and what the chosen one is like. So neither their order nor what stands in absent rows matters.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import bounded
from reverie.models.encoders import Entries
from reverie.nn.distributions import SquaredError, symlog
from reverie.nn.layers import Dense, Head, Linear, SharedRows, masked_pool


class Servers(NamedTuple):
    """What is known of each server."""

    carried: Float[Array, "*B N R"]
    """What it was before and whether it got the action."""
    mask: Bool[Array, "*B N"]


class Rows(eqx.Module):
    """From the rows of servers to their z and back."""

    read: SharedRows
    posterior: Linear
    decoder: Head
    name: str = eqx.field(static=True)
    entries: Entries = eqx.field(static=True)

    def __init__(
        self,
        spec: Mapping[str, ArraySpec],
        common: int,
        stoch: int,
        units: int,
        layers: tuple[int, int],
        told: int,
        *,
        key: Key[Array, ""],
    ):
        """`common` numbers are read beside each row, `stoch` is the width of a server's z, `layers` those of encoder
        and decoder, which `told` numbers are told.

        Raises:
            ValueError: there is more than one set.
        """
        read_key, posterior_key, decoder_key = jax.random.split(key, 3)
        self.entries = Entries.of(spec)
        if len(self.entries.servers) != 1:
            raise ValueError(f"servers `set` reads one entry of kind servers, got {dict(self.entries.servers)}")
        self.name, entry = self.entries.servers[0]
        self.read = SharedRows(entry.shape[-1], common, units, layers[0], key=read_key)
        self.posterior = Linear(units, stoch, key=posterior_key)
        self.decoder = Head(stoch + told, entry.shape[-1], units, layers[1], key=decoder_key)

    def __call__(self, observation: dict[str, Array], common: Float[Array, "*B C"]) -> Float[Array, "*B Z"]:
        """Logits of the z of all servers, one after the other."""
        logits = self.posterior(self.read(symlog(self._seen(observation)).astype(common.dtype), common))
        return logits.reshape(*logits.shape[:-2], -1)

    def decoded(self, stoch: Float[Array, "*B Z"], told: Float[Array, "*B E"]) -> SquaredError:
        """What the z of all servers says is seen of them, flat [*B, N F]."""
        rows = stoch.reshape(*stoch.shape[:-1], self.entries.servers[0][1].shape[0], -1)
        told = jnp.broadcast_to(told[..., None, :], (*rows.shape[:-1], told.shape[-1]))
        said = self.decoder(jnp.concatenate([rows, told], -1))
        return SquaredError(said.reshape(*said.shape[:-2], -1), squash=True)

    def loss(
        self, stoch: Float[Array, "*B Z"], told: Float[Array, "*B E"], observation: dict[str, Array]
    ) -> Float[Array, "*B"]:
        """Squared errors of symlogs, summed over the servers that are there."""
        seen = self._seen(observation)
        error = self.decoded(stoch, told).loss(seen.reshape(*seen.shape[:-2], -1)).reshape(seen.shape)
        return jnp.where(self.entries.present(observation, self.name)[..., None], error, 0).sum((-2, -1))

    def _seen(self, observation: dict[str, Array]) -> Float[Array, "*B N F"]:
        return jnp.where(self.entries.present(observation, self.name)[..., None], observation[self.name], 0)


class Lead(eqx.Module):
    """z and the action after it, as the Transformer reads them: side by side; of a set of servers what the world's z
    says, a summary of them and what the chosen one is like."""

    carry: Dense | None
    world: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, world: int, own: int, carried: int, rows: int, actions: int, *, key: Key[Array, ""]):
        """`world` and `own` are the widths of the z of the world and of a server; `rows` is the number of servers, 0
        where there is no set.

        Raises:
            ValueError: there is not one action for each server.
        """
        if rows and actions != rows:
            raise ValueError(f"servers `set` needs one action for each of {rows} servers, got {actions} actions")
        self.world, self.rows = world, rows
        self.carry = Dense(own + 1, carried, key=key) if rows else None
        self.size = world + (3 * carried if rows else actions)

    def __call__(
        self, stoch: Float[Array, "*B S K"], action: Float[Array, "*B A"], mask: Bool[Array, "*B N"] | None
    ) -> tuple[Float[Array, "*B I"], Servers | None]:
        action = bounded(action).astype(stoch.dtype)
        stoch = stoch.reshape(*stoch.shape[:-2], -1)
        if self.carry is None or mask is None:
            return jnp.concatenate([stoch, action], -1), None
        rows = stoch[..., self.world :].reshape(*action.shape, -1)
        carried = self.carry(jnp.concatenate([rows, action[..., None]], -1))  # [*B, N, R]
        chosen = (action[..., None] * carried).sum(-2)
        led = jnp.concatenate([stoch[..., : self.world], masked_pool(carried, mask), chosen], -1)
        return led, Servers(carried, mask)

    def nothing(self, batch: int, dtype: str) -> Servers | None:
        """What is known of servers before anything was seen."""
        if self.carry is None:
            return None
        carried = jnp.zeros((batch, self.rows, self.carry.linear.bias.shape[0]), dtype)
        return Servers(carried, jnp.ones((batch, self.rows), bool))


def as_type(servers: Servers | None, dtype: str) -> Servers | None:
    """With what is carried in another precision."""
    return None if servers is None else servers._replace(carried=servers.carried.astype(dtype))
