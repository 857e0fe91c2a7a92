"""The world model that draws latents: what DreamerV3's RSSM (`rssm.py`) and R2I's S3M (`s3m.py`) have in common.

The state is h (`deter`), which follows from the past, and z (`stoch`), which is drawn from the posterior, once the
observation was seen, or from the prior, which has not seen it. Encoder, decoder, the heads of reward and continuation
and the losses are the same for both; what carries the past, and what posterior and prior are told, is a *core*.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Needed, Sequence, WorldModel
from reverie.models.encoders import Decoder, Encoder
from reverie.models.latents import LatentKind, Latents, Precision, computed_in, kl_losses, latents, weighted
from reverie.models.recall import Recall
from reverie.nn.distributions import Bernoulli, TwoHot
from reverie.nn.layers import Head
from reverie.ranges import Below1, Horizon, Layers, Weight, Whole, Width, WidthOrNone, between, checked


@dataclass(frozen=True)
@checked
class LatentConfig:
    """Sizes and weights of the model; `units` alone scales it."""

    kind: ClassVar[str] = ""
    needs: ClassVar[Needed | None] = None
    """What it is called in the names of agents; nothing for DreamerV3's own."""
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
    recall: Whole = 0
    """Most steps back (R) of the recall loss, which reconstructs earlier observations from h; 0 is none, as
    published. What has to be remembered is otherwise learned from the few rewards that depend on it."""
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
    precision: Precision = "auto"
    """Type of the computations; `auto` is bfloat16 on a GPU and float32 elsewhere. Parameters, norms and losses stay
    float32."""

    def __post_init__(self):
        if self.class_count < 2:
            raise ValueError(
                f"{type(self).__name__}: classes must be at least 2, got {self.class_count} (units / 16 with "
                f"units={self.units}; give classes, or more units)"
            )

    @property
    def dtype(self) -> str:
        """Type of the computations on this machine."""
        return computed_in(self.precision)

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


class LatentState(NamedTuple):
    """h and z of a batch, and what else the core carries (float32), if anything."""

    deter: Float[Array, "*B D"]
    stoch: Float[Array, "*B S K"]
    carried: Any = None


class Core(eqx.Module):
    """What carries the past, with prior and posterior over z; concrete cores are final.

    A core is made by `Core(actions, tokens, config, key=key)`, from the widths of an encoded action and observation.
    """

    config: eqx.AbstractVar[Any]
    """A `LatentConfig`."""
    kept: eqx.AbstractClassVar[Any]
    """Type that replay keeps h, and what else is carried, in."""
    blocks: eqx.AbstractVar[int]
    """Parts of h that the image decoder reads one by one."""

    @abc.abstractmethod
    def initial(self, batch: int) -> LatentState:
        """The state before anything was seen."""

    @abc.abstractmethod
    def observe(
        self,
        state: LatentState,
        tokens: Float[Array, "B T E"],
        action: Float[Array, "B T A"],
        begins: Bool[Array, "B T"],
        noise: Float[Array, "B T *S"],
    ) -> tuple[LatentState, tuple[LatentState, Float[Array, "B T Z"]]]:
        """The state after a sequence; its posterior states, and what the posterior head said of their z."""

    @abc.abstractmethod
    def advance(self, state: LatentState, action: Float[Array, "B A"]) -> LatentState:
        """The state after doing `action` in `state`, but for z, which stays as it was."""

    @abc.abstractmethod
    def prior(self, deter: Float[Array, "*B D"]) -> Float[Array, "*B Z"]:
        """What is known of z before the observation: logits, or means and spreads."""

    def shown(self, state: LatentState) -> Float[Array, "*B F"]:
        """What actor and critic see."""
        return flat(state)


class LatentModel(WorldModel):
    """DreamerV3's world model; with the core of `s3m.py`, R2I's."""

    enc: Encoder
    dyn: Core
    dec: Decoder
    rew: Head
    con: Head
    rec: Recall | None
    config: Any = eqx.field(static=True)

    def __init__(
        self,
        config: LatentConfig,
        core: Callable[..., Core],
        observation_spec: Mapping[str, ArraySpec],
        actions: int,
        *,
        key: Key[Array, ""],
    ):
        """A fresh model of a world; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded (the message says which and why).
        """
        enc_key, dyn_key, dec_key, rew_key, con_key, rec_key = jax.random.split(key, 6)
        c, deter, stoch, units = config, config.deter_size, config.stoch_size, config.units
        self.config = config
        self.enc = Encoder(observation_spec, units, c.encoder_layers, c.cnn_depth, c.servers, key=enc_key)
        self.dyn = core(actions, self.enc.size, c, key=dyn_key)
        sizes = units, c.decoder_layers, c.cnn_depth
        self.dec = Decoder(observation_spec, deter, stoch, self.dyn.blocks, *sizes, key=dec_key)
        self.rew = Head(deter + stoch, TwoHot.BINS, units, c.reward_layers, scale=0.0, key=rew_key)
        self.con = Head(deter + stoch, 1, units, c.continue_layers, key=con_key)
        self.rec = Recall(observation_spec, c.recall, deter, *sizes, key=rec_key) if c.recall else None

    def initial(self, batch: int) -> LatentState:
        return self.dyn.initial(batch)

    def observe(self, state: LatentState, sequence: Sequence, key: Key[Array, ""]) -> tuple[LatentState, LatentState]:
        after, (states, _) = self._observe(state, sequence, key)
        return after, states

    def imagine(self, state: LatentState, action: Float[Array, "B A"], key: Key[Array, ""]) -> LatentState:
        state = self.dyn.advance(state, action)
        return state._replace(stoch=self._foretell(state.deter, key))

    def features(self, state: LatentState) -> Features:
        """h and flat z, side by side, or what else the core shows."""
        return Features(self.dyn.shown(state))

    def reward(self, state: LatentState) -> Float[Array, "*B"]:
        return TwoHot(self.rew(flat(state))).mean()

    def continues(self, state: LatentState) -> Float[Array, "*B"]:
        return Bernoulli(self.con(flat(state))[..., 0]).mean()

    def loss(
        self, state: LatentState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[LatentState, dict[str, Float[Array, ""]]]]:
        """Reconstruction, reward, continue, the two KL losses and, if asked for, recall, averaged over batch and time.

        Metrics, all in nats or squared units per step: `model/dyn` and `model/rep` (both at least the free nats),
        `model/kl` (before that), `model/reconstruction`, `model/reward`, `model/continue`, `model/recall`, and the
        entropies of all latent variables together, `model/entropy_posterior` and `model/entropy_prior`.
        """
        key, recall_key = jax.random.split(key) if self.rec is not None else (key, key)
        _, (states, logits) = self._observe(state, sequence, key)
        posterior, prior = (self.config.latents.distribution(x) for x in (logits, self.dyn.prior(states.deter)))
        read, observation = flat(states), sequence.observation
        kl, terms = kl_losses(lambda p, q: p.kl(q).sum(-1), posterior, prior, self.config.free_nats)
        terms |= {
            "model/reconstruction": self.dec.loss(read, observation),
            "model/reward": TwoHot(self.rew(read)).loss(sequence.reward),
            "model/continue": Bernoulli(self.con(read)[..., 0]).loss(self.discount * (1.0 - sequence.is_terminal)),
        }
        if self.rec is not None:
            draw_key, recall_key = jax.random.split(recall_key)
            foretold = LatentState(states.deter, self._foretell(states.deter, draw_key))
            surprise = stop_gradient(self.dec.loss(flat(foretold), observation))
            terms["model/recall"] = self.rec.loss(
                states.deter, observation, self.borders(sequence), surprise, recall_key
            )
        loss, metrics = weighted(terms, self.config.dyn_scale, self.config.rep_scale)
        metrics["model/kl"] = kl.mean()
        metrics["model/entropy_posterior"] = posterior.entropy().sum(-1).mean()
        metrics["model/entropy_prior"] = prior.entropy().sum(-1).mean()
        return loss, (states, metrics)

    def compress(self, state: LatentState) -> LatentState:
        """States as replay keeps them: in half precision, discrete z as the index of the class (`Stored`). That z must
        be one-hot, which is true of every state but `initial`."""
        dtype = self.dyn.kept
        limit = jnp.finfo(dtype).max
        deter, carried = jax.tree.map(
            lambda x: jnp.clip(x.astype(jnp.float32), -limit, limit).astype(dtype), (state.deter, state.carried)
        )
        return LatentState(deter, self.config.latents.compress(state.stoch), carried)

    def expand(self, stored: LatentState) -> LatentState:
        stoch = self.config.latents.expand(stored.stoch, self.config.dtype)
        carried = jax.tree.map(lambda x: x.astype(jnp.float32), stored.carried)
        return LatentState(stored.deter.astype(self.config.dtype), stoch, carried)

    def _observe(
        self, state: LatentState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[LatentState, tuple[LatentState, Float[Array, "B T Z"]]]:
        """`observe`, and what the posterior head said of z beside the states."""
        begins, tokens = self.borders(sequence), self.enc(sequence.observation, self.config.dtype)
        noise = self.config.latents.noise(begins.shape, key)
        return self.dyn.observe(state, tokens, sequence.action, begins, noise)

    def _foretell(self, deter: Float[Array, "*B D"], key: Key[Array, ""]) -> Float[Array, "*B S K"]:
        """z drawn from the prior."""
        noise = self.config.latents.noise(deter.shape[:-1], key)
        return self.config.latents.sample(self.dyn.prior(deter), noise).astype(deter.dtype)


def flat(state: LatentState) -> Float[Array, "*B F"]:
    """h and flat z, side by side."""
    return jnp.concatenate([state.deter, state.stoch.reshape(*state.deter.shape[:-1], -1)], -1)
