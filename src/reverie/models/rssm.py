"""The core of the recurrent state-space model: DreamerV3's world model (Hafner et al., arXiv 2301.04104).

h is what a block GRU carries from step to step; the posterior over z is told h and the observation, the prior h alone.
All else stands in `latent.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.models.core import bounded
from reverie.models.latent import Core, LatentConfig, LatentState
from reverie.nn.layers import BlockLinear, Dense, Head, Linear, RMSNorm, merge_blocks, over_time, rms_norm, split_blocks
from reverie.ranges import Width, checked


@dataclass(frozen=True)
@checked
class RSSMConfig(LatentConfig):
    """Sizes and weights of the model; `units` alone scales it."""

    blocks: Width = 8
    """Blocks of the recurrent layers; each reads its own part of h."""

    def __post_init__(self):
        super().__post_init__()
        if self.deter_size % self.blocks:
            raise ValueError(f"RSSM deter must be a positive multiple of blocks={self.blocks}, got {self.deter_size}")


PRESETS: Mapping[str, RSSMConfig] = MappingProxyType(
    {
        "size1m": RSSMConfig(units=64),
        "size12m": RSSMConfig(units=256),
        "size25m": RSSMConfig(units=384),
        "size50m": RSSMConfig(units=512),
        "size100m": RSSMConfig(units=768),
        "size200m": RSSMConfig(units=1024),
        "size400m": RSSMConfig(units=1536),
    }
)
"""The sizes of DreamerV3, whose names count the image nets too."""


class _Cut(NamedTuple):
    """Matrices cut where their inputs come from, once before a scan instead of in each of its steps."""

    mix_deter: Float[Array, "G d d"]
    mix_latent: Float[Array, "V D"]
    mix_action: Float[Array, "U D"]
    posterior_deter: Float[Array, "D U"]
    posterior_tokens: Float[Array, "E U"]


class BlockGRU(Core):
    """The recurrent core with prior and posterior over z."""

    kept: ClassVar[Any] = jnp.bfloat16
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
    blocks: int = eqx.field(static=True)

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
        self.config, self.blocks = config, blocks

    def initial(self, batch: int) -> LatentState:
        """Zeros."""
        c = self.config
        return LatentState(
            jnp.zeros((batch, c.deter_size), c.dtype), jnp.zeros((batch, c.stoch, c.class_count), c.dtype)
        )

    def observe(
        self,
        state: LatentState,
        tokens: Float[Array, "B T E"],
        action: Float[Array, "B T A"],
        begins: Bool[Array, "B T"],
        noise: Float[Array, "B T *S"],
    ) -> tuple[LatentState, tuple[LatentState, Float[Array, "B T Z"]]]:
        cut, dtype = self.cut(), tokens.dtype
        drive = self.drive(cut, jnp.where(begins[..., None], 0, action).astype(dtype))

        def step(state, inputs):
            drive, sight, begins, noise = inputs
            deter = jnp.where(begins[:, None], 0, state.deter)
            stoch = jnp.where(begins[:, None, None], 0, state.stoch)
            deter = self.recur(cut, deter, stoch, drive)
            logits = self.posterior(cut, deter, sight)
            state = LatentState(deter, self.config.latents.sample(logits, noise).astype(dtype))
            return state, (state, logits)

        return over_time(step, state, (drive, self.sight(cut, tokens), begins, noise))

    def advance(self, state: LatentState, action: Float[Array, "B A"]) -> LatentState:
        cut = self.cut()
        drive = self.drive(cut, action.astype(self.config.dtype))
        return state._replace(deter=self.recur(cut, state.deter, state.stoch, drive))

    def cut(self) -> _Cut:
        """A block of `mix` reads its part of h, then the hidden h, z and a, which are the same for all blocks."""
        units, deter = self.config.units, self.config.deter_size
        mix, posterior = self.mix.weight, self.posterior_in.linear.weight
        own, shared = jnp.split(mix, [deter // self.blocks], 1)
        shared = jnp.moveaxis(shared, 0, 1).reshape(3 * units, deter)
        return _Cut(own, shared[: 2 * units], shared[2 * units :], posterior[:deter], posterior[deter:])

    def drive(self, cut: _Cut, action: Float[Array, "*B A"]) -> Float[Array, "*B D"]:
        """What the action adds inside `mix`. It does not recur, so a whole sequence takes it at once."""
        hidden = self.action_in(bounded(action))
        return hidden @ cut.mix_action.astype(hidden.dtype) + self.mix.bias.reshape(-1).astype(hidden.dtype)

    def sight(self, cut: _Cut, tokens: Float[Array, "*B E"]) -> Float[Array, "*B U"]:
        """What the observation adds inside the posterior. It does not recur either."""
        return tokens @ cut.posterior_tokens.astype(tokens.dtype) + self.posterior_in.linear.bias.astype(tokens.dtype)

    def recur(
        self, cut: _Cut, deter: Float[Array, "B D"], stoch: Float[Array, "B S K"], drive: Float[Array, "B D"]
    ) -> Float[Array, "B D"]:
        """The next h. The blocks lead in here, which turns each block-diagonal matrix into one batched product."""
        blocks = self.blocks
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
        return self.prior_head(deter)
