"""POPGym's RepeatPrevious (Morad et al., arXiv 2303.01859): say which suit was shown some cards ago."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first, later
from reverie.envs.memory.cards import DECK, SUITS, shuffled
from reverie.ranges import Count, at_least, checked


class RepeatPreviousState(NamedTuple):
    """Where an episode stands."""

    suits: Int[Array, "*B C"]
    """Of all cards, in the order in which they are shown."""
    time: Int[Array, "*B"]
    """The card in view."""


@dataclass(frozen=True)
@checked
class RepeatPrevious:
    """One card after another is shown. Once `k` were, each action names the suit of the k-th last, the one in view
    being the first.

    Right and wrong answers pay plus and minus 1 / (cards - k): all right make 1, guesses -1/2 on average. The episode
    ends with the last card, after cards - 1 steps. There are no variants: the task is any array.
    """

    decks: Annotated[int, *at_least(1, 1_000, "all cards are held in RAM")] = 1
    """Decks of 52 cards, shuffled into one."""
    k: Count = 4
    """How far back the card lies that is asked for."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"suit": ArraySpec((1,), categories=SUITS)}
    action_spec: ClassVar[Discrete] = Discrete(SUITS)
    optimal_return: ClassVar[float] = 1.0

    def __post_init__(self):
        if self.k >= DECK * self.decks:
            raise ValueError(f"RepeatPrevious k must lie in 1 .. {DECK * self.decks - 1}, got {self.k}")

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[RepeatPreviousState, TimeStep]:
        return self.deal(shuffled(SUITS, self.decks, key))

    def deal(self, suits: Int[Array, " C"]) -> tuple[RepeatPreviousState, TimeStep]:
        """Open the episode in which cards of these suits are shown, in this order."""
        return RepeatPreviousState(suits, jnp.int32(0)), first({"suit": suits[:1]})

    def step(
        self, task: Task, state: RepeatPreviousState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[RepeatPreviousState, TimeStep]:
        cards = DECK * self.decks
        asked = state.time + 1 - self.k
        right = action == state.suits[jnp.maximum(asked, 0)]
        worth = 1 / (cards - self.k)
        reward = jnp.where(asked < 0, 0.0, jnp.where(right, worth, -worth))
        time = state.time + 1
        shown = {"suit": state.suits[time][None]}
        return RepeatPreviousState(state.suits, time), later(shown, reward, time == cards - 1)


LEVELS: Mapping[str, RepeatPrevious] = MappingProxyType(
    {"easy": RepeatPrevious(), "medium": RepeatPrevious(decks=2, k=32), "hard": RepeatPrevious(decks=3, k=64)}
)
