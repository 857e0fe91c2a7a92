"""POPGym's Concentration (Morad et al., arXiv 2303.01859): find the pairs among cards that lie face down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first, later
from reverie.envs.memory.cards import COLORS, DECK, RANKS, shuffled
from reverie.ranges import at_least, checked


class ConcentrationState(NamedTuple):
    """Where an episode stands."""

    cards: Int[Array, "*B C"]
    """Color or rank of each card, in the order in which they lie."""
    found: Bool[Array, "*B C"]
    """Whether it lies face up for good."""
    turned: Int[Array, "*B"]
    """The card that was turned and waits for its second, -1 if none."""
    time: Int[Array, "*B"]
    """Steps since the episode began."""


@dataclass(frozen=True)
@checked
class Concentration:
    """Each action turns a card; two that match stay face up, others are turned back.

    A pair pays 2 / cards. Two that do not match cost 2 / limit, and so does turning the same card twice; turning one
    that lies face up costs 1 / limit for each card in hand, and ends the turn. An episode ends when all pairs are found
    and is cut after `limit` steps. Both cards of a turn are seen in the step that ends it. A player
    with perfect memory gets about 0.81 (colors) or 0.70 (ranks), a guesser about -0.2 or -0.86. There are no variants:
    the task is any array.
    """

    decks: Annotated[int, *at_least(1, 1_000, "all cards are held in RAM")] = 1
    """Decks of 52 cards, shuffled into one."""
    match: Literal["colors", "ranks"] = "colors"
    """What makes a pair."""

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        """What lies at each place; the last category is a card face down."""
        return {"cards": ArraySpec((self.cards,), categories=self.values + 1)}

    @property
    def action_spec(self) -> Discrete:
        return Discrete(self.cards)

    @property
    def cards(self) -> int:
        return DECK * self.decks

    @property
    def values(self) -> int:
        """How many different cards there are."""
        return COLORS if self.match == "colors" else RANKS

    @property
    def limit(self) -> int:
        """Steps after which an episode is cut: those that a player with perfect memory needs, by POPGym's estimate."""
        return math.ceil(2 * self.cards - self.cards / (2 * self.cards - 1))

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[ConcentrationState, TimeStep]:
        return self.deal(shuffled(self.values, self.decks, key))

    def deal(self, cards: Int[Array, " C"]) -> tuple[ConcentrationState, TimeStep]:
        """Open the episode in which these cards lie in this order."""
        found = jnp.zeros(cards.shape, bool)
        state = ConcentrationState(cards, found, jnp.int32(-1), jnp.int32(0))
        return state, first(self._seen(cards, found))

    def step(
        self, task: Task, state: ConcentrationState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[ConcentrationState, TimeStep]:
        cards, found, turned, time = state
        place = jnp.arange(self.cards)
        in_hand = (place == action) | (place == turned)
        again, second = found[action], turned >= 0
        pair = second & ~again & (cards[turned] == cards[action]) & (turned != action)

        failure = 1 / self.limit
        lost = jnp.where(second, -2 * failure, jnp.where(again, -failure, 0.0))
        reward = jnp.where(pair, 1 / (self.cards // 2), lost)
        seen = self._seen(cards, found | in_hand)
        found = found | (in_hand & pair)
        turned = jnp.where(second | again, -1, action).astype(jnp.int32)
        done = later(seen, reward, found.all(), time + 1 >= self.limit)
        return ConcentrationState(cards, found, turned, time + 1), done

    def _seen(self, cards: Int[Array, " C"], face_up: Bool[Array, " C"]) -> dict[str, Array]:
        return {"cards": jnp.where(face_up, cards, self.values)}


LEVELS: Mapping[str, Concentration] = MappingProxyType(
    {"easy": Concentration(), "medium": Concentration(decks=2), "hard": Concentration(match="ranks")}
)
