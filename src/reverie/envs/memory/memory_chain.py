"""bsuite's memory chain (Osband et al., arXiv 1908.03568): bits are shown first, and one is asked for last."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first, later
from reverie.ranges import Width, at_least, checked

LENGTHS = (*range(1, 11), 12, 14, 17, 20, 25, *range(30, 101, 10))
"""The lengths of the experiment `memory_len`, of one bit each."""
SIZES = (*range(1, 11), 12, 14, 17, 20, 25, 30, 40)
"""The numbers of bits of the experiment `memory_size`, each of length 2."""


class MemoryChainState(NamedTuple):
    """Where an episode stands."""

    context: Int[Array, "*B M"]
    """The bits."""
    query: Int[Array, "*B"]
    """Which of them is asked for."""
    time: Int[Array, "*B"]
    """Steps since the episode began."""
    length: Int[Array, "*B"]
    """Which of the lengths the episode has."""


@dataclass(frozen=True)
@checked
class MemoryChain:
    """The last of length + 1 actions must be the bit asked for, and pays 1 or -1; the others change nothing.

    The observation is (time left, query, bits as -1 or 1): the bits are shown at time 0 and the query at time
    length - 1, otherwise there are zeros. As in bsuite, the observation of time 0 is given twice, when the
    episode begins and after the first action. Guesses earn 0. The task says which of the `lengths` an episode has.
    """

    lengths: tuple[Annotated[int, *at_least(1, 1_000_000)], ...] = (10,)
    """Steps before the one that is asked about."""
    bits: Width = 1
    """Bits to remember."""

    action_spec: ClassVar[Discrete] = Discrete(2)
    optimal_return: ClassVar[float] = 1.0

    def __post_init__(self):
        if not self.lengths:
            raise ValueError("MemoryChain lengths must be one or more, got none")

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        return {"vector": ArraySpec((2 + self.bits,))}

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[MemoryChainState, TimeStep]:
        context_key, query_key = jax.random.split(key)
        context = jax.random.bernoulli(context_key, 0.5, (self.bits,)).astype(jnp.int32)
        return self.deal(context, jax.random.randint(query_key, (), 0, self.bits), task)

    def deal(self, context: Int[Array, " M"], query: Int[Array, ""], task: Task) -> tuple[MemoryChainState, TimeStep]:
        """Open the episode in which bit `query` of `context` is asked for."""
        state = MemoryChainState(context, query, jnp.int32(0), jnp.asarray(task, jnp.int32))
        return state, first(self._seen(state))

    def step(
        self, task: Task, state: MemoryChainState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[MemoryChainState, TimeStep]:
        ends = state.time == jnp.asarray(self.lengths)[state.length]
        answer = jnp.where(action == state.context[state.query], 1.0, -1.0)
        done = later(self._seen(state), jnp.where(ends, answer, 0.0), ends)
        return state._replace(time=state.time + 1), done

    def _seen(self, state: MemoryChainState) -> dict[str, Array]:
        time, lengths = np.arange(max(self.lengths) + 1), np.array(self.lengths)
        left = jnp.asarray(1 - time / lengths[:, None], jnp.float32)  # rounded once, as in bsuite
        query = jnp.where(state.time == jnp.asarray(lengths)[state.length] - 1, state.query, 0)
        bits = jnp.where(state.time == 0, 2 * state.context - 1, 0)
        return {"vector": jnp.concatenate([left[state.length, state.time][None], query[None], bits])}
