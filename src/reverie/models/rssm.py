"""The recurrent state-space model: DreamerV3's world model (Hafner et al., arXiv 2301.04104).

The state is a pair: h (`deter`), what a block GRU carries from step to step, and z (`stoch`), S one-hot variables of K
classes drawn from the posterior, which has seen the observation, or from the prior, which has not. z may be Gaussian
instead (`latents.py`). Actors, critics and replay live elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, BFloat16, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Sequence
from reverie.models.encoders import Decoder, Encoder
from reverie.models.latents import Distribution, LatentKind, Latents, Stored, latents
from reverie.nn.distributions import Bernoulli, TwoHot
from reverie.nn.layers import BlockLinear, Dense, Head, Linear, RMSNorm, merge_blocks, rms_norm, split_blocks
from reverie.ranges import Below1, Horizon, Layers, Weight, Width, WidthOrNone, between, checked


@dataclass(frozen=True)
@checked
class RSSMConfig:
    """Sizes and weights of the model; `units` alone scales it."""

    units: Width = 64
    """Width of all hidden layers."""
    deter: WidthOrNone = None
    """Width of h; 8 x units where not given."""
    latent: LatentKind = "discrete"
    """Whether z is one-hot variables, as published, or as many Gaussian numbers."""
    stoch: Width = 32
    """Number of categorical variables in z."""
    classes: Annotated[int | None, *between(2, 256)] = None
    """Classes of each variable in z; units / 16 where not given. Gaussian z is stoch x classes numbers."""
    depth: WidthOrNone = None
    """Base depth of the convolutional nets; units / 16 where not given."""
    blocks: Width = 8
    """Blocks of the recurrent layers; each reads its own part of h."""
    encoder_layers: Layers = 3
    """Hidden layers that read vectors and servers."""
    decoder_layers: Layers = 3
    """Hidden layers that reconstruct vectors and servers."""
    reward_layers: Layers = 1
    """Hidden layers of the reward head."""
    continue_layers: Layers = 1
    """Hidden layers of the continue head."""
    servers: Literal["flat", "set"] = "flat"
    """Whether the encoder reads servers in their order or as a set."""
    unimix: Below1 = 0.01
    """Share of the uniform distribution in every discrete latent variable."""
    free_nats: Weight = 1.0
    """KL below which the two KL losses stop pulling."""
    dyn_scale: Weight = 1.0
    """Weight of the loss that moves the prior towards the posterior."""
    rep_scale: Weight = 0.1
    """Weight of the loss that moves the posterior towards the prior."""
    horizon: Horizon = 333.0
    """Steps that the discount 1 - 1 / horizon looks ahead; the continue head learns it with the ends of episodes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computations; `auto` is bfloat16 on a GPU and float32 elsewhere. Parameters, norms and losses stay
    float32."""

    def __post_init__(self):
        if self.class_count < 2:
            raise ValueError(
                f"RSSM classes must be at least 2, got {self.class_count} (units / 16 with units={self.units}; "
                "give classes, or more units)"
            )
        if self.deter_size % self.blocks:
            raise ValueError(f"RSSM deter must be a positive multiple of blocks={self.blocks}, got {self.deter_size}")

    @property
    def dtype(self) -> str:
        """Type of the computations on this machine."""
        if self.precision == "auto":
            return "bfloat16" if jax.default_backend() == "gpu" else "float32"
        return self.precision

    @property
    def deter_size(self) -> int:
        """Width D of h."""
        return 8 * self.units if self.deter is None else self.deter

    @property
    def class_count(self) -> int:
        """Classes K of each variable in z."""
        return self.units // 16 if self.classes is None else self.classes

    @property
    def stoch_size(self) -> int:
        """Width S * K of z laid flat."""
        return self.stoch * self.class_count

    @property
    def latents(self) -> Latents:
        """What z is."""
        return latents(self.latent, self.stoch, self.class_count, self.unimix)

    @property
    def cnn_depth(self) -> int:
        return max(1, self.units // 16) if self.depth is None else self.depth

    @property
    def discount(self) -> float:
        return 1 - 1 / self.horizon


PRESETS: Mapping[str, RSSMConfig] = MappingProxyType(
    {
        "tiny": RSSMConfig(units=32, deter=64, stoch=8, classes=4, depth=1, blocks=4),
        "size1m": RSSMConfig(units=64),
        "size12m": RSSMConfig(units=256),
        "size25m": RSSMConfig(units=384),
        "size50m": RSSMConfig(units=512),
        "size100m": RSSMConfig(units=768),
        "size200m": RSSMConfig(units=1024),
        "size400m": RSSMConfig(units=1536),
    }
)
"""The sizes of DreamerV3, whose names count the image nets too, and a tiny one for tests."""


class RSSMState(NamedTuple):
    """h and z of a batch."""

    deter: Float[Array, "*B D"]
    stoch: Float[Array, "*B S K"]


class StoredState(NamedTuple):
    """An `RSSMState` as replay keeps it: h in half precision, z as the index of the class or in half precision."""

    deter: BFloat16[Array, "*B D"]
    stoch: Stored


class _Cut(NamedTuple):
    """Matrices cut where their inputs come from, once before a scan instead of in each of its steps."""

    mix_deter: Float[Array, "G d d"]
    mix_latent: Float[Array, "V D"]
    mix_action: Float[Array, "U D"]
    posterior_deter: Float[Array, "D U"]
    posterior_tokens: Float[Array, "E U"]


class Dynamics(eqx.Module):
    """The recurrent core with prior and posterior over z."""

    deter_in: Dense
    stoch_in: Dense
    action_in: Dense
    mix: BlockLinear
    mix_norm: RMSNorm
    gates: BlockLinear
    posterior_in: Dense
    posterior_out: Linear
    prior_head: Head
    config: RSSMConfig = eqx.field(static=True)

    def __init__(self, actions: int, tokens: int, config: RSSMConfig, *, key: Key[Array, ""]):
        keys = iter(jax.random.split(key, 8))
        deter, stoch, units, blocks = config.deter_size, config.stoch_size, config.units, config.blocks
        self.deter_in = Dense(deter, units, key=next(keys))
        self.stoch_in = Dense(stoch, units, key=next(keys))
        self.action_in = Dense(actions, units, key=next(keys))
        self.mix = BlockLinear(deter + 3 * units * blocks, deter, blocks, key=next(keys))
        self.mix_norm = RMSNorm(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks, key=next(keys))
        self.posterior_in = Dense(deter + tokens, units, key=next(keys))
        self.posterior_out = Linear(units, config.latents.outputs, key=next(keys))
        self.prior_head = Head(deter, config.latents.outputs, units, layers=2, key=next(keys))
        self.config = config

    def cut(self) -> _Cut:
        """A block of `mix` reads its part of h, then the hidden h, z and a, which are the same for all blocks."""
        units, deter = self.config.units, self.config.deter_size
        mix, posterior = self.mix.weight, self.posterior_in.linear.weight
        own, shared = jnp.split(mix, [deter // self.config.blocks], 1)
        shared = jnp.moveaxis(shared, 0, 1).reshape(3 * units, deter)
        return _Cut(own, shared[: 2 * units], shared[2 * units :], posterior[:deter], posterior[deter:])

    def drive(self, cut: _Cut, action: Float[Array, "*B A"]) -> Float[Array, "*B D"]:
        """What the action adds inside `mix`. It does not recur, so a whole sequence takes it at once."""
        bounded = action / stop_gradient(jnp.maximum(1, jnp.abs(action)))
        hidden = self.action_in(bounded)
        return hidden @ cut.mix_action.astype(hidden.dtype) + self.mix.bias.reshape(-1).astype(hidden.dtype)

    def sight(self, cut: _Cut, tokens: Float[Array, "*B E"]) -> Float[Array, "*B U"]:
        """What the observation adds inside the posterior. It does not recur either."""
        return tokens @ cut.posterior_tokens.astype(tokens.dtype) + self.posterior_in.linear.bias.astype(tokens.dtype)

    def recur(
        self, cut: _Cut, deter: Float[Array, "B D"], stoch: Float[Array, "B S K"], drive: Float[Array, "B D"]
    ) -> Float[Array, "B D"]:
        """The next h. The blocks lead in here, which turns each block-diagonal matrix into one batched product."""
        blocks = self.config.blocks
        latent = jnp.concatenate([self.deter_in(deter), self.stoch_in(stoch.reshape(stoch.shape[0], -1))], -1)
        deter = split_blocks(deter, blocks)  # [G, B, D/G]
        shared = latent @ cut.mix_latent.astype(latent.dtype) + drive
        x = deter @ cut.mix_deter.astype(deter.dtype) + split_blocks(shared, blocks)
        x = jax.nn.silu(rms_norm(x, self.mix_norm.scale.reshape(blocks, 1, -1), axis=(0, -1)))
        reset, candidate, update = jnp.split(self.gates(x), 3, -1)  # each [G, B, D/G]
        update = jax.nn.sigmoid(update - 1)
        return merge_blocks(update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1 - update) * deter)

    def posterior(self, cut: _Cut, deter: Float[Array, "*B D"], sight: Float[Array, "*B U"]) -> Float[Array, "*B Z"]:
        """Logits of z after the observation (means and spreads of Gaussian z)."""
        x = deter @ cut.posterior_deter.astype(deter.dtype) + sight
        return self.posterior_out(jax.nn.silu(self.posterior_in.norm(x)))

    def prior(self, deter: Float[Array, "*B D"]) -> Float[Array, "*B Z"]:
        """Logits of z before the observation."""
        return self.prior_head(deter)

    def latents(self, logits: Float[Array, "*B Z"]) -> Distribution:
        """The distribution of each of the S variables."""
        return self.config.latents.distribution(logits)


class RSSM(eqx.Module):
    """DreamerV3's world model, behind the `WorldModel` protocol."""

    enc: Encoder
    dyn: Dynamics
    dec: Decoder
    rew: Head
    con: Head
    config: RSSMConfig = eqx.field(static=True)

    def __init__(
        self, config: RSSMConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a world; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded (the message says which and why).
        """
        enc_key, dyn_key, dec_key, rew_key, con_key = jax.random.split(key, 5)
        deter, stoch, units = config.deter_size, config.stoch_size, config.units
        self.config = config
        self.enc = Encoder(
            observation_spec, units, config.encoder_layers, config.cnn_depth, config.servers, key=enc_key
        )
        self.dyn = Dynamics(actions, self.enc.size, config, key=dyn_key)
        self.dec = Decoder(
            observation_spec, deter, stoch, config.blocks, units, config.decoder_layers, config.cnn_depth, key=dec_key
        )
        self.rew = Head(deter + stoch, TwoHot.BINS, units, config.reward_layers, scale=0.0, key=rew_key)
        self.con = Head(deter + stoch, 1, units, config.continue_layers, key=con_key)

    @property
    def discount(self) -> float:
        """The discount per step that `continues` contains."""
        return self.config.discount

    def initial(self, batch: int) -> RSSMState:
        """Zeros."""
        config = self.config
        return RSSMState(
            jnp.zeros((batch, config.deter_size), config.dtype),
            jnp.zeros((batch, config.stoch, config.class_count), config.dtype),
        )

    def observe(
        self,
        state: RSSMState,
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        key: Key[Array, ""],
    ) -> RSSMState:
        """Posterior states [B, T, ...] of a sequence that begins right after `state` [B, ...]. Acting is T = 1."""
        return self._observe(state, observation, action, is_first, self._noise(is_first.shape, key))[0]

    def imagine(self, state: RSSMState, action: Float[Array, "B A"], key: Key[Array, ""]) -> RSSMState:
        """One step of the prior: what comes after doing `action` in `state`, unseen."""
        cut = self.dyn.cut()
        deter = self.dyn.recur(cut, *state, self.dyn.drive(cut, action.astype(self.config.dtype)))
        stoch = self.config.latents.sample(self.dyn.prior(deter), self._noise(action.shape[:1], key))
        return RSSMState(deter, stoch.astype(deter.dtype))

    def features(self, state: RSSMState) -> Features:
        """h and flat z, side by side."""
        return Features(jnp.concatenate([state.deter, state.stoch.reshape(*state.deter.shape[:-1], -1)], -1))

    def reward(self, features: Features) -> Float[Array, "*B"]:
        """Expected reward of arriving in a state."""
        return TwoHot(self.rew(features.context)).mean()

    def continues(self, features: Features) -> Float[Array, "*B"]:
        """Discount times the probability that the episode goes on (the discount is folded in)."""
        return Bernoulli(self.con(features.context)[..., 0]).mean()

    def loss(
        self, state: RSSMState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[RSSMState, dict[str, Float[Array, ""]]]]:
        """Reconstruction, reward, continue and the two KL losses, averaged over batch and time.

        Metrics, all in nats or squared units per step: `model/dyn` and `model/rep` (both at least the free nats),
        `model/kl` (before that), `model/reconstruction`, `model/reward`, `model/continue`, and the entropies of all
        latent variables together, `model/entropy_posterior` and `model/entropy_prior`.
        """
        observation, action, reward, is_first, _, is_terminal = sequence
        noise = self._noise(is_first.shape, key)
        states, logits = self._observe(state, observation, action, is_first, noise)
        posterior, prior = self.dyn.latents(logits), self.dyn.latents(self.dyn.prior(states.deter))
        context = self.features(states).context

        dyn = stop_gradient(posterior).kl(prior).sum(-1)  # [B, T]
        rep = posterior.kl(stop_gradient(prior)).sum(-1)
        terms = {
            "model/dyn": jnp.maximum(self.config.free_nats, dyn),
            "model/rep": jnp.maximum(self.config.free_nats, rep),
            "model/reconstruction": self.dec.loss(context, observation),
            "model/reward": TwoHot(self.rew(context)).loss(reward),
            "model/continue": Bernoulli(self.con(context)[..., 0]).loss(self.config.discount * (1.0 - is_terminal)),
        }
        metrics = {name: term.mean() for name, term in terms.items()}
        scales = {"model/dyn": self.config.dyn_scale, "model/rep": self.config.rep_scale}
        loss = sum((scales.get(name, 1.0) * value for name, value in metrics.items()), jnp.zeros(()))
        metrics["model/kl"] = dyn.mean()
        metrics["model/entropy_posterior"] = posterior.entropy().sum(-1).mean()
        metrics["model/entropy_prior"] = prior.entropy().sum(-1).mean()
        return loss, (states, metrics)

    def compress(self, state: RSSMState) -> StoredState:
        """The state as replay keeps it. Discrete z must be one-hot, which is true of every state but `initial`."""
        return StoredState(state.deter.astype(jnp.bfloat16), self.config.latents.compress(state.stoch))

    def expand(self, stored: StoredState) -> RSSMState:
        """Undo `compress`, up to rounding."""
        stoch = self.config.latents.expand(stored.stoch, self.config.dtype)
        return RSSMState(stored.deter.astype(self.config.dtype), stoch)

    def _noise(self, shape: tuple[int, ...], key: Key[Array, ""]) -> Float[Array, "*B"]:
        """The random numbers that decide z in states of leading axes `shape`."""
        return self.config.latents.noise(shape, key)

    def _observe(
        self,
        state: RSSMState,
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        noise: Float[Array, "B T *S"],
    ) -> tuple[RSSMState, Float[Array, "B T Z"]]:
        """`observe` with its randomness given, and the logits of z beside the states."""
        dtype = self.config.dtype
        cut = self.dyn.cut()
        drive = self.dyn.drive(cut, jnp.where(is_first[..., None], 0, action).astype(dtype))
        sight = self.dyn.sight(cut, self.enc(observation, dtype))

        def step(state, inputs):
            drive, sight, is_first, noise = inputs
            deter = jnp.where(is_first[:, None], 0, state.deter)
            stoch = jnp.where(is_first[:, None, None], 0, state.stoch)
            deter = self.dyn.recur(cut, deter, stoch, drive)
            logits = self.dyn.posterior(cut, deter, sight)
            state = RSSMState(deter, self.config.latents.sample(logits, noise).astype(dtype))
            return state, (state, logits)

        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (drive, sight, is_first, noise))
        _, outputs = jax.lax.scan(step, state, inputs)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)
