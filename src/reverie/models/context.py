"""What transitions say of their task: encoders of contexts, each of which ends in a Gaussian over z.

`product` is PEARL's (Rakelly et al. 2019, arXiv 1903.08254): each transition gives a Gaussian by itself and the belief
is their product, in whatever order they came. `recurrent` is MetaDreamer's (Wen et al. 2024, arXiv 2311.06673): one GRU
passes over them. Beliefs grow transition by transition, or by a whole stretch at once, to the same. Where steps differ
in length (dt), that stands in the observations.
"""

import abc
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.nn.distributions import symlog
from reverie.nn.layers import GRU, MLP, Head, Linear, over_time

LEAST_VARIANCE = 1e-7
Belief = Any
EncoderKind = Literal["product", "recurrent"]


class Transition(NamedTuple):
    """What was seen and done, and what that led to, as encoders read it."""

    before: Float[Array, "*B D"]
    action: Float[Array, "*B A"]
    reward: Float[Array, "*B"]
    after: Float[Array, "*B D"]

    def numbers(self, sees_next: bool) -> Float[Array, "*B I"]:
        """As one vector, with or without what the action led to."""
        seen = [self.before, self.after] if sees_next else [self.before]
        return jnp.concatenate([*seen, self.action, symlog(self.reward)[..., None]], -1)


class ContextEncoder(eqx.Module):
    """From transitions to a belief, a pytree with leaves [*B, ...], and from that to a Gaussian over z."""

    latent: eqx.AbstractVar[int]

    @abc.abstractmethod
    def initial(self, *batch: int) -> Belief:
        """Nothing was seen yet: the prior."""

    @abc.abstractmethod
    def learn(self, belief: Belief, transition: Transition, counts: Bool[Array, "*B"]) -> Belief:
        """The belief after one more transition, if that counts."""

    @abc.abstractmethod
    def believe(self, transitions: Transition, counts: Bool[Array, "*B T"]) -> Belief:
        """The belief [*B] after all T transitions [*B, T] that count, from the prior on."""

    @abc.abstractmethod
    def gaussian(self, belief: Belief) -> tuple[Float[Array, "*B Z"], Float[Array, "*B Z"]]:
        """Mean and variance; those of the prior, N(0, 1), where nothing counted."""


class Product(NamedTuple):
    """A product of Gaussians over z, by the sums of their natural parameters; 0 without any."""

    precision: Float[Array, "*B Z"]
    weighted: Float[Array, "*B Z"]
    """Means, each times its precision."""


class ProductEncoder(ContextEncoder):
    """A Gaussian for each transition; the prior is no factor of the product, but stands where there is none."""

    head: Head
    latent: int = eqx.field(static=True)
    sees_next: bool = eqx.field(static=True)

    def __init__(self, inputs: int, latent: int, units: int, layers: int, sees_next: bool, *, key: Key[Array, ""]):
        self.latent, self.sees_next = latent, sees_next
        self.head = Head(inputs, 2 * latent, units, layers, key=key)

    def initial(self, *batch: int) -> Product:
        return Product(jnp.zeros((*batch, self.latent)), jnp.zeros((*batch, self.latent)))

    def weigh(self, transition: Transition) -> Product:
        """What single transitions say, each by itself."""
        mean, spread = jnp.split(self.head(transition.numbers(self.sees_next)), 2, -1)
        precision = 1 / jnp.maximum(jax.nn.softplus(spread), LEAST_VARIANCE)
        return Product(precision, precision * mean)

    def learn(self, belief: Product, transition: Transition, counts: Bool[Array, "*B"]) -> Product:
        new = self.weigh(transition)
        return jax.tree.map(lambda old, said: old + jnp.where(counts[..., None], said, 0.0), belief, new)

    def believe(self, transitions: Transition, counts: Bool[Array, "*B T"]) -> Product:
        each = self.weigh(transitions)
        return jax.tree.map(lambda said: jnp.where(counts[..., None], said, 0.0).sum(-2), each)

    def gaussian(self, belief: Product) -> tuple[Float[Array, "*B Z"], Float[Array, "*B Z"]]:
        empty = belief.precision == 0
        precision = jnp.where(empty, 1.0, belief.precision)
        return jnp.where(empty, 0.0, belief.weighted / precision), 1 / precision


class Heard(NamedTuple):
    """What a recurrent encoder has heard."""

    h: Float[Array, "*B U"]
    empty: Bool[Array, "*B"]
    """Whether nothing counted yet."""


class RecurrentEncoder(ContextEncoder):
    """Each transition through hidden layers of its own, then one GRU over all that count, in their order."""

    each: MLP
    gru: GRU
    output: Linear
    latent: int = eqx.field(static=True)
    sees_next: bool = eqx.field(static=True)

    def __init__(self, inputs: int, latent: int, units: int, layers: int, sees_next: bool, *, key: Key[Array, ""]):
        self.latent, self.sees_next = latent, sees_next
        each_key, gru_key, output_key = jax.random.split(key, 3)
        self.each = MLP(inputs, units, layers, key=each_key)
        self.gru = GRU(units, units, key=gru_key)
        self.output = Linear(units, 2 * latent, key=output_key)

    def initial(self, *batch: int) -> Heard:
        return Heard(jnp.zeros((*batch, self.output.weight.shape[0])), jnp.ones(batch, bool))

    def learn(self, belief: Heard, transition: Transition, counts: Bool[Array, "*B"]) -> Heard:
        return self._pass(belief, (self._project(transition), counts))

    def believe(self, transitions: Transition, counts: Bool[Array, "*B T"]) -> Heard:
        *batch, length = counts.shape
        projected = self._project(transitions).reshape(-1, length, 3 * self.output.weight.shape[0])

        def step(belief: Heard, row: tuple[Array, Array]) -> tuple[Heard, None]:
            return self._pass(belief, row), None

        rows = projected, counts.reshape(-1, length)
        belief, _ = over_time(step, self.initial(rows[1].shape[0]), rows)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), belief)

    def gaussian(self, belief: Heard) -> tuple[Float[Array, "*B Z"], Float[Array, "*B Z"]]:
        mean, spread = jnp.split(self.output(belief.h), 2, -1)
        variance = jnp.maximum(jax.nn.softplus(spread), LEAST_VARIANCE)
        empty = belief.empty[..., None]
        return jnp.where(empty, 0.0, mean), jnp.where(empty, 1.0, variance)

    def _project(self, transition: Transition) -> Float[Array, "*B C"]:
        return self.gru.project(self.each(transition.numbers(self.sees_next)))

    def _pass(self, belief: Heard, row: tuple[Float[Array, "*B C"], Bool[Array, "*B"]]) -> Heard:
        projected, counts = row
        h = jnp.where(counts[..., None], self.gru.step(belief.h, projected), belief.h)
        return Heard(h, belief.empty & ~counts)


ENCODERS: dict[EncoderKind, type[ProductEncoder] | type[RecurrentEncoder]] = {
    "product": ProductEncoder,
    "recurrent": RecurrentEncoder,
}
