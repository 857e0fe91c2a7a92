"""STORM's world model: a categorical autoencoder and a causal Transformer (Zhang et al. 2023, arXiv 2310.09615).

z is read off the present observation alone; what came before stands in h, which the Transformer makes of all earlier z
and actions:

    z_t ~ q(z | o_t)      h_t = transformer(stem(z_{t-1}, a_{t-1}), those before it)      z_t ~ p(z | h_t)

z is decoded to the observation; reward and continuation are read off h. Dreams keep the keys and values of the last
steps and take one new token a step.

Ours: attention has a window and counts positions backwards (`nn/attention.py`), so that a sequence at once is acting
step by step, and a sequence may begin where acting stood; nothing passes the border of an episode; and the policy sees
z of the present observation, where STORM's sees one that is foretold from the past (`acts`; docs/storm.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, BFloat16, Float, Int, Key, UInt8

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Sequence, WorldModel
from reverie.models.encoders import Decoder, Encoder, Entries
from reverie.models.latents import DiscreteLatents, Precision, computed_in
from reverie.models.recall import Recall
from reverie.models.strided import StridedDecoder, StridedEncoder
from reverie.nn.attention import Past, Transformer, slide, slides
from reverie.nn.distributions import Bernoulli, Categorical, TwoHot
from reverie.nn.layers import Dense, Head, Linear, RMSNorm, truncated_normal
from reverie.ranges import Below1, Horizon, Layers, Weight, Whole, Width, at_least, between, checked


@dataclass(frozen=True)
@checked
class StormConfig:
    """Sizes and weights of the model. The defaults are STORM's, but for the window."""

    kind: ClassVar[str] = "storm"
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
    """Whether the encoder reads servers in their order or as a set. z sees nothing but the present observation: of a
    set it cannot know which server is which."""
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

    @property
    def context(self) -> int:
        """Rows that replay lends: h of the oldest step in the cache depends on so many."""
        return self.layers * (self.window - 1) + 1 if self.lent is None else self.lent

    @property
    def stoch_size(self) -> int:
        """Width of z laid flat."""
        return self.stoch * self.classes

    @property
    def latents(self) -> DiscreteLatents:
        return DiscreteLatents(self.stoch, self.classes, self.unimix)

    @property
    def dtype(self) -> str:
        """Type of the computations on this machine."""
        return computed_in(self.precision)


PRESETS: Mapping[str, StormConfig] = MappingProxyType(
    {
        "tiny": StormConfig(
            units=32,
            deter=32,
            heads=2,
            window=4,
            dropout=0.0,
            stoch=8,
            classes=4,
            depth=2,
            encoder_layers=1,
            decoder_layers=1,
            reward_layers=1,
            continue_layers=1,
        ),
        "atari": StormConfig(window=64, lent=0, acts="prior"),
    }
)
"""STORM's, and a tiny one for tests."""


class StormState(NamedTuple):
    """What is known of a batch."""

    deter: Float[Array, "*B D"]
    """h"""
    stoch: Float[Array, "*B S K"]
    """z of the observation, or in a dream the foretold one."""
    foretold: Float[Array, "*B S K"] | None
    """z from the prior, where that is what the policy sees."""
    past: Past
    """In a complete state the cache [B, S, D] of each layer. In the states of a sequence each has its own keys and
    values alone [B, T, D]: `starts` makes caches of them. Replay keeps none."""


class Kept(NamedTuple):
    """What replay keeps: h in half precision, z by the indices of their classes."""

    deter: BFloat16[Array, "*B D"]
    stoch: UInt8[Array, "*B S"]
    foretold: UInt8[Array, "*B S"] | None


class Senses(eqx.Module):
    """From observations to z and back."""

    flat: Encoder | None
    cnn: StridedEncoder | None
    posterior: Linear
    dec: Decoder | None
    to_map: Float[Array, "Z M"] | None
    draw: StridedDecoder | None
    images: Entries = eqx.field(static=True)
    map: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self, observation_spec: Mapping[str, ArraySpec], config: StormConfig, told: int = 0, *, key: Key[Array, ""]
    ):
        """`told` numbers are known beside the observation."""
        keys = iter(jax.random.split(key, 6))
        c, z, entries = config, config.stoch_size + told, Entries.of(observation_spec)
        rest = {name: entry for name, entry in observation_spec.items() if entry.kind != "image"}
        self.flat = self.cnn = self.dec = self.to_map = self.draw = None
        self.images, self.map, size = entries, (0, 0, 0), 0
        if entries.vectors or entries.servers:
            self.flat = Encoder(rest, c.units, c.encoder_layers, c.depth, c.servers, key=next(keys))
            self.dec = Decoder(rest, 0, z, 1, c.units, c.decoder_layers, c.depth, key=next(keys))
            size = self.flat.size
        if entries.images:
            height, width, _ = entries.images[0][1].shape
            self.map = height // 16, width // 16, 8 * c.depth
            size += math.prod(self.map)
            self.cnn = StridedEncoder(entries.channels, c.depth, key=next(keys))
            self.draw = StridedDecoder(entries.channels, c.depth, key=next(keys))
            self.to_map = truncated_normal(next(keys), (z, math.prod(self.map)), z)
        self.posterior = Linear(size + told, c.latents.outputs, key=next(keys))

    def __call__(
        self, observation: dict[str, Array], dtype: str, told: Float[Array, "*B E"] | None = None
    ) -> Float[Array, "*B Z"]:
        """Logits of z."""
        tokens = [] if told is None else [told.astype(dtype)]
        if self.flat is not None:
            tokens.append(self.flat(observation, dtype))
        if self.cnn is not None:
            x = self.cnn(self.pixels(observation).astype(dtype))
            tokens.append(x.reshape(*x.shape[:-3], -1))
        return self.posterior(jnp.concatenate(tokens, -1))

    def loss(self, stoch: Float[Array, "*B Z"], observation: dict[str, Array]) -> Float[Array, "*B"]:
        """Squared errors of pixels in [0, 1] and of symlogs, summed over all that is seen. What is told follows z."""
        total = jnp.zeros(stoch.shape[:-1])
        if self.dec is not None:
            total += self.dec.loss(stoch, observation)
        if self.draw is not None and self.to_map is not None:
            x = (stoch @ self.to_map.astype(stoch.dtype)).reshape(*stoch.shape[:-1], *self.map)
            error = self.draw(x).astype(jnp.float32) - self.pixels(observation)
            total += jnp.square(error).sum((-3, -2, -1))
        return total

    def pixels(self, observation: dict[str, Array]) -> Float[Array, "*B H W C"]:
        """All images side by side, in [0, 1]."""
        return jnp.concatenate([observation[name] for name, _ in self.images.images], -1).astype(jnp.float32) / 255


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
    rew: Head
    con: Head

    def __init__(self, config: StormConfig, told: int = 0, *, key: Key[Array, ""]):
        """`told` numbers are known beside h."""
        prior_key, rew_key, con_key = jax.random.split(key, 3)
        c, d = config, config.deter
        self.prior = Linear(d + told, c.latents.outputs, key=prior_key)
        self.rew = Head(d + told, TwoHot.BINS, d, c.reward_layers, scale=0.0, key=rew_key)
        self.con = Head(d + told, 1, d, c.continue_layers, key=con_key)


class Storm(WorldModel):
    """STORM's world model."""

    senses: Senses
    stem: Stem
    transformer: Transformer
    heads: Heads
    rec: Recall | None
    config: StormConfig = eqx.field(static=True)

    def __init__(
        self, config: StormConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a world; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded (the message says which and why).
        """
        keys = iter(jax.random.split(key, 5))
        c, d = config, config.deter
        self.senses = Senses(observation_spec, config, key=next(keys))
        self.stem = Stem(c.stoch_size + actions, d, key=next(keys))
        self.transformer = Transformer(d, 2 * d, c.layers, c.heads, c.window, c.dropout, key=next(keys))
        self.heads = Heads(config, key=next(keys))
        sizes = c.units, c.decoder_layers, c.depth
        self.rec = Recall(observation_spec, c.recall, d, *sizes, key=next(keys)) if c.recall else None
        self.config = config

    @property
    def context(self) -> int:
        return self.config.context

    def initial(self, batch: int) -> StormState:
        """h is zeros, z is uniform, which no drawn z is, and there is no past."""
        c = self.config
        stoch = jnp.full((batch, c.stoch, c.classes), 1 / c.classes, c.dtype)
        foretold = jnp.copy(stoch) if c.acts == "prior" else None
        return StormState(
            jnp.zeros((batch, c.deter), c.dtype), stoch, foretold, self.transformer.nothing(batch, c.dtype)
        )

    def observe(self, state: StormState, sequence: Sequence, key: Key[Array, ""]) -> tuple[StormState, StormState]:
        states, _ = self._observe(state, sequence, key)
        last = jax.tree.map(lambda x: x[:, -1], states)
        return last._replace(past=slide(state.past, states.past)), states

    def imagine(self, state: StormState, action: Float[Array, "B A"], key: Key[Array, ""]) -> StormState:
        no = jnp.zeros((action.shape[0], 1), bool)
        deter, past = self.transformer(self._token(state.stoch, action)[:, None], state.past, no)
        stoch = self._foretell(deter[:, 0], key)
        foretold = stoch if self.config.acts == "prior" else None
        return StormState(deter[:, 0], stoch, foretold, slide(state.past, past))

    def features(self, state: StormState) -> Features:
        """h and the z that the policy sees, side by side."""
        return Features(jnp.concatenate([state.deter, flat(seen(state))], -1))

    def reward(self, state: StormState) -> Float[Array, "*B"]:
        return TwoHot(self.heads.rew(state.deter)).mean()

    def continues(self, state: StormState) -> Float[Array, "*B"]:
        return Bernoulli(self.heads.con(state.deter)[..., 0]).mean()

    def loss(
        self, state: StormState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[StormState, dict[str, Float[Array, ""]]]]:
        """Reconstruction, reward, continue, the two KL losses and, if asked for, recall, averaged over batch and time.

        Metrics as in `latent.py`; the free nats are of the mean KL (STORM), not of that of each step (DreamerV3).
        """
        c, (draw_key, dropout_key, recall_key, foretold_key) = self.config, jax.random.split(key, 4)
        states, logits = self._observe(state, sequence, draw_key, dropout_key)
        posterior, prior = (c.latents.distribution(x) for x in (logits, self.heads.prior(states.deter)))
        kl = posterior.kl(prior).sum(-1)
        goes_on = self.discount * (1.0 - sequence.is_terminal)
        metrics = {
            "model/reconstruction": self.senses.loss(flat(states.stoch), sequence.observation).mean(),
            "model/reward": TwoHot(self.heads.rew(states.deter)).loss(sequence.reward).mean(),
            "model/continue": Bernoulli(self.heads.con(states.deter)[..., 0]).loss(goes_on).mean(),
        }
        if self.rec is not None:
            foretold, observation = flat(self._foretell(states.deter, foretold_key)), sequence.observation
            surprise = stop_gradient(self.senses.loss(foretold, observation))
            recalled = self.rec.loss(states.deter, observation, self.borders(sequence), surprise, recall_key)
            metrics["model/recall"] = recalled.mean()
        loss = sum(metrics.values(), jnp.zeros(()))
        metrics |= kl_losses(posterior, prior, c.free_nats)
        loss += c.dyn_scale * metrics["model/dyn"] + c.rep_scale * metrics["model/rep"]
        metrics |= {
            "model/kl": kl.mean(),
            "model/entropy_posterior": posterior.entropy().sum(-1).mean(),
            "model/entropy_prior": prior.entropy().sum(-1).mean(),
        }
        return loss, (states, metrics)

    def compress(self, state: StormState) -> Kept:
        return compress(self.config, state)

    def expand(self, stored: Kept) -> StormState:
        return expand(self.config, stored)

    def resume(self, stored: Kept, lent: Sequence, key: Key[Array, ""]) -> StormState:
        """h and z as they were; the past of the model of now, made from what was lent."""
        before = self.initial(stored.deter.shape[0])
        if self.context:
            before, _ = self.observe(before, lent, key)
        return stop_gradient(self.expand(stored)._replace(past=before.past))

    def starts(self, before: StormState, states: StormState, index: Int[Array, " n"]) -> StormState:
        past = slides(before.past, states.past, index)
        return super().starts(before, states, index)._replace(past=past)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _observe(
        self, state: StormState, sequence: Sequence, key: Key[Array, ""], dropout: Key[Array, ""] | None = None
    ) -> tuple[StormState, Float[Array, "B T Z"]]:
        """The states of a sequence, and what the posterior says of their z."""
        c, begins = self.config, self.borders(sequence)
        stoch_key, foretold_key = jax.random.split(key)
        logits = self.senses(sequence.observation, c.dtype)
        stoch = c.latents.sample(logits, c.latents.noise(begins.shape, stoch_key)).astype(c.dtype)
        before = jnp.concatenate([state.stoch[:, None], stoch[:, :-1]], 1)
        before = jnp.where(begins[..., None, None], 1 / c.classes, before)
        tokens = self._token(before, jnp.where(begins[..., None], 0, sequence.action))
        deter, past = self.transformer(tokens, state.past, begins, dropout)
        foretold = self._foretell(deter, foretold_key) if c.acts == "prior" else None
        return StormState(deter, stoch, foretold, past), logits

    def _token(self, stoch: Float[Array, "*B S K"], action: Float[Array, "*B A"]) -> Float[Array, "*B D"]:
        action = action / stop_gradient(jnp.maximum(1, jnp.abs(action)))
        return self.stem(jnp.concatenate([flat(stoch), action.astype(stoch.dtype)], -1))

    def _foretell(self, deter: Float[Array, "*B D"], key: Key[Array, ""]) -> Float[Array, "*B S K"]:
        """z drawn from the prior."""
        noise = self.config.latents.noise(deter.shape[:-1], key)
        return self.config.latents.sample(self.heads.prior(deter), noise).astype(deter.dtype)


def compress(config: StormConfig, state: StormState) -> Kept:
    """What replay keeps of states."""
    stoch, foretold = jax.tree.map(config.latents.compress, (state.stoch, state.foretold))
    return Kept(state.deter.astype(jnp.bfloat16), stoch, foretold)


def expand(config: StormConfig, stored: Kept) -> StormState:
    """States without a past."""
    dtype, known = config.dtype, jnp.zeros((*stored.deter.shape[:-1], 0), bool)
    stoch, foretold = jax.tree.map(partial(config.latents.expand, dtype=dtype), (stored.stoch, stored.foretold))
    return StormState(stored.deter.astype(dtype), stoch, foretold, Past((), known))


def seen(state: StormState) -> Float[Array, "*B S K"]:
    """The z that the policy sees."""
    return state.stoch if state.foretold is None else state.foretold


def flat(stoch: Float[Array, "*B S K"]) -> Float[Array, "*B Z"]:
    return stoch.reshape(*stoch.shape[:-2], -1)


def kl_losses(posterior: Categorical, prior: Categorical, free_nats: float) -> dict[str, Float[Array, ""]]:
    """The losses that move the prior towards the posterior and back: neither pulls where the mean KL is below the free
    nats."""
    dyn, rep = stop_gradient(posterior).kl(prior), posterior.kl(stop_gradient(prior))
    return {
        "model/dyn": jnp.maximum(free_nats, dyn.sum(-1).mean()),
        "model/rep": jnp.maximum(free_nats, rep.sum(-1).mean()),
    }
