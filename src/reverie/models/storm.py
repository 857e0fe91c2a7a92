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

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, BFloat16, Float, Int, Key, UInt8

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Sequence, WorldModel, shifted
from reverie.models.latents import DiscreteLatents, kl_losses
from reverie.models.recall import Recall
from reverie.models.rows import Lead, Servers, as_type
from reverie.models.storm_parts import Heads, Senses, Stem, StormConfig
from reverie.nn.attention import Past, Transformer, slide, slides
from reverie.nn.distributions import Bernoulli, Categorical, SquaredError, TwoHot

PRESETS: Mapping[str, StormConfig] = MappingProxyType({"atari": StormConfig(window=64, lent=0, acts="prior")})
"""STORM's."""


class StormState(NamedTuple):
    """What is known of a batch."""

    deter: Float[Array, "*B D"]
    """h"""
    stoch: Float[Array, "*B S K"]
    """z of the observation, or in a dream the foretold one."""
    foretold: Float[Array, "*B S K"] | None
    """z from the prior, where that is what the policy sees."""
    servers: Servers | None
    """Of a set of servers each by itself."""
    past: Past
    """In a complete state the cache [B, S, D] of each layer. In the states of a sequence each has its own keys and
    values alone [B, T, D]: `starts` makes caches of them. Replay keeps none."""


class Kept(NamedTuple):
    """What replay keeps: h in half precision, z by the indices of their classes."""

    deter: BFloat16[Array, "*B D"]
    stoch: UInt8[Array, "*B S"]
    foretold: UInt8[Array, "*B S"] | None
    servers: Servers | None
    """What is carried in half precision."""


class Storm(WorldModel):
    """STORM's world model."""

    senses: Senses
    lead: Lead
    stem: Stem
    transformer: Transformer
    heads: Heads
    rec: Recall | None
    config: StormConfig = eqx.field(static=True)
    latents: DiscreteLatents = eqx.field(static=True)

    def __init__(
        self, config: StormConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a world; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded (the message says which and why).
        """
        keys = iter(jax.random.split(key, 5))
        c, d, rows = config, config.deter, config.rows(observation_spec)
        self.latents = c.latents(rows)
        self.senses = Senses(observation_spec, config, key=next(keys))
        self.lead = Lead(c.stoch_size, c.own_size, c.carried, rows, actions, key=jax.random.fold_in(key, 1))
        self.stem = Stem(self.lead.size, d, key=next(keys))
        self.transformer = Transformer(d, 2 * d, c.layers, c.heads, c.window, c.dropout, key=next(keys))
        self.heads = Heads(config, 0, rows, key=next(keys))
        sizes = c.units, c.decoder_layers, c.depth
        self.rec = Recall(observation_spec, c.recall, d, *sizes, key=next(keys)) if c.recall else None
        self.config = config

    @property
    def rows_lent(self) -> int:
        return self.config.rows_lent

    def initial(self, batch: int) -> StormState:
        return initial(self.config, self.latents, self.lead, batch, self.transformer.nothing(batch, self.config.dtype))

    def observe(self, state: StormState, sequence: Sequence, key: Key[Array, ""]) -> tuple[StormState, StormState]:
        states, _ = self._observe(state, sequence, key)
        last = jax.tree.map(lambda x: x[:, -1], states)
        return last._replace(past=slide(state.past, states.past)), states

    def imagine(self, state: StormState, action: Float[Array, "B A"], key: Key[Array, ""]) -> StormState:
        no = jnp.zeros((action.shape[0], 1), bool)
        led, servers = self.lead(state.stoch, action, state.servers and state.servers.mask)
        deter, past = self.transformer(self.stem(led)[:, None], state.past, no)
        stoch = self._foretell(deter[:, 0], servers, key)
        foretold = stoch if self.config.acts == "prior" else None
        return StormState(deter[:, 0], stoch, foretold, servers, slide(state.past, past))

    def features(self, state: StormState) -> Features:
        """h and the z that the policy sees, side by side."""
        return features(self.config, state)

    def decoded(self, state: StormState) -> dict[str, Categorical | SquaredError]:
        """What z says is seen, images left out; servers flat [*B, N F]."""
        return self.senses.decoded(flat(state.stoch))

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
        foretells = self.heads.foretell(states.deter, states.servers)
        posterior, prior = (self.latents.distribution(x) for x in (logits, foretells))
        total = partial(over_variables, c.stoch, states.servers)
        goes_on = self.discount * (1.0 - sequence.is_terminal)
        metrics = {
            "model/reconstruction": self.senses.loss(flat(states.stoch), sequence.observation).mean(),
            "model/reward": TwoHot(self.heads.rew(states.deter)).loss(sequence.reward).mean(),
            "model/continue": Bernoulli(self.heads.con(states.deter)[..., 0]).loss(goes_on).mean(),
        }
        if self.rec is not None:
            drawn, observation = self._foretell(states.deter, states.servers, foretold_key), sequence.observation
            surprise = stop_gradient(self.senses.loss(flat(drawn), observation))
            recalled = self.rec.loss(states.deter, observation, self.borders(sequence), surprise, recall_key)
            metrics["model/recall"] = recalled.mean()
        loss = sum(metrics.values(), jnp.zeros(()))
        kl, terms = kl_losses(lambda p, q: total(p.kl(q)).mean(), posterior, prior, c.free_nats)
        metrics |= terms
        loss += c.dyn_scale * metrics["model/dyn"] + c.rep_scale * metrics["model/rep"]
        metrics |= {
            "model/kl": kl,
            "model/entropy_posterior": total(posterior.entropy()).mean(),
            "model/entropy_prior": total(prior.entropy()).mean(),
        }
        return loss, (states, metrics)

    def compress(self, state: StormState) -> Kept:
        return compress(self.latents, state)

    def expand(self, stored: Kept) -> StormState:
        return expand(self.latents, self.config.dtype, stored)

    def resume(self, stored: Kept, lent: Sequence, key: Key[Array, ""]) -> StormState:
        """h and z as they were; the past of the model of now, made from what was lent."""
        before = self.initial(stored.deter.shape[0])
        if self.rows_lent:
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
        logits = self.senses(sequence.observation, dtype=c.dtype)
        stoch = self.latents.sample(logits, self.latents.noise(begins.shape, stoch_key)).astype(c.dtype)
        before = shifted(state.stoch, stoch)
        before = jnp.where(begins[..., None, None], 1 / c.classes, before)
        action = jnp.where(begins[..., None], 0, sequence.action)
        led, servers = self.lead(before, action, self.senses.present(sequence.observation))
        deter, past = self.transformer(self.stem(led), state.past, begins, dropout)
        foretold = self._foretell(deter, servers, foretold_key) if c.acts == "prior" else None
        return StormState(deter, stoch, foretold, servers, past), logits

    def _foretell(
        self, deter: Float[Array, "*B D"], servers: Servers | None, key: Key[Array, ""]
    ) -> Float[Array, "*B S K"]:
        """z drawn from the prior."""
        noise = self.latents.noise(deter.shape[:-1], key)
        return self.latents.sample(self.heads.foretell(deter, servers), noise).astype(deter.dtype)


def initial(config: StormConfig, latents: DiscreteLatents, lead: Lead, batch: int, past: Past) -> StormState:
    """h is zeros, z is uniform, which no drawn z is, and there is no past."""
    stoch = jnp.full((batch, latents.variables, latents.classes), 1 / latents.classes, config.dtype)
    foretold = jnp.copy(stoch) if config.acts == "prior" else None
    deter = jnp.zeros((batch, config.deter), config.dtype)
    return StormState(deter, stoch, foretold, lead.nothing(batch, config.dtype), past)


def features(config: StormConfig, state: StormState) -> Features:
    """h and the z that the policy sees, side by side; of a set of servers a row for each."""
    stoch = flat(seen(state))
    world = jnp.concatenate([state.deter, stoch[..., : config.stoch_size]], -1)
    if state.servers is None:
        return Features(world)
    carried, mask = state.servers
    own = stoch[..., config.stoch_size :].reshape(*mask.shape, -1)
    return Features(world, jnp.concatenate([carried, own], -1), mask)


def compress(latents: DiscreteLatents, state: StormState) -> Kept:
    """What replay keeps of states."""
    stoch, foretold = jax.tree.map(latents.compress, (state.stoch, state.foretold))
    return Kept(state.deter.astype(jnp.bfloat16), stoch, foretold, as_type(state.servers, "bfloat16"))


def expand(latents: DiscreteLatents, dtype: str, stored: Kept) -> StormState:
    """States without a past."""
    known = jnp.zeros((*stored.deter.shape[:-1], 0), bool)
    stoch, foretold = jax.tree.map(partial(latents.expand, dtype=dtype), (stored.stoch, stored.foretold))
    return StormState(stored.deter.astype(dtype), stoch, foretold, as_type(stored.servers, dtype), Past((), known))


def seen(state: StormState) -> Float[Array, "*B S K"]:
    """The z that the policy sees."""
    return state.stoch if state.foretold is None else state.foretold


def flat(stoch: Float[Array, "*B S K"]) -> Float[Array, "*B Z"]:
    return stoch.reshape(*stoch.shape[:-2], -1)


def over_variables(world: int, servers: Servers | None, x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Summed over the variables of z: those of the world, and of the servers that are there."""
    if servers is None:
        return x.sum(-1)
    own = x[..., world:].reshape(*servers.mask.shape, -1).sum(-1)
    return x[..., :world].sum(-1) + jnp.where(servers.mask, own, 0).sum(-1)
