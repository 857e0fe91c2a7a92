"""The parts of STORM that its mixture is made of too: sizes, from observations to z and back, tokens, heads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Needed
from reverie.models.encoders import Decoder, Encoder, Entries
from reverie.models.latents import DiscreteLatents, Precision, computed_in
from reverie.models.rows import Rows, Servers
from reverie.models.strided import StridedDecoder, StridedEncoder
from reverie.nn.distributions import Categorical, SquaredError, TwoHot
from reverie.nn.layers import Dense, Head, Linear, RMSNorm, SharedRows, truncated_normal
from reverie.ranges import Below1, Horizon, Layers, Weight, Whole, Width, at_least, between, checked


@dataclass(frozen=True)
@checked
class StormConfig:
    """Sizes and weights of the model. The defaults are STORM's, but for the window."""

    kind: ClassVar[str] = "storm"
    needs: ClassVar[Needed | None] = None
    units: Width = 512
    """Width of the hidden layers that read and reconstruct vectors and servers."""
    deter: Width = 512
    """Width D of the Transformer, of h and of the heads that read it."""
    layers: Layers = 2
    """Blocks of the Transformer."""
    heads: Width = 8
    """Heads of its attention."""
    window: Annotated[int, *at_least(2, 10_000, "keys and values of each are held in RAM")] = 16
    """Steps that a block attends to, the present one included (W). h knows of layers x (W - 1) earlier ones."""
    lent: Annotated[int | None, *at_least(0, 100_000)] = None
    """Rows before a replayed sequence that its past is made from anew; as many as it depends on where not given, so
    that it begins where acting stood. 0 is STORM's: each sequence begins with nothing before it."""
    dropout: Below1 = 0.1
    """Share of attention, and of what blocks add, that training drops."""
    stoch: Width = 32
    """Number of categorical variables in z."""
    classes: Annotated[int, *between(2, 256)] = 32
    """Classes of each of them."""
    depth: Width = 32
    """Channels of the first stage of the convolutional nets."""
    encoder_layers: Layers = 2
    """Hidden layers that read vectors and servers."""
    decoder_layers: Layers = 2
    """Hidden layers that reconstruct vectors and servers."""
    reward_layers: Layers = 2
    """Hidden layers of the reward head."""
    continue_layers: Layers = 2
    """Hidden layers of the continue head."""
    servers: Literal["flat", "set"] = "flat"
    """Whether servers are read in their order, or as a set in which each has variables of z of its own (`rows.py`):
    actor and critic then see a row for each, and no order matters."""
    of_server: Width = 4
    """Variables of z that each server of a set has."""
    carried: Width = 32
    """Numbers that are carried on for each server of a set, beside h."""
    recall: Whole = 0
    """Most steps back (R) of the recall loss, which reconstructs earlier observations from h; 0 is none, as published.
    Without it nothing asks h for what the policy has to remember: the reward after it can be read off older tokens."""
    acts: Literal["posterior", "prior"] = "posterior"
    """Which z the policy sees: that of the present observation, or as in STORM one that is foretold from what came
    before it, which is blind to all that cannot be foretold."""
    unimix: Below1 = 0.01
    """Share of the uniform distribution in every latent variable."""
    free_nats: Weight = 1.0
    """Mean KL below which the two KL losses stop pulling."""
    dyn_scale: Weight = 0.5
    """Weight of the loss that moves the prior towards the posterior."""
    rep_scale: Weight = 0.1
    """Weight of the loss that moves the posterior towards the prior."""
    horizon: Horizon = 66.7
    """Steps that the discount 1 - 1 / horizon looks ahead (0.985); the continue head learns it with the ends of
    episodes."""
    precision: Precision = "auto"
    """Type of the computations; `auto` is bfloat16 on a GPU and float32 elsewhere. Parameters, norms and losses stay
    float32."""

    def __post_init__(self):
        if self.deter % self.heads:
            raise ValueError(f"StormConfig: deter must be a multiple of heads={self.heads}, got {self.deter}")
        if self.recall and self.servers == "set":
            raise ValueError(
                f"StormConfig: recall must be 0 where servers is `set`, for what was seen of each server is carried "
                f"beside h, which recall reads; got {self.recall}"
            )

    @property
    def rows_lent(self) -> int:
        """Rows that replay lends: h of the oldest step in the cache depends on so many."""
        return self.layers * (self.window - 1) + 1 if self.lent is None else self.lent

    @property
    def stoch_size(self) -> int:
        """Width of the z of the world, which is all where there is no set of servers, laid flat."""
        return self.stoch * self.classes

    def latents(self, rows: int) -> DiscreteLatents:
        """z of the world and of so many servers of a set."""
        return DiscreteLatents(self.stoch + rows * self.of_server, self.classes, self.unimix)

    def rows(self, observation_spec: Mapping[str, ArraySpec]) -> int:
        """How many servers have a z of their own."""
        sets = Entries.of(observation_spec).servers if self.servers == "set" else ()
        return sets[0][1].shape[0] if sets else 0

    @property
    def own_size(self) -> int:
        """Width of the z of a server of a set."""
        return self.of_server * self.classes

    @property
    def dtype(self) -> str:
        """Type of the computations on this machine."""
        return computed_in(self.precision)


class Senses(eqx.Module):
    """From observations to z and back."""

    flat: Encoder | None
    cnn: StridedEncoder | None
    posterior: Linear
    dec: Decoder | None
    to_map: Float[Array, "Z M"] | None
    draw: StridedDecoder | None
    rows: Rows | None
    entries: Entries = eqx.field(static=True)
    map: tuple[int, int, int] = eqx.field(static=True)
    world: int = eqx.field(static=True)
    all: int = eqx.field(static=True)

    def __init__(
        self, observation_spec: Mapping[str, ArraySpec], config: StormConfig, told: int = 0, *, key: Key[Array, ""]
    ):
        """`told` numbers are known beside the observation."""
        keys, rows_key = iter(jax.random.split(key, 6)), jax.random.fold_in(key, 1)
        c, z, entries = config, config.stoch_size + told, Entries.of(observation_spec)
        rest = {name: entry for name, entry in observation_spec.items() if entry.kind != "image"}
        self.flat = self.cnn = self.dec = self.to_map = self.draw = self.rows = None
        self.entries, self.map, size = entries, (0, 0, 0), 0
        self.world, self.all = c.stoch_size, c.latents(c.rows(observation_spec)).outputs
        if entries.vectors or entries.servers:
            self.flat = Encoder(rest, c.units, c.encoder_layers, c.depth, c.servers, key=next(keys))
            decoder_key, size = next(keys), self.flat.size
            if self.all > self.world:
                layers = c.encoder_layers, c.decoder_layers
                self.rows = Rows(rest, size + told, c.own_size, c.units, layers, told, key=rows_key)
                rest = dict(entries.vectors)
            if rest:
                self.dec = Decoder(rest, 0, z, 1, c.units, c.decoder_layers, c.depth, key=decoder_key)
        if entries.images:
            height, width, _ = entries.images[0][1].shape
            self.map = height // 16, width // 16, 8 * c.depth
            size += math.prod(self.map)
            self.cnn = StridedEncoder(entries.channels, c.depth, key=next(keys))
            self.draw = StridedDecoder(entries.channels, c.depth, key=next(keys))
            self.to_map = truncated_normal(next(keys), (z, math.prod(self.map)), z)
        self.posterior = Linear(size + told, c.stoch_size, key=next(keys))

    def __call__(
        self, observation: dict[str, Array], told: Float[Array, "*B E"] | None = None, *, dtype: str
    ) -> Float[Array, "*B Z"]:
        """Logits of z."""
        tokens = [] if told is None else [told.astype(dtype)]
        if self.flat is not None:
            tokens.append(self.flat(observation, dtype))
        if self.cnn is not None:
            x = self.cnn(self.pixels(observation).astype(dtype))
            tokens.append(x.reshape(*x.shape[:-3], -1))
        read = jnp.concatenate(tokens, -1)
        logits = self.posterior(read)
        return logits if self.rows is None else jnp.concatenate([logits, self.rows(observation, read)], -1)

    def decoded(self, stoch: Float[Array, "*B Z"]) -> dict[str, Categorical | SquaredError]:
        """What z, and what is told after it, says is seen, images left out; servers flat [*B, N F]."""
        stoch, rows, told = self._parts(stoch)
        said = {} if self.dec is None else self.dec(stoch)
        return said if self.rows is None else said | {self.rows.name: self.rows.decoded(rows, told)}

    def loss(self, stoch: Float[Array, "*B Z"], observation: dict[str, Array]) -> Float[Array, "*B"]:
        """Squared errors of pixels in [0, 1] and of symlogs, summed over all that is seen. What is told follows z."""
        total = jnp.zeros(stoch.shape[:-1])
        stoch, rows, told = self._parts(stoch)
        if self.rows is not None:
            total += self.rows.loss(rows, told, observation)
        if self.dec is not None:
            total += self.dec.loss(stoch, observation)
        if self.draw is not None and self.to_map is not None:
            x = (stoch @ self.to_map.astype(stoch.dtype)).reshape(*stoch.shape[:-1], *self.map)
            error = self.draw(x).astype(jnp.float32) - self.pixels(observation)
            total += jnp.square(error).sum((-3, -2, -1))
        return total

    def present(self, observation: dict[str, Array]) -> Bool[Array, "*B N"] | None:
        """Which servers of a set are there."""
        return None if self.rows is None else self.entries.present(observation, self.rows.name)

    def pixels(self, observation: dict[str, Array]) -> Float[Array, "*B H W C"]:
        """All images side by side, in [0, 1]."""
        return jnp.concatenate([observation[name] for name, _ in self.entries.images], -1).astype(jnp.float32) / 255

    def _parts(self, stoch: Float[Array, "*B Z"]) -> tuple[Array, Array, Array]:
        """z of the world with what is told, z of servers, and what is told."""
        told = stoch[..., self.all :]
        if self.rows is None:
            return stoch, stoch[..., :0], told
        return jnp.concatenate([stoch[..., : self.world], told], -1), stoch[..., self.world : self.all], told


class Stem(eqx.Module):
    """z and the action after it, as one token."""

    hidden: Dense
    output: Linear
    norm: RMSNorm

    def __init__(self, inputs: int, width: int, *, key: Key[Array, ""]):
        hidden_key, output_key = jax.random.split(key)
        self.hidden, self.output = Dense(inputs, width, key=hidden_key), Linear(width, width, key=output_key)
        self.norm = RMSNorm(width)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B D"]:
        return self.norm(self.output(self.hidden(x)))


class Heads(eqx.Module):
    """What h foretells."""

    prior: Linear
    rows: SharedRows | None
    of_server: Linear | None
    rew: Head
    con: Head

    def __init__(self, config: StormConfig, told: int = 0, rows: int = 0, *, key: Key[Array, ""]):
        """`told` numbers are known beside h, and so many servers have a z of their own."""
        prior_key, rew_key, con_key = jax.random.split(key, 3)
        rows_key, of_server_key = jax.random.split(jax.random.fold_in(key, 1))
        c, d = config, config.deter
        self.prior = Linear(d + told, c.stoch_size, key=prior_key)
        self.rows = SharedRows(c.carried, d + told, c.units, 1, key=rows_key) if rows else None
        self.of_server = Linear(c.units, c.own_size, key=of_server_key) if rows else None
        self.rew = Head(d + told, TwoHot.BINS, d, c.reward_layers, scale=0.0, key=rew_key)
        self.con = Head(d + told, 1, d, c.continue_layers, key=con_key)

    def foretell(self, read: Float[Array, "*B D"], servers: Servers | None) -> Float[Array, "*B Z"]:
        """Logits of the prior of z, of a server by what was carried for it too."""
        world = self.prior(read)
        if servers is None or self.rows is None or self.of_server is None:
            return world
        rows = self.of_server(self.rows(servers.carried, read))
        return jnp.concatenate([world, rows.reshape(*world.shape[:-1], -1)], -1)
