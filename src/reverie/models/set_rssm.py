"""An RSSM for fleets: one small state per server under shared weights, and one for what concerns them all.

DreamerV3's ideas (discrete latents, prior and posterior, KL balance) in a form that knows that servers are a set: their
order and number do not matter, what is learned on one holds for all, and what happens to one hardly touches the others.
A step draws the common latent first (which job came, and when), so that servers change together given it. This
structure is our choice; Redovian (2025) uses the flat model of `rssm.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Features, Needed, Sequence, WorldModel
from reverie.models.encoders import Entries
from reverie.models.latents import Distribution, LatentKind, Latents, kl_losses, latents, weighted
from reverie.nn.distributions import Bernoulli, SquaredError, TwoHot, symlog
from reverie.nn.layers import GRU, MLP, Dense, Head, over_time
from reverie.nn.ssm import SSMCell
from reverie.ranges import Below1, Classes, Horizon, Weight, Width, checked


@dataclass(frozen=True)
@checked
class SetRSSMConfig:
    """Sizes and weights of the model."""

    kind: ClassVar[str] = "set"
    needs: ClassVar[Needed | None] = None
    units: Width = 64
    """Width of all hidden layers."""
    cell: Literal["gru", "ssm"] = "gru"
    """What carries states from step to step: a GRU, or as in R2I a linear state-space layer whose modes
    take 20 to 2000 steps to forget (`nn/ssm.py`)."""
    deter: Width = 64
    """Width of each server's recurrent state."""
    latent: LatentKind = "discrete"
    """Whether the latents are one-hot variables, or as many Gaussian numbers."""
    stoch: Width = 4
    """Categorical variables of each server's latent."""
    world_deter: Width = 64
    """Width of the common recurrent state."""
    world_stoch: Width = 8
    """Categorical variables of the common latent."""
    classes: Classes = 8
    """Classes of every variable. Gaussian latents are variables x classes numbers."""
    unimix: Below1 = 0.01
    """Share of the uniform distribution in every discrete latent variable."""
    free_nats: Weight = 1.0
    """KL below which the two KL losses stop pulling."""
    dyn_scale: Weight = 1.0
    """Weight of the loss that moves the prior towards the posterior."""
    rep_scale: Weight = 0.1
    """Weight of the loss that moves the posterior towards the prior."""
    horizon: Horizon = 333.0
    """Steps that the discount 1 - 1 / horizon looks ahead."""

    @property
    def latents(self) -> Latents:
        """What the z of a server is."""
        return latents(self.latent, self.stoch, self.classes, self.unimix)

    @property
    def world_latents(self) -> Latents:
        """What the common z is."""
        return latents(self.latent, self.world_stoch, self.classes, self.unimix)


class SetState(NamedTuple):
    """h and z of each server and of the world, and which server the last job went to."""

    deter: Float[Array, "*B N D"]
    stoch: Float[Array, "*B N S K"]
    world_deter: Float[Array, "*B W"]
    world_stoch: Float[Array, "*B V K"]
    action: Float[Array, "*B N"]
    mask: Bool[Array, "*B N"]


class Logits(NamedTuple):
    """Of z, for each server and for the world; means and spreads where it is Gaussian."""

    servers: Float[Array, "*B N Z"]
    world: Float[Array, "*B Y"]


class Noise(NamedTuple):
    """The random numbers that decide z, for each server and for the world."""

    servers: Array
    world: Array


class SetRSSM(WorldModel):
    """A model for observations with one entry of kind `servers`; all its vectors belong to the world."""

    server_tokens: MLP
    world_tokens: MLP
    summary: Dense
    server_cell: GRU | SSMCell
    world_cell: GRU | SSMCell
    server_prior: Head
    server_posterior: Head
    world_prior: Head
    world_posterior: Head
    server_decoder: Head
    world_decoder: Head
    reward_head: Head
    continue_head: Head
    config: SetRSSMConfig = eqx.field(static=True)
    entries: Entries = eqx.field(static=True)

    def __init__(
        self, config: SetRSSMConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """Errors: ValueError where the observation does not consist of one set of servers and vectors of numbers, or
        where there is not one action for each server."""
        self.config, self.entries = config, Entries.of(observation_spec)
        if len(self.entries.servers) != 1 or self.entries.images or any(e.categories for _, e in self.entries.vectors):
            raise ValueError(
                "SetRSSM reads one entry of kind `servers` and vectors of numbers, "
                f"got {dict(observation_spec)}; RSSM reads anything"
            )
        (_, rows), vectors = self.entries.servers[0], self.entries.vectors
        if actions != rows.shape[0]:
            raise ValueError(f"SetRSSM needs one action for each of the {rows.shape[0]} servers, got {actions} actions")
        world = sum(entry.shape[0] for _, entry in vectors)
        c, keys = config, iter(jax.random.split(key, 13))
        u, z, world_z = c.units, c.stoch * c.classes, c.world_stoch * c.classes
        outputs, world_outputs = c.latents.outputs, c.world_latents.outputs
        row, context = c.deter + z, c.world_deter + world_z
        self.server_tokens = MLP(rows.shape[1], u, 2, key=next(keys))
        self.world_tokens = MLP(world, u, 2, key=next(keys))
        self.summary = Dense(row, u, key=next(keys))
        cell = {"gru": GRU, "ssm": SSMCell}[c.cell]
        self.server_cell = cell(z + 1 + 2 * world_z + c.world_deter, c.deter, key=next(keys))
        self.world_cell = cell(world_z + 2 * u, c.world_deter, key=next(keys))
        self.server_prior = Head(c.deter, outputs, u, 1, key=next(keys))
        self.server_posterior = Head(c.deter + u, outputs, u, 1, key=next(keys))
        self.world_prior = Head(c.world_deter, world_outputs, u, 1, key=next(keys))
        self.world_posterior = Head(c.world_deter + u, world_outputs, u, 1, key=next(keys))
        self.server_decoder = Head(row, rows.shape[1], u, 2, key=next(keys))
        self.world_decoder = Head(context, world, u, 2, key=next(keys))
        self.reward_head = Head(context + c.deter, TwoHot.BINS, u, 2, scale=0.0, key=next(keys))
        self.continue_head = Head(context + c.deter, 1, u, 1, key=next(keys))

    def initial(self, batch: int) -> SetState:
        c, n = self.config, self.entries.servers[0][1].shape[0]
        return SetState(
            deter=jnp.zeros((batch, n, c.deter)),
            stoch=jnp.zeros((batch, n, c.stoch, c.classes)),
            world_deter=jnp.zeros((batch, c.world_deter)),
            world_stoch=jnp.zeros((batch, c.world_stoch, c.classes)),
            action=jnp.zeros((batch, n)),
            mask=jnp.ones((batch, n), bool),
        )

    def observe(self, state: SetState, sequence: Sequence, key: Key[Array, ""]) -> tuple[SetState, SetState]:
        after, (states, _) = self._observe(state, sequence, self._noise(sequence.is_first.shape, key))
        return after, states

    def imagine(self, state: SetState, action: Float[Array, "B A"], key: Key[Array, ""]) -> SetState:
        c, noise = self.config, self._noise(action.shape[:1], key)
        world_deter = self._move_world(state, action)
        world_stoch = c.world_latents.sample(self.world_prior(world_deter), noise.world)
        deter = self._move_servers(state, action, world_deter, world_stoch)
        stoch = c.latents.sample(self.server_prior(deter), noise.servers)
        return SetState(deter, stoch, world_deter, world_stoch, action, state.mask)

    def features(self, state: SetState) -> Features:
        """The context holds the world's state and that of the server that the last job went to."""
        last = (state.action[..., None] * state.deter).sum(-2)
        context = jnp.concatenate([state.world_deter, _flat(state.world_stoch), last], -1)
        return Features(context, _rows(state), state.mask)

    def reward(self, state: SetState) -> Float[Array, "*B"]:
        return TwoHot(self.reward_head(self.features(state).context)).mean()

    def continues(self, state: SetState) -> Float[Array, "*B"]:
        return Bernoulli(self.continue_head(self.features(state).context)[..., 0]).mean()

    def loss(
        self, state: SetState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[SetState, dict[str, Float[Array, ""]]]]:
        c, observation = self.config, sequence.observation
        _, (states, logits) = self._observe(state, sequence, self._noise(sequence.is_first.shape, key))
        prior = Logits(self.server_prior(states.deter), self.world_prior(states.world_deter))
        kl, terms = kl_losses(partial(_kl, states.mask), self._latents(logits), self._latents(prior), c.free_nats)
        features = self.features(states)
        rows = SquaredError(self.server_decoder(_rows(states)), squash=True).loss(self._servers(observation))
        world = SquaredError(self.world_decoder(_context(states)), squash=True).loss(self._vectors(observation))
        goes_on = (1.0 - sequence.is_terminal) * self.discount
        terms |= {
            "model/reconstruction": (rows.sum(-1) * states.mask).sum(-1) + world.sum(-1),
            "model/reward": TwoHot(self.reward_head(features.context)).loss(sequence.reward),
            "model/continue": Bernoulli(self.continue_head(features.context)[..., 0]).loss(goes_on),
        }
        loss, metrics = weighted(terms, c.dyn_scale, c.rep_scale)
        return loss, (states, metrics | {"model/kl": kl.mean()})

    def compress(self, state: SetState) -> SetState:
        """States as replay keeps them: in half precision, discrete z as the index of the class."""
        c = self.config
        return (
            super()
            .compress(state)
            ._replace(stoch=c.latents.compress(state.stoch), world_stoch=c.world_latents.compress(state.world_stoch))
        )

    def expand(self, stored: SetState) -> SetState:
        c = self.config
        return (
            super()
            .expand(stored)
            ._replace(
                stoch=c.latents.expand(stored.stoch, "float32"),
                world_stoch=c.world_latents.expand(stored.world_stoch, "float32"),
            )
        )

    # --- one step ---------------------------------------------------------------------------------------------------

    def _observe(self, state: SetState, sequence: Sequence, noise: Noise) -> tuple[SetState, tuple[SetState, Logits]]:
        """The state after a sequence; posterior states and their logits [B, T, ...]."""
        c, observation, action = self.config, sequence.observation, sequence.action
        mask = jnp.broadcast_to(self.entries.present(observation, self.entries.servers[0][0]), action.shape)
        tokens = (
            self.server_tokens(symlog(self._servers(observation))),
            self.world_tokens(symlog(self._vectors(observation))),
        )

        def step(state: SetState, now):
            server_token, world_token, mask, action, begins, noise = now
            keep = (~begins).astype(jnp.float32)
            state, action = jax.tree.map(lambda x: x * keep.reshape(-1, *[1] * (x.ndim - 1)), (state[:5], action))
            state = SetState(*state, mask)
            world_deter = self._move_world(state, action)
            world = self.world_posterior(jnp.concatenate([world_deter, world_token], -1))
            world_stoch = c.world_latents.sample(world, noise.world)
            deter = self._move_servers(state, action, world_deter, world_stoch)
            servers = self.server_posterior(jnp.concatenate([deter, server_token], -1))
            stoch = c.latents.sample(servers, noise.servers)
            state = SetState(deter, stoch, world_deter, world_stoch, action, mask)
            return state, (state, Logits(servers, world))

        return over_time(step, state, (*tokens, mask, action, self.borders(sequence), noise))

    def _move_world(self, state: SetState, action: Float[Array, "B N"]) -> Float[Array, "B W"]:
        """The common recurrent state: told the last job, the server it went to, and the average of all servers."""
        summary = self.summary(_rows(state))  # [B, N, U]
        share = state.mask / jnp.maximum(1, state.mask.sum(-1, keepdims=True))
        chosen, average = jnp.einsum("bn,bnu->bu", action, summary), jnp.einsum("bn,bnu->bu", share, summary)
        told = jnp.concatenate([_flat(state.world_stoch), chosen, average], -1)
        return self.world_cell(state.world_deter, told)

    def _move_servers(self, state, action, world_deter, world_stoch) -> Float[Array, "B N D"]:
        """Each server's recurrent state: told whether it got the last job, which job that was, and what came next.

        What all servers are told is multiplied once, not once per server.
        """
        own = jnp.concatenate([_flat(state.stoch), action[..., None]], -1)  # [B, N, Z + 1]
        common = jnp.concatenate([_flat(state.world_stoch), _flat(world_stoch), world_deter], -1)  # [B, C]
        weight, bias = self.server_cell.inputs.weight, self.server_cell.inputs.bias
        width = own.shape[-1]
        projected = own @ weight[:width] + (common @ weight[width:] + bias)[..., None, :]
        return self.server_cell.step(state.deter, projected)

    def _latents(self, logits: Logits) -> tuple[Distribution, Distribution]:
        c = self.config
        return c.latents.distribution(logits.servers), c.world_latents.distribution(logits.world)

    def _noise(self, shape: tuple[int, ...], key: Key[Array, ""]) -> Noise:
        c, (_, entry) = self.config, self.entries.servers[0]
        servers_key, world_key = jax.random.split(key)
        return Noise(c.latents.noise((*shape, entry.shape[0]), servers_key), c.world_latents.noise(shape, world_key))

    def _servers(self, observation: dict[str, Array]) -> Float[Array, "*B N F"]:
        return observation[self.entries.servers[0][0]]

    def _vectors(self, observation: dict[str, Array]) -> Float[Array, "*B D"]:
        return jnp.concatenate([observation[name] for name, _ in self.entries.vectors], -1)


def _kl(mask: Bool[Array, "B T N"], left: Any, right: Any) -> Float[Array, "B T"]:
    """Of all servers that are there, and of the world."""
    return (left[0].kl(right[0]).sum(-1) * mask).sum(-1) + left[1].kl(right[1]).sum(-1)


def _rows(state: SetState) -> Float[Array, "*B N G"]:
    return jnp.concatenate([state.deter, _flat(state.stoch)], -1)


def _context(state: SetState) -> Float[Array, "*B C"]:
    return jnp.concatenate([state.world_deter, _flat(state.world_stoch)], -1)


def _flat(stoch: Float[Array, "*B S K"]) -> Float[Array, "*B Z"]:
    return stoch.reshape(*stoch.shape[:-2], -1)
