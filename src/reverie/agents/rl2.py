"""The memory of an RL2 policy (Duan et al. 2016, arXiv 1611.02779; Redovian 2025, arXiv 2503.08872) on a world model.

It reads the model's features and what was done and paid, and lives through the episodes of a trial.

Axes: B streams or sequences, T replayed steps, H imagined steps, G = H + 1, n dreams, A actions, M memory units.
"""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from reverie.envs.core import ActionSpec
from reverie.models.core import Features, Sequence
from reverie.nn.distributions import symlog
from reverie.nn.layers import GRU, time_first


def memory_inputs(
    features: Features, action: Float[Array, "*B A"], reward: Float[Array, "*B"], is_first: Bool[Array, "*B"]
) -> Float[Array, "*B I"]:
    """What the memory is told at each step: the model's features (unchanged by what it learns from them), the action
    and reward that led here, and whether an episode begins (RL2, section 2.2). Where the model keeps servers apart,
    the action is told as what the chosen one looks like now: so a fleet may have any size, in any order."""
    if features.servers is not None:
        action = (action[..., None] * features.servers).sum(-2)  # [*B, G]
    told = paid(reward, is_first)
    return jnp.concatenate([stop_gradient(features.context), stop_gradient(action), told], -1)


def led_here(
    spec: ActionSpec, action: Array, reward: Float[Array, "*B"], is_first: Bool[Array, "*B"]
) -> tuple[Float[Array, "*B A"], Float[Array, "*B 2"]]:
    """What was done before, nothing where an episode begins, and what that paid."""
    return jnp.where(is_first[..., None], 0.0, spec.encode(action)), paid(reward, is_first)


def paid(reward: Float[Array, "*B"], is_first: Bool[Array, "*B"]) -> Float[Array, "*B 2"]:
    """The reward that came, and whether an episode begins."""
    return jnp.stack([symlog(reward), is_first.astype(jnp.float32)], -1)


def remember(memory: GRU | None, state: Float[Array, "*B M"], inputs: Float[Array, "*B I"]) -> Float[Array, "*B M"]:
    """One step of the memory; without one, the empty state stays empty."""
    return state if memory is None else memory(state, inputs)


def remember_sequence(
    memory: GRU | None, state: Float[Array, "B M"], features: Features, sequence: Sequence
) -> Float[Array, "B T M"]:
    """The memory after each replayed step. It is emptied where a trial begins, not where an episode does."""
    if memory is None:
        return jnp.zeros((*sequence.reward.shape, 0))
    inputs = memory.project(memory_inputs(features, sequence.action, sequence.reward, sequence.is_first))
    return time_first(memory.over(state, time_first(inputs), time_first(sequence.is_trial_first)))


def remember_dream(
    memory: GRU | None,
    state: Float[Array, "n M"],
    features: Features,
    action: Float[Array, "H n A"],
    reward: Float[Array, "H n"],
) -> Float[Array, "G n M"]:
    """The memory at each step of a dream, the start included; gradients reach `memory` and `state`."""
    if memory is None:
        return jnp.zeros((len(reward) + 1, reward.shape[1], 0))
    inputs = memory_inputs(features, action, reward, jnp.zeros(reward.shape, bool))
    return jnp.concatenate([state[None], memory.over(state, memory.project(inputs))])
