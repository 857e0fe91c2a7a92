"""Actors and critics over `Features`: a context vector, and where servers are kept apart one row each.

With rows, actors are one scorer shared by all servers and critics pool over them (Zaheer et al. 2017, arXiv
1703.06114), so neither the order nor the number of servers matters. A continuous action then has a number for each of
them.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ActionSpec, Continuous, Discrete
from reverie.models.core import Features
from reverie.nn.distributions import BoundedNormal, Categorical, TwoHot
from reverie.nn.grouped import each, stacked
from reverie.nn.layers import Head, Linear, SharedRows, masked_pool


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
        if rows:
            shared_key, key = jax.random.split(key)
            self.shared = SharedRows(rows, context, units, layers, key=shared_key)
            self.head = Linear(units, numbers_of(spec), scale=0.01, key=key)
        else:
            self.head = Head(context, numbers_of(spec) * spec.width, units, layers, scale=0.01, key=key)

    def __call__(
        self, features: Features, memory: Float[Array, "*B M"], mask: Bool[Array, "*B A"] | None = None
    ) -> Categorical | BoundedNormal:
        """`memory` is the recurrent policy's state; `mask` says which actions are allowed."""
        context = jnp.concatenate([features.context, memory], -1)
        if self.shared is None:
            outputs = self.head(context)
        else:
            assert features.servers is not None, "the model offered rows when this actor was made"
            outputs = self.head(self.shared(features.servers, context))
            mask = features.mask if mask is None else mask
        return action_distribution(outputs, self.spec, self.shared is not None, mask, BoundedNormal, self.unimix)


def numbers_of(spec: ActionSpec) -> int:
    """Numbers (O) that a head gives for each entry of an action: a logit, or the centre and the width of a normal."""
    match spec:
        case Discrete():
            return 1
        case Continuous():
            return 2


def per_action(outputs: Float[Array, "..."], spec: ActionSpec, rows: bool) -> Float[Array, "O *B A"]:
    """A head's outputs, [*B, N, O] with rows and [*B, O A] without, apart."""
    count = numbers_of(spec)
    return jnp.moveaxis(outputs, -1, 0) if rows else jnp.stack(jnp.split(outputs, count, -1))


def action_distribution[D](
    outputs: Float[Array, "..."],
    spec: ActionSpec,
    rows: bool,
    mask: Bool[Array, "*B A"] | None,
    normal: Callable[..., D],
    unimix: float = 0.0,
) -> Categorical | D:
    """The distribution over actions that a head's outputs say, `mask` being which of their entries count; `normal`, the
    kind of a continuous one."""
    numbers = per_action(outputs, spec, rows)
    match spec:
        case Discrete():
            return Categorical.from_logits(numbers[0], unimix, mask)
        case Continuous():
            return normal(*numbers, mask=mask)


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


class Critics(eqx.Module):
    """Several critics; the features say which of them judges a state."""

    stacked: Critic

    def __call__(self, features: Features, memory: Float[Array, "*B M"]) -> TwoHot:
        assert features.critic is not None, "the model said which when these critics were made"
        return each(Critic.__call__, self.stacked, features.critic, features._replace(critic=None), memory)


def critic_for(
    count: int, context: int, rows: int, units: int, layers: int, *, key: Key[Array, ""]
) -> Critic | Critics:
    """One critic, or so many."""

    def critic(key: Key[Array, ""]) -> Critic:
        return Critic(context, rows, units, layers, key=key)

    return critic(key) if count == 1 else Critics(stacked(critic, count, key))


class Tower(eqx.Module):
    """Hidden layers with tanh and a linear output, [*B, D] -> [*B, O]: the textbook network for A2C and PPO."""

    hidden: tuple[Linear, ...]
    output: Linear

    def __init__(self, inputs: int, outputs: int, units: int, layers: int, *, scale: float, key: Key[Array, ""]):
        *keys, output_key = jax.random.split(key, layers + 1)
        widths = [inputs] + [units] * (layers - 1)
        self.hidden = tuple(Linear(w, units, key=k) for w, k in zip(widths, keys, strict=True))
        self.output = Linear(units, outputs, scale=scale, key=output_key)

    def __call__(self, features: Features) -> Float[Array, "*B O"]:
        axes = features.context.shape[:-1]
        x = features.context.reshape(-1, features.context.shape[-1])  # XLA on CPU sums gradients over one axis faster
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.output(x).reshape(*axes, -1)


class SetTower(eqx.Module):
    """The same for servers as a set: O outputs for each server [*B, N, O], or one for all of them [*B, 1].

    Each server is judged by its own row, the context and a summary of all servers, by one network for all. That of all
    servers is judged by the context and the summary. Neither the order nor the number of servers matters (Zaheer et al.
    2017, arXiv 1703.06114).
    """

    summary: SharedRows
    rows: SharedRows | None
    output: Linear | Head

    def __init__(
        self,
        context: int,
        rows: int,
        units: int,
        layers: int,
        outputs: int = 1,
        *,
        per_server: bool,
        scale: float,
        key: Key[Array, ""],
    ):
        summary_key, rows_key, output_key = jax.random.split(key, 3)
        self.summary = SharedRows(rows, context, units, 1, key=summary_key)
        context += 2 * units
        if per_server:
            self.rows = SharedRows(rows, context, units, layers, key=rows_key)
            self.output = Linear(units, outputs, scale=scale, key=output_key)
        else:
            self.rows = None
            self.output = Head(context, outputs, units, layers, scale=scale, key=output_key)

    def __call__(self, features: Features) -> Float[Array, "..."]:
        context, rows, mask, _ = features
        assert rows is not None
        assert mask is not None
        context = jnp.concatenate([context, masked_pool(self.summary(rows, context), mask)], -1)
        if self.rows is None:
            return self.output(context)
        return self.output(self.rows(rows, context))


class Flat(eqx.Module):
    """A head that reads the context alone, [*B, D] -> [*B, O]."""

    head: Head

    def __call__(self, features: Features) -> Float[Array, "*B O"]:
        return self.head(features.context)


def actor_for(
    spec: ActionSpec, context: int, rows: int, units: int, layers: int, *, key: Key[Array, ""]
) -> Flat | SetTower:
    """A head for `per_action`: near uniform at first. `rows` is the width of servers' rows, 0 where there are none."""
    if rows:
        return SetTower(context, rows, units, layers, numbers_of(spec), per_server=True, scale=0.01, key=key)
    return Flat(Head(context, numbers_of(spec) * spec.width, units, layers, scale=0.01, key=key))


class QNetwork(eqx.Module):
    """What actions are worth: with rows each server is judged by its own, else all by one long vector."""

    net: Flat | SetTower
    spec: ActionSpec = eqx.field(static=True)
    as_set: bool = eqx.field(static=True)

    def __init__(self, spec: ActionSpec, context: int, rows: int, units: int, layers: int, *, key: Key[Array, ""]):
        """Arguments: `context`, `rows`, the widths of what `Features` has; 0 rows where there are none."""
        self.spec, self.as_set = spec, bool(rows)
        match spec:
            case Discrete():
                self.net = actor_for(spec, context, rows, units, layers, key=key)
            case Continuous() if rows:  # a row has its number of the action, and all rows one worth
                self.net = SetTower(context, rows + 1, units, layers, per_server=False, scale=0.01, key=key)
            case Continuous(size):
                self.net = Flat(Head(context + size, 1, units, layers, scale=0.01, key=key))

    def all(self, features: Features) -> Float[Array, "*B A"]:
        """Of all discrete actions."""
        return per_action(self.net(features), self.spec, self.as_set)[0]

    def of(self, features: Features, action: Array) -> Float[Array, "*B"]:
        """Of one action."""
        match self.spec:
            case Discrete():
                return jnp.take_along_axis(self.all(features), action[..., None], -1)[..., 0]
            case Continuous() if features.servers is not None:
                features = features._replace(servers=jnp.concatenate([features.servers, action[..., None]], -1))
            case Continuous():
                features = features._replace(context=jnp.concatenate([features.context, action], -1))
        return self.net(features)[..., 0]
