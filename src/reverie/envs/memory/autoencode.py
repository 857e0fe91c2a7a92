"""POPGym's Autoencode (Morad et al., arXiv 2303.01859): watch a deck, then name its suits in reverse order."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first, later
from reverie.envs.memory.cards import DECK, SUITS, shuffled
from reverie.ranges import Count, at_least, checked

PLAY, WATCH = 0, 1


class AutoencodeState(NamedTuple):
    """Where an episode stands."""

    suits: Int[Array, "*B C"]
    """Of all cards, in the order in which they are shown."""
    time: Int[Array, "*B"]
    """Steps since the episode began."""
    part: Int[Array, "*B"]
    """Which of the parts of the deck is shown."""


@dataclass(frozen=True)
@checked
class Autoencode:
    """All cards are shown one after the other; with the last of them begins the play, in which each action names a
    suit, from the last to the first.

    Right and wrong answers pay plus and minus 1 / cards: all right make 1, guesses -1/2 on average. The observation
    says whether to watch or to play, and the suit, which is 0 after the first answer. An episode has 2 cards - 1 steps.
    Ours are the `parts`, to practise with: as many cards are shown as the task says, and an answer pays what it does
    with all of them.
    """

    decks: Annotated[int, *at_least(1, 1_000, "all cards are held in RAM")] = 1
    """Decks of 52 cards, shuffled into one."""
    parts: tuple[Count, ...] = ()
    """Cards that are shown, a number for each task; none given is all of them, and the task any array of integers."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {
        "mode": ArraySpec((1,), categories=2),
        "suit": ArraySpec((1,), categories=SUITS),
    }
    action_spec: ClassVar[Discrete] = Discrete(SUITS)

    def __post_init__(self):
        if any(part > self.cards for part in self.parts):
            raise ValueError(f"Autoencode parts must lie in 1 .. {self.cards} (all cards), got {self.parts}")

    @property
    def cards(self) -> int:
        return DECK * self.decks

    @property
    def optimal_return(self) -> float:
        """All answers right, on average over the parts."""
        return sum(self.parts) / (len(self.parts) * self.cards) if self.parts else 1.0

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[AutoencodeState, TimeStep]:
        return self.deal(shuffled(SUITS, self.decks, key), task)

    def deal(self, suits: Int[Array, " C"], task: Task | int = 0) -> tuple[AutoencodeState, TimeStep]:
        """Open the episode in which cards of these suits are shown, in this order."""
        part = jnp.asarray(task, jnp.int32)
        mode = jnp.where(self._last(part) > 0, WATCH, PLAY)
        return AutoencodeState(suits, jnp.int32(0), part), first(_shown(mode, suits[0]))

    def step(
        self, task: Task, state: AutoencodeState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[AutoencodeState, TimeStep]:
        last = self._last(state.part)
        plays = state.time >= last
        right = action == state.suits[jnp.minimum(2 * last - state.time, last)]
        worth = 1 / self.cards
        reward = jnp.where(plays, jnp.where(right, worth, -worth), 0.0)
        time = state.time + 1
        suit = jnp.where(plays, 0, state.suits[jnp.minimum(time, last)])
        shown = _shown(jnp.where(time < last, WATCH, PLAY), suit)
        return state._replace(time=time), later(shown, reward, time == 2 * last + 1)

    def _last(self, part: Int[Array, ""]) -> Int[Array, ""]:
        """Index of the last card that is shown."""
        return jnp.asarray(self.parts)[part] - 1 if self.parts else jnp.int32(self.cards - 1)


PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 52)
"""Of a deck, to practise with."""

LEVELS: Mapping[str, Autoencode] = MappingProxyType(
    {"easy": Autoencode(), "medium": Autoencode(decks=2), "hard": Autoencode(decks=3)}
)


def _shown(mode: Int[Array, ""], suit: Int[Array, ""]) -> dict[str, Array]:
    return {"mode": mode[None].astype(jnp.int32), "suit": suit[None]}
