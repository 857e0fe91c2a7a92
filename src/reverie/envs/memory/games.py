"""Worlds of memory by name, such as `repeat_previous/hard`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from reverie.envs.core import Environment
from reverie.envs.memory import autoencode, concentration, discounting_chain, maze, memory_chain, repeat_previous
from reverie.envs.memory.discounting_chain import DiscountingChain
from reverie.envs.memory.memory_chain import MemoryChain


class Game(NamedTuple):
    """A world, and those of its variants that are played."""

    world: Environment
    tasks: tuple[int, ...] = (0,)


def _games() -> dict[str, Game]:
    cards = {"repeat_previous": repeat_previous, "autoencode": autoencode, "concentration": concentration}
    leveled = cards | {"maze": maze}
    found = {f"{name}/{level}": Game(world) for name, of in leveled.items() for level, world in of.LEVELS.items()}
    parts = autoencode.PARTS
    found |= {"autoencode/parts": Game(autoencode.Autoencode(parts=parts), tuple(range(len(parts))))}
    lengths = memory_chain.LENGTHS
    found |= {f"memory_length/{length}": Game(MemoryChain((length,))) for length in lengths}
    found |= {"memory_length/all": Game(MemoryChain(lengths), tuple(range(len(lengths))))}
    found |= {f"memory_size/{bits}": Game(MemoryChain((2,), bits)) for bits in memory_chain.SIZES}
    delays = discounting_chain.DELAYS
    return found | {f"discounting_chain/{delay}": Game(DiscountingChain(), (arm,)) for arm, delay in enumerate(delays)}


GAMES: Mapping[str, Game] = MappingProxyType(_games())
"""POPGym's and mazes by level, bsuite's by the steps or bits to remember, or by the delay of the arm that pays most;
`memory_length/all` is one of all 23 lengths in each episode, `autoencode/parts` the first 1 to 52 cards of a deck."""


def find_game(name: str) -> Game:
    """The game of that name.

    Errors: ValueError where there is none, with those that there are.
    """
    if name not in GAMES:
        kinds: dict[str, list[str]] = {}
        for kind, level in (each.split("/") for each in GAMES):
            kinds.setdefault(kind, []).append(level)
        known = "; ".join(f"{kind}/ {', '.join(levels)}" for kind, levels in kinds.items())
        raise ValueError(f"there is no game {name!r}; there are {known}; and worlds outside, such as gym:CartPole-v1")
    return GAMES[name]
