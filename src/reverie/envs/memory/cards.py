"""What the card games share: decks of 52 cards, of which a game looks at one property."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

DECK = 52
SUITS, RANKS, COLORS = 4, 13, 2


def shuffled(values: int, decks: int, key: Key[Array, ""]) -> Int[Array, " C"]:
    """Cards in random order, each as one of `values` suits, ranks or colors, which are equally frequent."""
    return jax.random.permutation(key, jnp.arange(DECK * decks, dtype=jnp.int32) % values)
