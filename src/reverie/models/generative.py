"""What a step leads to, given z: MetaDreamer's generative model p(s', r | s, a, z) (arXiv 2311.06673).

`free` learns all of a step. `physics` knows how the world goes on but for some bounded numbers, such as what the other
drivers do: those alone it learns, and the world's own `Physics` makes of them, and of what chance brings, what is seen
next, what it pays and whether the episode ends. Where tasks decide these numbers once for all, it reads z alone.
Numbers of an observation are one vector here, in the order of its entries.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from reverie.envs.core import ActionSpec, ArraySpec
from reverie.envs.factors import Physics
from reverie.models.encoders import Entries
from reverie.nn.distributions import symlog
from reverie.nn.layers import Head

DecoderKind = Literal["free", "physics"]
LEAST_DEVIATION = 1e-3
"""Of what is foretold: worlds without chance would be foretold with ever more certainty."""


class Arrival(NamedTuple):
    """Where a step is expected to lead."""

    observation: Float[Array, "*B D"]
    reward: Float[Array, "*B"]
    ends: Float[Array, "*B"]
    """Probability that the episode ends there."""


class Numbers(eqx.Module):
    """Observations as one vector of their numbers, and back."""

    spec: tuple[tuple[str, ArraySpec], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, observation_spec: Mapping[str, ArraySpec]) -> "Numbers":
        """Errors: ValueError where an observation has more than numbers."""
        entries = Entries.of(observation_spec)
        others = [name for name, entry in entries.vectors if entry.categories is not None]
        others += [name for name, _ in entries.images] + ([entries.mask] if entries.mask else [])
        if others:
            raise ValueError(f"a generative model foretells numbers; {others} of the observation are none")
        return cls(entries.vectors + entries.servers)

    @property
    def width(self) -> int:
        return sum(math.prod(entry.shape) for _, entry in self.spec)

    def flat(self, observation: dict[str, Array]) -> Float[Array, "*B D"]:
        shaped = [(observation[name], len(entry.shape)) for name, entry in self.spec]
        return jnp.concatenate([x.reshape(*x.shape[: x.ndim - axes], -1) for x, axes in shaped], -1)

    def apart(self, numbers: Float[Array, "*B D"]) -> dict[str, Array]:
        """The inverse of `flat`."""
        found, start = {}, 0
        for name, entry in self.spec:
            stop = start + math.prod(entry.shape)
            found[name] = numbers[..., start:stop].reshape(*numbers.shape[:-1], *entry.shape)
            start = stop
        return found


class GenerativeModel(eqx.Module):
    """With `physics` a network gives the unknown numbers; without, one gives the change of what is seen.

    Reward and ending then have a network of their own: errors count in units of their own size, so that in a shared one
    the changes, foretold to a thousandth, would outweigh pay that is rare and large (tests/test_metadreamer.py).
    """

    net: Head
    pays: Head | None
    numbers: Numbers
    physics: Physics | None = eqx.field(static=True)
    spec: ActionSpec = eqx.field(static=True)
    coarse: float = eqx.field(static=True)
    """See `loss`."""

    def __init__(
        self,
        observation_spec: Mapping[str, ArraySpec],
        spec: ActionSpec,
        latent: int,
        units: int,
        layers: int,
        physics: Physics | None,
        coarse: float = 0.0,
        *,
        key: Key[Array, ""],
    ):
        self.numbers, self.physics, self.spec = Numbers.of(observation_spec), physics, spec
        self.coarse = coarse
        width = self.numbers.width
        outputs = width if physics is None else physics.unknowns
        reads = latent if physics is not None and physics.constant else width + spec.width + latent
        if physics is None:
            key, pays_key = jax.random.split(key)
            self.pays = Head(reads, 2, units, layers, scale=0.01, key=pays_key)
        else:
            self.pays = None
        self.net = Head(reads, outputs, units, layers, scale=0.01, key=key)

    def __call__(
        self, observation: Float[Array, "*B D"], action: Array, z: Float[Array, "*B Z"], after: Float[Array, "*B D"]
    ) -> tuple[Arrival, Float[Array, "*B"], Float[Array, "*B"]]:
        """Where an action leads; the logit of the ending, which physics knows (0); and how unlikely what chance
        brought in the step to `after` is, which physics is told [nats] (`free` tells it from nothing else: 0)."""
        if self.physics is not None:
            unknown = self.unknown(observation, action, z)
            chance = self.physics.brought(self.numbers.apart(after))
            arrival = self.led(observation, action, unknown, chance)
            return arrival, jnp.zeros_like(arrival.reward), self.physics.unlikelihood(unknown, chance)
        arrival, logit = self.learned(observation, action, z)
        return arrival, logit, jnp.zeros_like(logit)

    def imagine(
        self,
        observation: Float[Array, "*B D"],
        action: Array,
        z: Float[Array, "*B Z"],
        deviation: Float[Array, " D+1"],
        key: Key[Array, ""],
    ) -> Arrival:
        """Where an action might lead: chance has its way, in physics where it has a say, and in all numbers and the
        reward of `free`, which are off by as much as `deviation` says."""
        if self.physics is not None:
            unknown = self.unknown(observation, action, z)
            return self.led(observation, action, unknown, self.physics.draw(unknown, key))
        arrival, _ = self.learned(observation, action, z)
        noise = deviation * jax.random.normal(key, (*arrival.reward.shape, deviation.shape[0]))
        return arrival._replace(
            observation=arrival.observation + noise[..., :-1], reward=arrival.reward + noise[..., -1]
        )

    def unknown(
        self, observation: Float[Array, "*B D"], action: Array, z: Float[Array, "*B Z"]
    ) -> Float[Array, "*B U"]:
        """What physics does not know."""
        assert self.physics is not None
        reads = z if self.physics.constant else self.reads(observation, action, z)
        return self.physics.bound * jnp.tanh(self.net(reads))

    def led(
        self,
        observation: Float[Array, "*B D"],
        action: Array,
        unknown: Float[Array, "*B U"],
        chance: Float[Array, "*B C"],
    ) -> Arrival:
        """What physics makes of them."""
        assert self.physics is not None
        seen, reward, ends = self.physics.advance(self.numbers.apart(observation), action, unknown, chance)
        return Arrival(self.numbers.flat(seen), reward, ends.astype(jnp.float32))

    def learned(
        self, observation: Float[Array, "*B D"], action: Array, z: Float[Array, "*B Z"]
    ) -> tuple[Arrival, Float[Array, "*B"]]:
        """What `free` foretells, and the logit of the ending."""
        assert self.pays is not None
        reads = self.reads(observation, action, z)
        pays = self.pays(reads)
        reward, logit = pays[..., 0], pays[..., 1]
        return Arrival(observation + self.net(reads), reward, jax.nn.sigmoid(logit)), logit

    def reads(self, observation: Float[Array, "*B D"], action: Array, z: Float[Array, "*B Z"]) -> Float[Array, "*B I"]:
        return jnp.concatenate([symlog(observation), self.spec.encode(action), z], -1)

    def loss(
        self,
        observation: Float[Array, "*B D"],
        action: Array,
        z: Float[Array, "*B Z"],
        after: Float[Array, "*B D"],
        reward: Float[Array, "*B"],
        ended: Float[Array, "*B"],
        counts: Float[Array, "*B"],
    ) -> tuple[Float[Array, ""], Float[Array, " D+1"]]:
        """Minus the log-likelihood of a step, in the mean over those that count and up to a constant, and the mean
        squared errors of each number and of the reward.

        Each is taken as normal, of the variance that makes all steps together likeliest (Rybkin et al. 2021, arXiv
        2006.13202): no weights have to be set between numbers of different units. What physics leaves to chance has the
        law that it says.

        The better a number is foretold, the more its errors count, without end: then of z nothing is learned that only
        the law of chance depends on. `coarse`, unless 0, is the least deviation, of errors of symlogs in place of
        numbers, as large numbers are further off.
        """
        foretold, logit, unlikelihood = self(observation, action, z, after)
        came = jnp.concatenate([after, reward[..., None]], -1)
        expected = jnp.concatenate([foretold.observation, foretold.reward[..., None]], -1)

        def mean(x: Float[Array, "*B D"]) -> Float[Array, " D"]:
            x = jnp.where(counts[..., None] > 0, x, 0.0)
            return x.sum(range(x.ndim - 1)) / jnp.maximum(1, counts.sum())

        squared = mean(jnp.square(came - expected))
        counted = mean(jnp.square(symlog(came) - symlog(expected))) if self.coarse else squared
        least = self.coarse or LEAST_DEVIATION
        loss = 0.5 * jnp.log(counted + least**2).sum() + mean(unlikelihood[..., None])[0]
        if self.physics is None:
            loss += mean((jax.nn.softplus(logit) - ended * logit)[..., None])[0]
        return loss, squared
