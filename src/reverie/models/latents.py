"""z, the part of a model's state that is drawn: how heads' outputs become its distribution, its sample, its storage.

Discrete as in DreamerV2 and V3, or Gaussian as in PlaNet and DreamerV1; S x K numbers in either case, so that all that
reads z has the same size. When z is drawn, and what its prior and posterior are told, the models decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, BFloat16, Float, Key, PyTree, UInt8

from reverie.nn.distributions import Categorical, Normal

LatentKind = Literal["discrete", "gaussian"]
Precision = Literal["auto", "float32", "bfloat16"]

Stored = UInt8[Array, "*B S"] | BFloat16[Array, "*B S K"]
"""z as replay keeps it."""


@runtime_checkable
class Distribution(Protocol):
    """What models ask of the distribution of z, in nats for each variable or group [*B, S]."""

    def entropy(self) -> Float[Array, "*B S"]: ...

    def kl(self, other: Any) -> Float[Array, "*B S"]:
        """KL(self || other), where `other` is of the same kind."""
        ...


@dataclass(frozen=True)
class DiscreteLatents:
    """S one-hot variables of K classes, mixed with the uniform distribution; gradients pass straight through."""

    variables: int
    classes: int
    unimix: float

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for one z: S x K logits."""
        return self.variables * self.classes

    def noise(self, shape: tuple[int, ...], key: Key[Array, ""]) -> Float[Array, "*B S"]:
        """The uniform numbers that decide z in states of leading axes `shape`."""
        return jax.random.uniform(key, (*shape, self.variables))

    def distribution(self, outputs: Float[Array, "*B O"]) -> Categorical:
        return Categorical.from_logits(outputs.reshape(*outputs.shape[:-1], self.variables, self.classes), self.unimix)

    def sample(self, outputs: Float[Array, "*B O"], noise: Float[Array, "*B S"]) -> Float[Array, "*B S K"]:
        return self.distribution(outputs).straight_through(noise)

    def compress(self, stoch: Float[Array, "*B S K"]) -> UInt8[Array, "*B S"]:
        """The index of each class; z must be one-hot, which is true of every state but the initial."""
        return stoch.argmax(-1).astype(jnp.uint8)

    def expand(self, stored: UInt8[Array, "*B S"], dtype: str) -> Float[Array, "*B S K"]:
        return jax.nn.one_hot(stored, self.classes, dtype=dtype)


@dataclass(frozen=True)
class GaussianLatents:
    """S groups of K independent normal numbers, each with its own mean and spread; samples are mean + spread x noise.

    A head gives two numbers for each one of z, so the layers that end in z, and they alone, have twice as many outputs
    as for discrete latents of the same S and K; features, decoder, other heads and memory are of equal size. At
    DreamerV3's size1m that is 654,021 parameters beside 637,381 (2.6 % more), for 4 inputs and 2 actions.
    """

    variables: int
    classes: int

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for one z: S x K means, then S x K spreads."""
        return 2 * self.variables * self.classes

    def noise(self, shape: tuple[int, ...], key: Key[Array, ""]) -> Float[Array, "*B S K"]:
        """The normal numbers that decide z in states of leading axes `shape`."""
        return jax.random.normal(key, (*shape, self.variables, self.classes))

    def distribution(self, outputs: Float[Array, "*B O"]) -> Normal:
        shape = (*outputs.shape[:-1], 2, self.variables, self.classes)
        center, width = jnp.moveaxis(outputs.reshape(shape), -3, 0)
        return Normal.from_outputs(center, width)

    def sample(self, outputs: Float[Array, "*B O"], noise: Float[Array, "*B S K"]) -> Float[Array, "*B S K"]:
        return self.distribution(outputs).reparameterised(noise)

    def compress(self, stoch: Float[Array, "*B S K"]) -> BFloat16[Array, "*B S K"]:
        """Half precision, as h."""
        return stoch.astype(jnp.bfloat16)

    def expand(self, stored: BFloat16[Array, "*B S K"], dtype: str) -> Float[Array, "*B S K"]:
        return stored.astype(dtype)


Latents = DiscreteLatents | GaussianLatents


def latents(kind: LatentKind, variables: int, classes: int, unimix: float) -> Latents:
    """The latents that a model's configuration asks for; `unimix` is a matter of discrete ones alone."""
    return DiscreteLatents(variables, classes, unimix) if kind == "discrete" else GaussianLatents(variables, classes)


def kl_losses(
    kl: Callable[[PyTree, PyTree], Float[Array, "*B"]], posterior: PyTree, prior: PyTree, free_nats: float
) -> tuple[Float[Array, "*B"], dict[str, Float[Array, "*B"]]]:
    """KL(posterior || prior), and the losses that move the one towards the other: neither pulls below the free nats,
    of each step, or of all of them where `kl` is their mean.

    Source: DreamerV3 (arXiv 2301.04104), equation 5.
    """
    dyn, rep = kl(stop_gradient(posterior), prior), kl(posterior, stop_gradient(prior))
    return dyn, {"model/dyn": jnp.maximum(free_nats, dyn), "model/rep": jnp.maximum(free_nats, rep)}


def weighted(
    terms: Mapping[str, Float[Array, "B T"]], dyn_scale: float, rep_scale: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of all terms, the two KL losses with their weights, and the terms as metrics: averages over all steps."""
    metrics = {name: term.mean() for name, term in terms.items()}
    scales = {"model/dyn": dyn_scale, "model/rep": rep_scale}
    return sum((scales.get(name, 1.0) * value for name, value in metrics.items()), jnp.zeros(())), metrics


def computed_in(precision: Precision) -> str:
    """The type of a model's computations on this machine."""
    if precision == "auto":
        return "bfloat16" if jax.default_backend() == "gpu" else "float32"
    return precision
