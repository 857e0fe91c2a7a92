"""The structured state-space model of R2I ("Mastering Memory Tasks with World Models", arXiv 2403.04253).

It is DreamerV3's RSSM with two changes that let a sequence be taken at once. The posterior over z has seen one
observation and nothing else. And what carries the past is not a GRU but a stack of linear state-space layers
(`nn/ssm.py`), whose states x are the only recurrence; h is read off their output:

    z_t ~ q(z | o_t)    u_t = f(z_{t-1}, a_{t-1})    y_t, x_t = layers(u_t, x_{t-1})    h_t = g(y_t)    z_t ~ p(z | h_t)

The authors' release wipes x a step early in training, adds a learned start twice, and lets the last z of an episode
into the next one. Here an episode's first step knows nothing of the past, in training as in acting: x starts anew,
a_{t-1} is 0, and z_{t-1} is uniform, which no drawn z is. (The authors take the mode of the prior at a learned h, which
jumps as the prior learns. Zeros would make u_t zero at first, where gradients through norms are steeper by orders of
magnitude.)

Ours as well, and off unless asked for, are the recall loss (what only rewards ask for is learned slowly), the product
of memory and action in h, and modes on a ring (docs/r2i.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Float16, Int, Key, UInt8

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Sequence
from reverie.models.encoders import Decoder, Encoder
from reverie.nn.distributions import Bernoulli, Categorical, TwoHot
from reverie.nn.layers import Dense, Head, Linear
from reverie.nn.ssm import MIMO, SISO, Block, Discretisation, Modes, Scan, Transition, check_size, check_transition
from reverie.ranges import Below1, Classes, Horizon, Layers, Weight, Whole, Width, checked

DRAWS = 8
"""Earlier observations that are recalled at each step."""
RECALLED_ANYWAY = 0.1
"""Weight of what does not surprise at all, in units of the mean surprise."""


@dataclass(frozen=True)
@checked
class S3MConfig:
    """Sizes and weights of the model. The defaults are what R2I uses for POPGym."""

    units: Width = 512
    """Width of the state-space layers and of all hidden layers."""
    layers: Layers = 3
    """State-space layers."""
    state: Width = 128
    """Modes P of a layer's state, conjugates included; with `siso`, those of each of its channels."""
    blocks: Width = 8
    """Blocks of HiPPO-LegS that a layer's transition starts as."""
    ssm: Literal["mimo", "siso"] = "mimo"
    """Whether all channels share a layer's state (S5) or each has its own (diagonal S4)."""
    symmetric: bool = True
    """Keep one of each pair of conjugate modes, as of a real system; the authors keep both, at twice the cost."""
    discretisation: Discretisation = "bilinear"
    """How a layer's continuous system becomes a recurrence; the authors use `zoh` for bsuite."""
    transition: Transition = "diagonal"
    """Whether a layer's transition is diagonal or has S4's low-rank correction as well, which is taken step by step."""
    modes: Modes = "legs"
    """What a layer's memory is before training: blocks of HiPPO-LegS, or a `ring` of all frequencies, which keeps what
    changes at random from step to step far better (`nn/ssm.py`); it has no blocks."""
    scan: Scan = "auto"
    """How a sequence is taken; `auto` is `parallel` on accelerators and `sequential` on CPUs."""
    deter: Width = 1024
    """Width of h."""
    stoch: Width = 32
    """Number of categorical variables in z."""
    classes: Classes = 32
    """Classes of each variable in z."""
    depth: Width = 32
    """Base depth of the convolutional nets."""
    encoder_layers: Layers = 1
    """Hidden layers that read vectors and servers."""
    decoder_layers: Layers = 1
    """Hidden layers that reconstruct vectors and servers."""
    reward_layers: Layers = 2
    """Hidden layers of the reward head."""
    continue_layers: Layers = 2
    """Hidden layers of the continue head."""
    servers: Literal["flat", "set"] = "flat"
    """Whether the encoder reads servers in their order or as a set."""
    posterior: Literal["parallel", "recurrent"] = "parallel"
    """Whether z is told of the observation alone, as published, or of h as well, as in an RSSM: sequences are
    then taken step by step, on a GPU too."""
    policy: Literal["output", "hidden", "full"] = "hidden"
    """What actor and critic see beside z: `output` is h, `hidden` the states x of all layers, `full` both."""
    recall: Whole = 0
    """Most steps back (R) of the recall loss, which reconstructs earlier observations from h; 0 is none, as
    published. What has to be remembered is otherwise learned from the few rewards that depend on it."""
    product: bool = False
    """Whether half of h is multiplied by an embedding of the last action; otherwise the action is known by way of the
    layers alone, as published. What an action earns for what is remembered is a product of the two, and is learned ten
    times as soon where the product is offered."""
    unimix: Below1 = 0.01
    """Share of the uniform distribution in every latent variable."""
    free_nats: Weight = 1.0
    """KL below which the two KL losses stop pulling."""
    dyn_scale: Weight = 0.5
    """Weight of the loss that moves the prior towards the posterior."""
    rep_scale: Weight = 0.1
    """Weight of the loss that moves the posterior towards the prior."""
    horizon: Horizon = 333.0
    """Steps that the discount 1 - 1 / horizon looks ahead; the continue head learns it with the ends of episodes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computations; `auto` is bfloat16 on a GPU and float32 elsewhere. Parameters, states x, norms
    and losses stay float32."""

    def __post_init__(self):
        check_size(self.state, self.blocks, self.symmetric, self.modes)
        check_transition(self.transition, self.discretisation, self.modes)
        if self.transition == "dplr" and self.scan == "parallel":
            raise ValueError("S3M with transition 'dplr' has no parallel scan: give scan 'auto' or 'sequential'")
        if self.posterior == "recurrent" and self.scan == "parallel":
            raise ValueError("S3M with posterior 'recurrent' has no parallel scan: give scan 'auto' or 'sequential'")

    @property
    def dtype(self) -> str:
        """Type of the computations on this machine."""
        if self.precision == "auto":
            return "bfloat16" if jax.default_backend() == "gpu" else "float32"
        return self.precision

    @property
    def stoch_size(self) -> int:
        """Width S * K of z laid flat."""
        return self.stoch * self.classes

    @property
    def discount(self) -> float:
        return 1 - 1 / self.horizon


PRESETS: Mapping[str, S3MConfig] = MappingProxyType(
    {
        "tiny": S3MConfig(units=32, layers=2, state=16, blocks=2, deter=32, stoch=8, classes=4, depth=1),
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
"""The sizes that R2I's release uses for its benchmarks, and a tiny one for tests. Nets that read and draw images are
those of `encoders.py`, not the authors'."""


class S3MState(NamedTuple):
    """h and z of a batch, and the states x of the L layers as pairs of a real and an imaginary part."""

    deter: Float[Array, "*B D"]
    stoch: Float[Array, "*B S K"]
    hidden: Float[Array, "*B L P 2"]


class StoredState(NamedTuple):
    """An `S3MState` as replay keeps it. All later steps follow from x, so 11 significant bits are better than the 8 of
    bfloat16, and neither x nor h needs its range."""

    deter: Float16[Array, "*B D"]
    stoch: UInt8[Array, "*B S"]
    hidden: Float16[Array, "*B L P 2"]


class Dynamics(eqx.Module):
    """The state-space layers, with the posterior and the prior over z."""

    inputs: Dense
    layers: tuple[Block, ...]
    output: Linear
    factor: Linear | None
    posterior_head: Head
    prior_head: Head
    config: S3MConfig = eqx.field(static=True)

    def __init__(self, actions: int, tokens: int, config: S3MConfig, *, key: Key[Array, ""]):
        inputs_key, layers_key, output_key, factor_key, posterior_key, prior_key = jax.random.split(key, 6)
        c, units, stoch = config, config.units, config.stoch_size
        layer = {"mimo": MIMO, "siso": SISO}[c.ssm]

        def block(key: Key[Array, ""]) -> Block:
            ssm_key, block_key = jax.random.split(key)
            ssm = layer(units, c.state, c.blocks, c.symmetric, c.discretisation, c.transition, c.modes, key=ssm_key)
            return Block(ssm, key=block_key)

        self.inputs = Dense(stoch + actions, units, key=inputs_key)
        self.layers = tuple(block(k) for k in jax.random.split(layers_key, c.layers))
        self.output = Linear(units, c.deter, key=output_key)
        # One-hot actions have one weight each: times the root of their number, factors are of the order of 1.
        scale = actions**0.5
        self.factor = Linear(actions, c.deter // 2, scale=scale, key=factor_key) if c.product else None
        told = tokens + c.deter if c.posterior == "recurrent" else tokens
        self.posterior_head = Head(told, stoch, units, layers=1, key=posterior_key)
        self.prior_head = Head(c.deter, stoch, units, layers=1, key=prior_key)
        self.config = config

    def start(self) -> Float[Array, "L P 2"]:
        """x before an episode."""
        return jnp.stack([block.ssm.start for block in self.layers])

    def advance(
        self,
        hidden: Float[Array, "B L P 2"],
        stoch: Float[Array, "B T S K"],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T L P 2"]]:
        """h and x of a sequence, from x before it and the z and actions that lead to each step."""
        stoch = jnp.where(is_first[..., None, None], 1 / self.config.classes, stoch)
        action = jnp.where(is_first[..., None], 0, action)
        action = action / stop_gradient(jnp.maximum(1, jnp.abs(action)))
        led = jnp.concatenate([stoch.reshape(*is_first.shape, -1), action.astype(stoch.dtype)], -1)
        x, begins = (jnp.swapaxes(row, 0, 1) for row in (self.inputs(led), is_first))  # [T, B, ...]
        states = []
        for i, block in enumerate(self.layers):
            x, state = block(x, hidden[:, i], begins, self.config.scan)
            states.append(state)
        y = self.output(x)
        if self.factor is not None:
            plain, multiplied = jnp.split(y, [y.shape[-1] - self.config.deter // 2], -1)
            factor = self.factor(jnp.swapaxes(action, 0, 1).astype(y.dtype))
            y = jnp.concatenate([plain, multiplied * factor], -1)
        deter = jax.nn.silu(y)
        return jnp.swapaxes(deter, 0, 1), jnp.swapaxes(jnp.stack(states, 2), 0, 1)

    def posterior(self, *told: Float[Array, "..."]) -> Float[Array, "*B Z"]:
        """Logits of z after the observation: it is told what was encoded, and nothing else unless it is recurrent."""
        return self.posterior_head(jnp.concatenate(told, -1))

    def prior(self, deter: Float[Array, "*B D"]) -> Float[Array, "*B Z"]:
        """Logits of z before the observation."""
        return self.prior_head(deter)

    def latents(self, logits: Float[Array, "*B Z"]) -> Categorical:
        """The distribution of each of the S variables."""
        shape = (*logits.shape[:-1], self.config.stoch, self.config.classes)
        return Categorical.from_logits(logits.reshape(shape), self.config.unimix)


class Recall(eqx.Module):
    """Reconstructs an earlier observation from h and how many steps ago that was.

    The two are multiplied, so that each lag has a reading of its own: read side by side, 22 % of the last 32 cards
    were still misnamed after as many updates as this way took to name all.
    """

    read: Dense
    ago: Float[Array, "R U"]
    decoder: Decoder

    def __init__(self, observation_spec: Mapping[str, ArraySpec], config: S3MConfig, *, key: Key[Array, ""]):
        read_key, ago_key, decoder_key = jax.random.split(key, 3)
        c = config
        self.read = Dense(c.deter, c.units, key=read_key)
        self.ago = jax.random.normal(ago_key, (c.recall, c.units))
        sizes = c.units, c.recall, 1, c.units, c.decoder_layers, c.depth
        self.decoder = Decoder(observation_spec, *sizes, key=decoder_key)

    def loss(
        self, deter: Float[Array, "*B D"], lag: Int[Array, "n *B"], earlier: dict[str, Array]
    ) -> Float[Array, "n *B"]:
        """How badly what was seen `lag` steps ago (1 .. R) is reconstructed, for each of n lags."""
        ago = jax.nn.one_hot(lag - 1, self.ago.shape[0], dtype=deter.dtype)
        asked = self.read(deter) * self.ago[lag - 1].astype(deter.dtype)
        return self.decoder.loss(jnp.concatenate([asked, ago], -1), earlier)


class S3M(eqx.Module):
    """R2I's world model, behind the `WorldModel` protocol."""

    enc: Encoder
    dyn: Dynamics
    dec: Decoder
    rew: Head
    con: Head
    rec: Recall | None
    config: S3MConfig = eqx.field(static=True)

    def __init__(
        self, config: S3MConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a world; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded (the message says which and why).
        """
        enc_key, dyn_key, dec_key, rew_key, con_key, rec_key = jax.random.split(key, 6)
        c, deter, stoch, units = config, config.deter, config.stoch_size, config.units
        self.config = config
        self.enc = Encoder(observation_spec, units, c.encoder_layers, c.depth, c.servers, key=enc_key)
        self.dyn = Dynamics(actions, self.enc.size, c, key=dyn_key)
        self.dec = Decoder(observation_spec, deter, stoch, 1, units, c.decoder_layers, c.depth, key=dec_key)
        self.rew = Head(deter + stoch, TwoHot.BINS, units, c.reward_layers, scale=0.0, key=rew_key)
        self.con = Head(deter + stoch, 1, units, c.continue_layers, key=con_key)
        self.rec = None
        if c.recall:
            self.rec = Recall(observation_spec, c, key=rec_key)

    @property
    def discount(self) -> float:
        """The discount per step that `continues` contains."""
        return self.config.discount

    def initial(self, batch: int) -> S3MState:
        """h is zeros, z is uniform, x is the layers' learned start."""
        c, hidden = self.config, self.dyn.start()
        return S3MState(
            jnp.zeros((batch, c.deter), c.dtype),
            jnp.full((batch, c.stoch, c.classes), 1 / c.classes, c.dtype),
            jnp.broadcast_to(hidden, (batch, *hidden.shape)),
        )

    def observe(
        self,
        state: S3MState,
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        key: Key[Array, ""],
    ) -> S3MState:
        """Posterior states [B, T, ...] of a sequence that begins right after `state` [B, ...]. Acting is T = 1."""
        return self._observe(state, observation, action, is_first, self._noise(is_first.shape, key))[0]

    def imagine(self, state: S3MState, action: Float[Array, "B A"], key: Key[Array, ""]) -> S3MState:
        """One step of the prior: what comes after doing `action` in `state`, unseen."""
        no = jnp.zeros((action.shape[0], 1), bool)
        deter, hidden = self.dyn.advance(state.hidden, state.stoch[:, None], action[:, None], no)
        latents = self.dyn.latents(self.dyn.prior(deter[:, 0]))
        stoch = latents.straight_through(self._noise(action.shape[:1], key))
        return S3MState(deter[:, 0], stoch.astype(deter.dtype), hidden[:, 0])

    def features(self, state: S3MState) -> Features:
        """What `policy` says: h and z, z and x, or h, z and x, side by side. The heads of the model read h and z."""
        dtype, deter = self.config.dtype, state.deter
        stoch = state.stoch.reshape(*deter.shape[:-1], -1)
        hidden = state.hidden.reshape(*deter.shape[:-1], -1).astype(dtype)
        match self.config.policy:
            case "output":
                return Features(jnp.concatenate([deter, stoch], -1))
            case "hidden":
                return Features(jnp.concatenate([stoch, hidden], -1), own=deter)
            case "full":
                return Features(jnp.concatenate([deter, stoch, hidden], -1))

    def reward(self, features: Features) -> Float[Array, "*B"]:
        """Expected reward of arriving in a state."""
        return TwoHot(self.rew(self._read(features))).mean()

    def continues(self, features: Features) -> Float[Array, "*B"]:
        """Discount times the probability that the episode goes on (the discount is folded in)."""
        return Bernoulli(self.con(self._read(features))[..., 0]).mean()

    def loss(
        self, state: S3MState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[S3MState, dict[str, Float[Array, ""]]]]:
        """Reconstruction, reward, continue, the two KL losses and, if asked for, recall, averaged over batch and time.

        Metrics, all in nats or squared units per step: `model/dyn` and `model/rep` (both at least the free nats),
        `model/kl` (before that), `model/reconstruction`, `model/reward`, `model/continue`, `model/recall`, and the
        entropies of all latent variables together, `model/entropy_posterior` and `model/entropy_prior`.
        """
        observation, action, reward, is_first, _, is_terminal = sequence
        key, recall_key = jax.random.split(key)
        noise = self._noise(is_first.shape, key)
        states, logits = self._observe(state, observation, action, is_first, noise)
        posterior, prior = self.dyn.latents(logits), self.dyn.latents(self.dyn.prior(states.deter))
        read = self._read(self.features(states))

        dyn = stop_gradient(posterior).kl(prior).sum(-1)  # [B, T]
        rep = posterior.kl(stop_gradient(prior)).sum(-1)
        terms = {
            "model/dyn": jnp.maximum(self.config.free_nats, dyn),
            "model/rep": jnp.maximum(self.config.free_nats, rep),
            "model/reconstruction": self.dec.loss(read, observation),
            "model/reward": TwoHot(self.rew(read)).loss(reward),
            "model/continue": Bernoulli(self.con(read)[..., 0]).loss(self.config.discount * (1.0 - is_terminal)),
        }
        if self.rec is not None:
            terms["model/recall"] = self._recall(self.rec, states.deter, observation, is_first, recall_key)
        metrics = {name: term.mean() for name, term in terms.items()}
        scales = {"model/dyn": self.config.dyn_scale, "model/rep": self.config.rep_scale}
        loss = sum((scales.get(name, 1.0) * value for name, value in metrics.items()), jnp.zeros(()))
        metrics["model/kl"] = dyn.mean()
        metrics["model/entropy_posterior"] = posterior.entropy().sum(-1).mean()
        metrics["model/entropy_prior"] = prior.entropy().sum(-1).mean()
        return loss, (states, metrics)

    def _recall(
        self,
        recall: Recall,
        deter: Float[Array, "B T D"],
        observation: dict[str, Array],
        is_first: Bool[Array, "B T"],
        key: Key[Array, ""],
    ) -> Float[Array, "B T"]:
        """How badly earlier observations of the same episode and sequence are reconstructed from h: at each step
        `DRAWS` of the last R, drawn anew. 0 where there is none.

        What surprised most is asked for most: one is drawn in proportion to how badly the prior foretells it.
        """
        steps = jnp.arange(is_first.shape[1])
        begun = jax.lax.cummax(jnp.where(is_first, steps, 0), 1)
        earliest = jnp.maximum(begun, steps - self.config.recall)  # [B, T]
        draw_key, key = jax.random.split(key)
        latents = self.dyn.latents(self.dyn.prior(deter))
        stoch = latents.straight_through(self._noise(is_first.shape, draw_key)).reshape(*is_first.shape, -1)
        surprise = stop_gradient(self.dec.loss(jnp.concatenate([deter, stoch.astype(deter.dtype)], -1), observation))
        weight = surprise + RECALLED_ANYWAY * surprise.mean() + jnp.finfo(jnp.float32).tiny
        before = jnp.cumsum(weight, 1) - weight  # [B, T] sum of the weights of all earlier steps
        low = jnp.take_along_axis(before, earliest, 1)
        place = low + (before - low) * jax.random.uniform(key, (DRAWS, *low.shape))  # [n, B, T]
        find = jax.vmap(partial(jnp.searchsorted, side="right"), (0, 1), 1)
        then = jnp.clip(find(before, place) - 1, earliest, jnp.maximum(steps - 1, 0))
        earlier = jax.tree.map(lambda leaf: leaf[jnp.arange(len(leaf))[:, None], then], observation)  # [n, B, T, ...]
        loss = recall.loss(deter, jnp.maximum(steps - then, 1), earlier).mean(0)
        return jnp.where(steps > begun, loss, 0.0)

    def compress(self, state: S3MState) -> StoredState:
        """The state as replay keeps it. z must be one-hot, which is true of every state but `initial`."""
        limit = jnp.finfo(jnp.float16).max
        deter, hidden = (
            jnp.clip(x.astype(jnp.float32), -limit, limit).astype(jnp.float16) for x in (state.deter, state.hidden)
        )
        return StoredState(deter, state.stoch.argmax(-1).astype(jnp.uint8), hidden)

    def expand(self, stored: StoredState) -> S3MState:
        """Undo `compress`, up to the rounding of h and x."""
        dtype = self.config.dtype
        stoch = jax.nn.one_hot(stored.stoch, self.config.classes, dtype=dtype)
        return S3MState(stored.deter.astype(dtype), stoch, stored.hidden.astype(jnp.float32))

    def _read(self, features: Features) -> Float[Array, "*B F"]:
        """h and flat z, from whatever `features` shows."""
        whole = features.context if features.own is None else jnp.concatenate([features.own, features.context], -1)
        return whole[..., : self.config.deter + self.config.stoch_size]

    def _noise(self, shape: tuple[int, ...], key: Key[Array, ""]) -> Float[Array, "*B S"]:
        """Uniform numbers that choose the classes of z in states of leading axes `shape`."""
        return jax.random.uniform(key, (*shape, self.config.stoch))

    def _observe(
        self,
        state: S3MState,
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        noise: Float[Array, "B T S"],
    ) -> tuple[S3MState, Float[Array, "B T Z"]]:
        """`observe` with its randomness given, and the logits of z beside the states."""
        dtype = self.config.dtype
        tokens = self.enc(observation, dtype)
        if self.config.posterior == "recurrent":

            def step(state: S3MState, now: tuple[Array, ...]) -> tuple[S3MState, tuple[S3MState, Array]]:
                tokens, action, is_first, noise = now
                deter, hidden = self.dyn.advance(state.hidden, state.stoch[:, None], action[:, None], is_first[:, None])
                logits = self.dyn.posterior(tokens, deter[:, 0])
                stoch = self.dyn.latents(logits).straight_through(noise).astype(dtype)
                state = S3MState(deter[:, 0], stoch, hidden[:, 0])
                return state, (state, logits)

            rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (tokens, action, is_first, noise))
            _, (states, logits) = jax.lax.scan(step, state, rows)
            return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (states, logits))
        logits = self.dyn.posterior(tokens)
        stoch = self.dyn.latents(logits).straight_through(noise).astype(dtype)
        before = jnp.concatenate([state.stoch[:, None], stoch[:, :-1]], 1)
        deter, hidden = self.dyn.advance(state.hidden, before, action, is_first)
        return S3MState(deter, stoch, hidden), logits
