"""bsuite's discounting chain (Osband et al., arXiv 1908.03568): choose at first how long to wait for a reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from reverie.envs.core import ArraySpec, Discrete, TimeStep, first, later

DELAYS = (1, 3, 10, 30, 100)
"""Steps after which each arm pays."""
STEPS = 100
"""Of an episode."""


class DiscountingChainState(NamedTuple):
    """Where an episode stands."""

    arm: Int[Array, "*B"]
    """The first action, -1 before it."""
    time: Int[Array, "*B"]
    """Steps since the episode began."""


@dataclass(frozen=True)
class DiscountingChain:
    """The first action chooses one of five arms, which pays once, after 1, 3, 10, 30 or 100 steps. Later actions change
    nothing.

    The task, an integer array, is the arm that pays 1.1; the others pay 1. The observation is (arm, time / 100).
    """

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((2,))}
    action_spec: ClassVar[Discrete] = Discrete(len(DELAYS))
    optimal_return: ClassVar[float] = 1.1

    def reset(self, task: Int[Array, ""], key: Key[Array, ""]) -> tuple[DiscountingChainState, TimeStep]:
        state = DiscountingChainState(jnp.int32(-1), jnp.int32(0))
        return state, first(_seen(state))

    def step(
        self, task: Int[Array, ""], state: DiscountingChainState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[DiscountingChainState, TimeStep]:
        arm, time = jnp.where(state.time == 0, action, state.arm).astype(jnp.int32), state.time + 1
        pays = time == jnp.asarray(DELAYS)[arm]
        reward = jnp.where(pays, jnp.where(arm == task, 1.1, 1.0), 0.0)
        state = DiscountingChainState(arm, time)
        return state, later(_seen(state), reward, time == STEPS)


def _seen(state: DiscountingChainState) -> dict[str, Array]:
    clock = jnp.asarray(np.arange(STEPS + 1) / STEPS, jnp.float32)  # rounded once, as in bsuite
    return {"vector": jnp.stack([state.arm.astype(jnp.float32), clock[state.time]])}
