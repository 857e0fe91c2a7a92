"""Worlds that are no fleets, by name: those of memory, such as `repeat_previous/hard`, and those of many tasks, such as
`merging`, in which a trial's task has to be found out."""

from collections.abc import Mapping, Sized
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from reverie.envs.core import Environment
from reverie.envs.dispatch import Dispatch
from reverie.envs.factors import Factored, Factors, Told, grid, inside, outside
from reverie.envs.memory import autoencode, concentration, discounting_chain, maze, memory_chain, repeat_previous
from reverie.envs.memory.discounting_chain import DiscountingChain
from reverie.envs.memory.memory_chain import MemoryChain
from reverie.envs.merging import Merging
from reverie.envs.point_robot import PointRobot

Tasks = Shaped[np.ndarray, "_ ..."]

BOX = 256
"""Tasks that are drawn from the box of those to learn from, for agents that are to know no task but all of them."""
ABOUT_TASKS = frozenset({"told", "dense", "box", "sparse"})
"""How names of games end that differ by nothing but what is told of tasks, or by which ones are learned from."""
NO_TESTS: Mapping[str, Tasks] = MappingProxyType({})


class Game(NamedTuple):
    """A world, and what is played in it."""

    world: Environment
    tasks: Tasks = np.zeros(1, np.int32)
    """Those to learn from [K, ...]."""
    tests: Mapping[str, Tasks] = NO_TESTS
    """Those to be judged on, where they are others: `interpolated` lie between those to learn from, `extrapolated`
    outside of them."""


def _games() -> dict[str, Game]:
    cards = {"repeat_previous": repeat_previous, "autoencode": autoencode, "concentration": concentration}
    leveled = cards | {"maze": maze}
    found = {f"{name}/{level}": Game(world) for name, of in leveled.items() for level, world in of.LEVELS.items()}
    found |= {"autoencode/parts": Game(autoencode.Autoencode(parts=autoencode.PARTS), _numbers(autoencode.PARTS))}
    lengths = memory_chain.LENGTHS
    found |= {f"memory_length/{length}": Game(MemoryChain((length,))) for length in lengths}
    found |= {"memory_length/all": Game(MemoryChain(lengths), _numbers(lengths))}
    found |= {f"memory_size/{bits}": Game(MemoryChain((2,), bits)) for bits in memory_chain.SIZES}
    delays = enumerate(discounting_chain.DELAYS)
    found |= {
        f"discounting_chain/{delay}": Game(DiscountingChain(), np.array([arm], np.int32)) for arm, delay in delays
    }
    return found | _point_robots() | _merging() | _dispatch()


def _numbers(variants: Sized) -> Tasks:
    return np.arange(len(variants), dtype=np.int32)


def _point_robots() -> dict[str, Game]:
    """PEARL's 80 goals to learn from and 20 to test on, drawn alike; or a sparse grid. Those outside can be reached."""
    box = ((-1.0, -1.0), (1.0, 1.0))
    goals = inside(*box, 100, seed=0)
    tests = {"interpolated": goals[80:], "extrapolated": outside(*box, (-1.3, -1.3), (1.3, 1.3), 20, seed=1)}
    sparse = grid((-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0))
    return _with_oracle("point_robot", PointRobot(), goals[:80], tests) | _with_oracle(
        "point_robot/sparse", PointRobot(), sparse, tests
    )


def _merging() -> dict[str, Game]:
    """Sparse grids to learn from, one with two more tasks between any two; tests are drawn between and around them."""
    tests = {
        "interpolated": inside((-0.8,), (0.8,), 64, seed=0),
        "extrapolated": outside((-0.8,), (0.8,), (-1.0,), (1.0,), 64, seed=1),
    }
    found = _with_oracle("merging", Merging(), grid((-0.8, -0.4, 0.0, 0.4, 0.8)), tests)
    found["merging/dense"] = Game(Merging(), grid(np.linspace(-0.8, 0.8, 13).tolist()), tests)
    found["merging/box"] = Game(Merging(), inside((-0.8,), (0.8,), BOX, seed=4), tests)
    box, wide = ((1.0, 0.5), (5.0, 2.5)), ((0.0, 0.1), (7.0, 3.0))
    tests = {"interpolated": inside(*box, 64, seed=2), "extrapolated": outside(*box, *wide, 64, seed=3)}
    return found | _with_oracle("merging/hidas", Merging("hidas"), grid((1.0, 3.0, 5.0), (0.5, 1.5, 2.5)), tests)


def _dispatch() -> dict[str, Game]:
    """One, two and three factors: sparse grids to learn from; for one, both ends alone too, and twice as many values;
    for three, all tasks of MetaDreamer, known and imagined, and any tasks of the box. Tests are drawn between and
    around them."""
    values = {"load": (0.5, 0.8), "tail": (0.4, 1.2), "skew": (-1.5, 0.0, 1.5)}
    widest = {"load": (0.3, 0.9), "tail": (0.2, 1.5), "skew": (-2.0, 2.0)}
    found: dict[str, Game] = {}
    for name, factors in {
        "dispatch/skew": ("skew",),
        "dispatch/load-skew": ("load", "skew"),
        "dispatch": ("load", "tail", "skew"),
    }.items():
        low, high = ([end(values[k]) for k in factors] for end in (min, max))
        wide = ([end(widest[k]) for k in factors] for end in (min, max))
        tests = {"interpolated": inside(low, high, 64, seed=5), "extrapolated": outside(low, high, *wide, 64, seed=6)}
        found |= _with_oracle(name, Dispatch(factors), grid(*(values[k] for k in factors)), tests)
    for number, name in ((2, "dispatch/skew/sparse"), (6, "dispatch/skew/dense")):
        found[name] = found["dispatch/skew"]._replace(tasks=grid(np.linspace(-1.5, 1.5, number).tolist()))
    dense = grid(*(np.linspace(min(v), max(v), 3 * len(v) - 2).tolist() for v in values.values()))
    found["dispatch/dense"] = Game(Dispatch(), dense, tests)
    found["dispatch/box"] = Game(Dispatch(), inside(low, high, BOX, seed=7), tests)
    return found


def _with_oracle(name: str, world: Factored, tasks: Factors, tests: Mapping[str, Factors]) -> dict[str, Game]:
    """The game, and the same with the factors of the task told: NAME/told."""
    return {name: Game(world, tasks, tests), f"{name}/told": Game(Told(world), tasks, tests)}


GAMES: Mapping[str, Game] = MappingProxyType(_games())
"""POPGym's and mazes by level, bsuite's by the steps or bits to remember, or by the delay of the arm that pays most;
`memory_length/all` is one of all 23 lengths in each episode, `autoencode/parts` the first 1 to 52 cards of a deck. Then
those whose tasks have factors, which `told` shows."""


def find_game(name: str) -> Game:
    """The game of that name.

    Errors: ValueError where there is none, with those that there are.
    """
    if name not in GAMES:
        kinds: dict[str, list[str]] = {}
        for kind, _, level in (each.partition("/") for each in GAMES):
            kinds.setdefault(kind, []).append(level or "(alone)")
        known = "; ".join(f"{kind}/ {', '.join(levels)}" for kind, levels in kinds.items())
        raise ValueError(f"there is no game {name!r}; there are {known}; and worlds outside, such as gym:CartPole-v1")
    return GAMES[name]
