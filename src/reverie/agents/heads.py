"""Actor and critic over what a world model offers: a context vector, and where it keeps servers apart one row each.

With rows, the actor is one scorer shared by all servers and the critic pools over them (Zaheer et al. 2017, arXiv
1703.06114), so neither the order nor the number of servers matters. Without, both are plain MLPs, as in DreamerV3.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ActionSpec, Discrete
from reverie.models.core import Features
from reverie.nn.distributions import BoundedNormal, Categorical, TwoHot
from reverie.nn.layers import MLP, Head, Linear, RMSNorm, masked_pool


class SharedRows(eqx.Module):
    """Hidden layers that every row passes, each row joined by the same context: [*B, N, G], [*B, D] -> [*B, N, U].

    The first layer multiplies the context once and not once per row.
    """

    rows: Linear
    context: Linear
    norm: RMSNorm
    deeper: MLP | None

    def __init__(self, rows: int, context: int, units: int, layers: int, *, key: Key[Array, ""]):
        rows_key, context_key, deeper_key = jax.random.split(key, 3)
        self.rows = Linear(rows, units, key=rows_key)
        self.context = Linear(context, units, key=context_key)
        self.norm = RMSNorm(units)
        self.deeper = MLP(units, units, layers - 1, key=deeper_key) if layers > 1 else None

    def __call__(self, rows: Float[Array, "*B N G"], context: Float[Array, "*B D"]) -> Float[Array, "*B N U"]:
        x = jax.nn.silu(self.norm(self.rows(rows) + self.context(context)[..., None, :]))
        return x if self.deeper is None else self.deeper(x)


class Actor(eqx.Module):
    """A distribution over actions. `rows` is the width of server rows, 0 where the model offers none."""

    shared: SharedRows | None
    head: Head | Linear
    spec: ActionSpec = eqx.field(static=True)
    unimix: float = eqx.field(static=True)

    def __init__(
        self, spec: ActionSpec, context: int, rows: int, units: int, layers: int, unimix: float, *, key: Key[Array, ""]
    ):
        self.spec, self.unimix, self.shared = spec, unimix, None
        if rows and isinstance(spec, Discrete):
            shared_key, key = jax.random.split(key)
            self.shared = SharedRows(rows, context, units, layers, key=shared_key)
            self.head = Linear(units, 1, scale=0.01, key=key)
        else:
            outputs = spec.n if isinstance(spec, Discrete) else 2 * spec.size
            self.head = Head(context, outputs, units, layers, scale=0.01, key=key)

    def __call__(
        self, features: Features, memory: Float[Array, "*B M"], mask: Bool[Array, "*B A"] | None = None
    ) -> Categorical | BoundedNormal:
        """`memory` is the recurrent policy's state; `mask` says which actions are allowed."""
        context = jnp.concatenate([features.context, memory], -1)
        if self.shared is None:
            raw = self.head(context)
        else:
            assert features.servers is not None, "the model offered rows when this actor was made"
            raw = self.head(self.shared(features.servers, context))[..., 0]  # [*B, N]
            mask = features.mask if mask is None else mask
        if isinstance(self.spec, Discrete):
            return Categorical.from_logits(raw, self.unimix, mask)
        mean, spread = jnp.split(raw, 2, -1)
        return BoundedNormal(mean, spread)


class Critic(eqx.Module):
    """A distribution over returns. `rows` is the width of server rows, 0 where the model offers none."""

    shared: SharedRows | None
    head: Head

    def __init__(self, context: int, rows: int, units: int, layers: int, *, key: Key[Array, ""]):
        self.shared = None
        if rows:
            shared_key, key = jax.random.split(key)
            self.shared = SharedRows(rows, context, units, 1, key=shared_key)
            context += 2 * units
        self.head = Head(context, TwoHot.BINS, units, layers, scale=0.0, key=key)

    def __call__(self, features: Features, memory: Float[Array, "*B M"]) -> TwoHot:
        context = jnp.concatenate([features.context, memory], -1)
        if self.shared is not None:
            assert features.servers is not None, "the model offered rows when this critic was made"
            assert features.mask is not None, "rows come with their mask"
            rows = self.shared(features.servers, context)
            context = jnp.concatenate([context, masked_pool(rows, features.mask)], -1)
        return TwoHot(self.head(context))
