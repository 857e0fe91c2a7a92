"""The core of R2I's structured state-space model ("Mastering Memory Tasks with World Models", arXiv 2403.04253).

It is DreamerV3's RSSM with two changes that let a sequence be taken at once. The posterior over z has seen one
observation and nothing else. And what carries the past is not a GRU but a stack of linear state-space layers
(`nn/ssm.py`), whose states x are the only recurrence; h is read off their output:

    z_t ~ q(z | o_t)    u_t = f(z_{t-1}, a_{t-1})    y_t, x_t = layers(u_t, x_{t-1})    h_t = g(y_t)    z_t ~ p(z | h_t)

The authors' release wipes x a step early in training, adds a learned start twice, and lets the last z of an episode
into the next one. Here an episode's first step knows nothing of the past, in training as in acting: x starts anew,
a_{t-1} is 0, and z_{t-1} is uniform, which no drawn z is. (The authors take the mode of the prior at a learned h, which
jumps as the prior learns. Zeros would make u_t zero at first, where gradients through norms are steeper by orders of
magnitude.)

Ours as well, and off unless asked for, are the product of memory and action in h, modes on a ring, and the recall loss
(`recall.py`; docs/r2i.md). All else stands in `latent.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.models.core import bounded, shifted
from reverie.models.latent import Core, LatentConfig, LatentState, flat
from reverie.nn.layers import Dense, Head, Linear, over_time, time_first
from reverie.nn.ssm import SSM, Block, Discretisation, Modes, Scan, check_size
from reverie.ranges import Layers, Weight, Width, WidthOrNone, between, checked


@dataclass(frozen=True)
@checked
class S3MConfig(LatentConfig):
    """Sizes and weights of the model. The defaults are what R2I uses for POPGym."""

    kind: ClassVar[str] = "s3m"
    units: Width = 512
    """Width of the state-space layers and of all hidden layers."""
    deter: WidthOrNone = 1024
    """Width of h; 8 x units where not given."""
    classes: Annotated[int | None, *between(2, 256)] = 32
    """Classes of each variable in z; units / 16 where not given."""
    depth: WidthOrNone = 32
    """Base depth of the convolutional nets; units / 16 where not given."""
    encoder_layers: Layers = 1
    """Hidden layers that read vectors and servers."""
    decoder_layers: Layers = 1
    """Hidden layers that reconstruct vectors and servers."""
    reward_layers: Layers = 2
    """Hidden layers of the reward head."""
    continue_layers: Layers = 2
    """Hidden layers of the continue head."""
    dyn_scale: Weight = 0.5
    """Weight of the loss that moves the prior towards the posterior."""
    layers: Layers = 3
    """State-space layers."""
    state: Width = 128
    """Modes P of a layer's state, conjugates included."""
    blocks: Width = 8
    """Blocks of HiPPO-LegS that a layer's transition starts as."""
    discretisation: Discretisation = "bilinear"
    """How a layer's continuous system becomes a recurrence; the authors use `zoh` for bsuite."""
    modes: Modes = "legs"
    """What a layer's transition is before training: blocks of HiPPO-LegS, or a `ring` of all frequencies, which keeps
    what changes at random from step to step far better (`nn/ssm.py`); it has no blocks."""
    scan: Scan = "auto"
    """How a sequence is taken; `auto` is `parallel` on accelerators and `sequential` on CPUs."""
    posterior: Literal["parallel", "recurrent"] = "parallel"
    """Whether z is told of the observation alone, as published, or of h as well, as in an RSSM: sequences are
    then taken step by step, on a GPU too."""
    policy: Literal["output", "hidden", "full"] = "hidden"
    """What actor and critic see beside z: `output` is h, `hidden` the states x of all layers, `full` both."""
    product: bool = False
    """Whether half of h is multiplied by an embedding of the last action; otherwise the action is known by way of the
    layers alone, as published. What an action earns for what is remembered is a product of the two, and is learned ten
    times as soon where the product is offered."""

    def __post_init__(self):
        super().__post_init__()
        check_size(self.state, self.blocks, self.modes)
        if self.posterior == "recurrent" and self.scan == "parallel":
            raise ValueError("S3M with posterior 'recurrent' has no parallel scan: give scan 'auto' or 'sequential'")


PRESETS: Mapping[str, S3MConfig] = MappingProxyType(
    {
        "popgym": S3MConfig(),
        "bsuite": S3MConfig(deter=512, encoder_layers=5, decoder_layers=5, discretisation="zoh"),
        "memory_maze": S3MConfig(
            units=1024,
            layers=5,
            state=512,
            deter=2048,
            depth=48,
            reward_layers=4,
            continue_layers=4,
            policy="full",
            dyn_scale=0.8,
            rep_scale=0.2,
        ),
        "atari": S3MConfig(layers=4, deter=512, policy="full"),
    }
)
"""The sizes that R2I's release uses for its benchmarks. Nets that read and draw images are those of `encoders.py`,
not the authors'."""


class StateSpace(Core):
    """The state-space layers, with the posterior and the prior over z. They carry their states x, L layers of P / 2
    pairs of a real and an imaginary part."""

    kept: ClassVar[Any] = jnp.float16
    """All later steps follow from x, so 11 significant bits are better than the 8 of bfloat16, and neither x nor h
    needs its range."""
    inputs: Dense
    layers: tuple[Block, ...]
    output: Linear
    factor: Linear | None
    posterior_head: Head
    prior_head: Head
    config: S3MConfig = eqx.field(static=True)
    blocks: int = eqx.field(static=True)

    def __init__(self, actions: int, tokens: int, config: S3MConfig, *, key: Key[Array, ""]):
        inputs_key, layers_key, output_key, factor_key, posterior_key, prior_key = jax.random.split(key, 6)
        c, units, stoch, deter = config, config.units, config.stoch_size, config.deter_size

        def block(key: Key[Array, ""]) -> Block:
            ssm_key, block_key = jax.random.split(key)
            return Block(SSM(units, c.state, c.blocks, c.discretisation, c.modes, key=ssm_key), key=block_key)

        self.inputs = Dense(stoch + actions, units, key=inputs_key)
        self.layers = tuple(block(k) for k in jax.random.split(layers_key, c.layers))
        self.output = Linear(units, deter, key=output_key)
        # One-hot actions have one weight each: times the root of their number, factors are of the order of 1.
        scale = actions**0.5
        self.factor = Linear(actions, deter // 2, scale=scale, key=factor_key) if c.product else None
        told = tokens + deter if c.posterior == "recurrent" else tokens
        self.posterior_head = Head(told, c.latents.outputs, units, layers=1, key=posterior_key)
        self.prior_head = Head(deter, c.latents.outputs, units, layers=1, key=prior_key)
        self.config, self.blocks = config, 1

    def initial(self, batch: int) -> LatentState:
        """h is zeros, z is uniform, x is the layers' learned start."""
        c, x0 = self.config, jnp.stack([block.ssm.x0 for block in self.layers])
        return LatentState(
            jnp.zeros((batch, c.deter_size), c.dtype),
            jnp.full((batch, c.stoch, c.class_count), 1 / c.class_count, c.dtype),
            jnp.broadcast_to(x0, (batch, *x0.shape)),
        )

    def observe(
        self,
        state: LatentState,
        tokens: Float[Array, "B T E"],
        action: Float[Array, "B T A"],
        begins: Bool[Array, "B T"],
        noise: Float[Array, "B T *S"],
    ) -> tuple[LatentState, tuple[LatentState, Float[Array, "B T Z"]]]:
        def draw(logits: Float[Array, "*B Z"], noise: Array) -> Float[Array, "*B S K"]:
            return self.config.latents.sample(logits, noise).astype(tokens.dtype)

        def step(state: LatentState, now: tuple[Array, ...]) -> tuple[LatentState, tuple[LatentState, Array]]:
            tokens, action, begins, noise = now
            one = state.stoch[:, None], action[:, None], begins[:, None]
            deter, hidden = (x[:, 0] for x in self.run(state.carried, *one))
            logits = self.posterior_head(jnp.concatenate([tokens, deter], -1))
            state = LatentState(deter, draw(logits, noise), hidden)
            return state, (state, logits)

        if self.config.posterior == "recurrent":
            return over_time(step, state, (tokens, action, begins, noise))
        logits = self.posterior_head(tokens)
        stoch = draw(logits, noise)
        before = shifted(state.stoch, stoch)
        deter, hidden = self.run(state.carried, before, action, begins)
        states = LatentState(deter, stoch, hidden)
        return jax.tree.map(lambda x: x[:, -1], states), (states, logits)

    def advance(self, state: LatentState, action: Float[Array, "B A"]) -> LatentState:
        no = jnp.zeros((action.shape[0], 1), bool)
        deter, hidden = self.run(state.carried, state.stoch[:, None], action[:, None], no)
        return LatentState(deter[:, 0], state.stoch, hidden[:, 0])

    def run(
        self,
        hidden: Float[Array, "B L P 2"],
        stoch: Float[Array, "B T S K"],
        action: Float[Array, "B T A"],
        begins: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T L P 2"]]:
        """h and x of a sequence, from x before it and the z and actions that lead to each step."""
        stoch = jnp.where(begins[..., None, None], 1 / self.config.class_count, stoch)
        action = jnp.where(begins[..., None], 0, action)
        action = bounded(action)
        led = jnp.concatenate([stoch.reshape(*begins.shape, -1), action.astype(stoch.dtype)], -1)
        x, resets = time_first(self.inputs(led)), time_first(begins)
        states = []
        for i, block in enumerate(self.layers):
            x, state = block(x, hidden[:, i], resets, self.config.scan)
            states.append(state)
        y = self.output(x)
        if self.factor is not None:
            plain, multiplied = jnp.split(y, [y.shape[-1] - self.factor.weight.shape[-1]], -1)
            factor = self.factor(time_first(action).astype(y.dtype))
            y = jnp.concatenate([plain, multiplied * factor], -1)
        return time_first(jax.nn.silu(y)), time_first(jnp.stack(states, 2))

    def prior(self, deter: Float[Array, "*B D"]) -> Float[Array, "*B Z"]:
        return self.prior_head(deter)

    def shown(self, state: LatentState) -> Float[Array, "*B F"]:
        """What `policy` says: h and z, z and x, or h, z and x, side by side."""
        shape = state.deter.shape[:-1]
        hidden = state.carried.reshape(*shape, -1).astype(self.config.dtype)
        match self.config.policy:
            case "output":
                return flat(state)
            case "hidden":
                return jnp.concatenate([state.stoch.reshape(*shape, -1), hidden], -1)
            case "full":
                return jnp.concatenate([flat(state), hidden], -1)
