"""A maze with the rules of Memory Maze (Pasukonis et al., arXiv 2210.13383), seen as a small map instead of rendered.

Mazes are drawn by the algorithm of labmaze, which Memory Maze uses, but on the device: a new one in each reset. What
knows the whole maze (the shortest ways, for reference scores) is here too; what has to explore it is not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first, later
from reverie.ranges import Count, at_least, between, checked

WALL, FREE, TARGET = 0, 1, 2
"""What a cell holds; TARGET + i stands for target i."""
SIZES = (9, 11, 13, 15)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""What each action adds to (row, column): up, right, down, left."""


class MazeState(NamedTuple):
    """Where an episode stands."""

    cells: Int8[Array, "*B P P"]
    """What each cell holds, within as many rings of walls as the view reaches."""
    position: Int[Array, "*B 2"]
    """Row and column of the agent in `cells`."""
    wanted: Int[Array, "*B"]
    """The target that pays."""
    time: Int[Array, "*B"]
    """Steps since the episode began."""


@dataclass(frozen=True)
@checked
class Maze:
    """Reaching the target that is wanted pays 1, and one of the others, drawn at random, is wanted next.

    Nothing else pays, and an episode is cut after `steps` steps, so that its return counts the targets reached. They
    stay where they are. The mazes, the places of targets and start, and the sizes of `LEVELS` are Memory Maze's too.

    Ours are the moves and the view. An action moves the agent one cell up, right, down or left, or nowhere if there is
    a wall; there is no heading. It sees which target is wanted and the square of `view` x `view` cells around itself,
    as a map that does not turn and in which walls hide nothing. It is not told where it is. There are no variants: the
    task is any array.
    """

    size: Count = 9
    """Cells along a side, without the wall around them."""
    targets: Annotated[int, *at_least(2)] = 3
    """How many there are."""
    steps: Count = 1000
    """Of an episode."""
    view: Annotated[int, *between(3, 255)] = 5
    """Cells along a side of the square that is seen."""

    action_spec: ClassVar[Discrete] = Discrete(len(MOVES))

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"Maze size must be one of {', '.join(map(str, SIZES))}, got {self.size}")
        most = (self.size - 3) // 2  # Memory Maze's: each target has a room, and more rooms may not fit
        if self.targets > most:
            raise ValueError(f"Maze targets must lie in 2 .. {most} for size {self.size}, got {self.targets}")
        if self.view % 2 == 0:
            raise ValueError(f"Maze view must be odd, got {self.view}")

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        """The view row by row, with the categories WALL, FREE, TARGET, TARGET + 1, ..., and the wanted target."""
        return {
            "view": ArraySpec((self.view**2,), categories=TARGET + self.targets),
            "wanted": ArraySpec((1,), categories=self.targets),
        }

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[MazeState, TimeStep]:
        maze_key, things_key, wanted_key = jax.random.split(key, 3)
        free, rooms = labyrinth(self.size, self.targets, maze_key)
        start, places = _places(rooms, self.targets, things_key)
        contents = TARGET + jnp.arange(self.targets, dtype=jnp.int8)
        cells = free.astype(jnp.int8).at[places[:, 0], places[:, 1]].set(contents)
        return self.deal(cells, start, jax.random.randint(wanted_key, (), 0, self.targets))

    def deal(
        self, cells: Int8[Array, "S S"], position: Int[Array, "2"], wanted: Int[Array, ""]
    ) -> tuple[MazeState, TimeStep]:
        """Open the episode in this maze, the agent being at `position` in it."""
        margin = self.view // 2
        state = MazeState(jnp.pad(cells, margin), position + margin, wanted, jnp.int32(0))
        return state, first(self._seen(state))

    def step(
        self, task: Task, state: MazeState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[MazeState, TimeStep]:
        cells, position, wanted, time = state
        ahead = position + jnp.asarray(MOVES)[action]
        cell = cells[ahead[0], ahead[1]]
        reached = cell == TARGET + wanted
        other = (wanted + jax.random.randint(key, (), 1, self.targets)) % self.targets
        state = MazeState(cells, jnp.where(cell == WALL, position, ahead), jnp.where(reached, other, wanted), time + 1)
        return state, later(self._seen(state), reached, jnp.zeros((), bool), state.time == self.steps)

    def distances(self, state: MazeState) -> Int[Array, "N P P"]:
        """Steps from each cell to each target; more than any way has, where there is a wall."""
        free, far = state.cells != WALL, state.cells.size
        targets = state.cells == TARGET + jnp.arange(self.targets, dtype=jnp.int8)[:, None, None]

        def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            steps, _ = carry
            beside = jnp.stack([jnp.roll(steps, move, (1, 2)) for move in MOVES])  # the walls around stay far
            nearer = jnp.where(free, jnp.minimum(steps, beside.min(0) + 1), far)
            return nearer, (nearer < steps).any()

        known = jnp.where(targets, 0, far)
        return jax.lax.while_loop(lambda carry: carry[1], spread, (known, jnp.ones((), bool)))[0]

    def shortest_way(self, state: MazeState, distances: Int[Array, "N P P"]) -> Int[Array, ""]:
        """The action that leads to the wanted target the shortest way. No policy earns more on average."""
        around = state.position + jnp.asarray(MOVES)
        return distances[state.wanted, around[:, 0], around[:, 1]].argmin()

    def _seen(self, state: MazeState) -> dict[str, Array]:
        corner = state.position - self.view // 2
        view = jax.lax.dynamic_slice(state.cells, (corner[0], corner[1]), (self.view, self.view))
        return {"view": view.reshape(-1), "wanted": state.wanted[None]}


LEVELS: Mapping[str, Maze] = MappingProxyType(
    {
        "9x9": Maze(),
        "11x11": Maze(size=11, targets=4, steps=2000),
        "13x13": Maze(size=13, targets=5, steps=3000),
        "15x15": Maze(size=15, targets=6, steps=4000),
    }
)


def labyrinth(size: int, targets: int, key: Key[Array, ""]) -> tuple[Bool[Array, "S S"], Bool[Array, "R S S"]]:
    """The free cells of a random maze, all of them connected, and those of each room; one that is not there has none.

    As labmaze draws it with Memory Maze's settings: rooms of 3 x 3 or 3 x 5 cells (3 x 3 only where size is 15), up to
    6 (9), are placed until none fits, and again while they are fewer than the targets. Corridors without loops, drawn
    depth first, fill the rest. Regions that touch are joined by one door, which is where loops come from. Then dead
    ends are filled in. labmaze also straightens detours around a wall afterwards, which is left out here.
    """
    plan = _plan(size)
    rooms_key, corridors_key, doors_key = jax.random.split(key, 3)
    chosen = _rooms(plan, targets, rooms_key)
    there = chosen >= 0
    rooms = jnp.asarray(plan.floors)[chosen] & there[:, None, None]
    numbers = jnp.arange(1, plan.rooms + 1)[:, None, None]
    region, passages = _corridors(plan, (rooms[:, ::2, ::2] * numbers).sum(0).reshape(-1), corridors_key)
    free = rooms.any(0).at[::2, ::2].set(True).reshape(-1).at[passages].set(True)
    free = free.at[plan.walls].max(_doors(plan, region, doors_key)).reshape(size, size)
    return _without_dead_ends(free), rooms


class _Plan(NamedTuple):
    """What mazes of a size have in common. Nodes are the cells of even row and column, L^2 of them, to which rooms and
    corridors are aligned; an edge is a pair of neighbouring nodes."""

    floors: np.ndarray
    """[C, S, S], the cells of each place and shape that a room may have."""
    overlaps: np.ndarray
    """[C, C], which of them cannot be together."""
    weights: np.ndarray
    """[C], logarithms of how likely each is."""
    neighbours: np.ndarray
    """[L^2 + 1, 4], the node in each direction, L^2 where there is none; that one has no neighbours."""
    between: np.ndarray
    """[L^2 + 1, 4], the cell on the way to it, in a flat maze."""
    edges: np.ndarray
    """[E, 2], nodes."""
    walls: np.ndarray
    """[E], the cell between them, in a flat maze."""
    rooms: int
    """The most that there can be."""


@cache
def _plan(size: int) -> _Plan:
    side = (size + 1) // 2
    shapes = {(2, 2): 1.0} if size == 15 else {(2, 2): 0.5, (2, 3): 0.25, (3, 2): 0.25}  # in nodes
    floors, weights = [], []
    for (height, width), weight in shapes.items():
        corners = [(row, column) for row in range(side - height + 1) for column in range(side - width + 1)]
        for row, column in corners:
            floor = np.zeros((size, size), bool)
            floor[2 * row : 2 * (row + height) - 1, 2 * column : 2 * (column + width) - 1] = True
            floors.append(floor)
            weights.append(np.log(weight / len(corners)))
    nodes = np.stack(floors)[:, ::2, ::2].reshape(len(floors), -1).astype(int)

    none = side * side
    neighbours = np.full((none + 1, len(MOVES)), none)
    between = np.zeros((none + 1, len(MOVES)), int)
    for node in range(none):
        for way, (down, right) in enumerate(MOVES):
            row, column = node // side + down, node % side + right
            if 0 <= row < side and 0 <= column < side:
                neighbours[node, way] = row * side + column
                between[node, way] = (2 * row - down) * size + 2 * column - right
    node, way = np.nonzero(neighbours[:none] > np.arange(none)[:, None])
    node, way = node[neighbours[node, way] < none], way[neighbours[node, way] < none]
    return _Plan(
        floors=np.stack(floors),
        overlaps=nodes @ nodes.T > 0,
        weights=np.asarray(weights, np.float32),
        neighbours=neighbours,
        between=between,
        edges=np.stack([node, neighbours[node, way]], 1),
        walls=between[node, way],
        rooms=9 if size == 15 else 6,
    )


def _rooms(plan: _Plan, targets: int, key: Key[Array, ""]) -> Int[Array, " R"]:
    """Which of the possible rooms there are, -1 for none.

    labmaze tries rooms at random and keeps those that fit. The order in which different ones come up is that of
    independent exponential clocks, so one draw for each possible room decides it (the Gumbel trick).
    """

    def draw(carry: tuple[Key[Array, ""], Array]) -> tuple[Key[Array, ""], Array]:
        key, now = jax.random.split(carry[0])
        order = plan.weights + jax.random.gumbel(now, plan.weights.shape)

        def place(fits: Bool[Array, " C"], _: None) -> tuple[Bool[Array, " C"], Int[Array, ""]]:
            room = jnp.where(fits, order, -jnp.inf).argmax()
            return fits & ~jnp.asarray(plan.overlaps)[room], jnp.where(fits.any(), room, -1)

        return key, jax.lax.scan(place, jnp.ones(order.shape, bool), length=plan.rooms)[1]

    none = jnp.full(plan.rooms, -1)
    return jax.lax.while_loop(lambda carry: (carry[1] >= 0).sum() < targets, draw, (key, none))[1]


class _Walk(NamedTuple):
    """A depth-first walk through the nodes; node L^2 is that of no place, where a walk is between two trees."""

    node: Int[Array, ""]
    region: Int[Array, " L+1"]
    """Of each node, 0 where nobody was yet."""
    parent: Int[Array, " L+1"]
    """The node from which each was reached."""
    label: Int[Array, ""]
    """Region of the tree that grows."""


def _corridors(plan: _Plan, region: Int[Array, " L"], key: Key[Array, ""]) -> tuple[Int[Array, " L"], Int[Array, " T"]]:
    """Fill the nodes of region 0 with trees, drawn depth first, each a region of its own.

    Returns the region of each node, and the cells between nodes that are to be opened; cell 0, a node, stands for none.
    """
    nowhere = region.shape[0]
    neighbours, between = jnp.asarray(plan.neighbours), jnp.asarray(plan.between)

    def walk(now: _Walk, chance: Float[Array, "4"]) -> tuple[_Walk, Int[Array, ""]]:
        node, region, parent, label = now
        ways = region[neighbours[node]] == 0
        way = jnp.where(ways, chance, -1.0).argmax()
        onward = jnp.where(ways.any(), neighbours[node, way], nowhere)
        fresh = region == 0
        root = jnp.where(fresh.any(), fresh.argmax(), nowhere)
        new = jnp.where(node == nowhere, root, onward)
        label = label + (node == nowhere)
        return _Walk(
            node=jnp.where(new == nowhere, parent[node], new),
            region=region.at[new].set(jnp.where(new == nowhere, -1, label)),
            parent=parent.at[new].set(jnp.where(new == nowhere, nowhere, node)),
            label=label,
        ), jnp.where(onward == nowhere, 0, between[node, way])

    start = _Walk(
        node=jnp.int32(nowhere),
        region=jnp.append(region, -1),
        parent=jnp.full(nowhere + 1, nowhere, jnp.int32),
        label=jnp.int32(plan.rooms),
    )
    chances = _uniform(key, 2 * nowhere, len(MOVES))  # each node is entered once and left once
    end, opened = jax.lax.scan(walk, start, chances)
    return end.region[:-1], opened


def _doors(plan: _Plan, region: Int[Array, " L"], key: Key[Array, ""]) -> Bool[Array, " E"]:
    """Which edges are doors: one, drawn at random, of those between the same two regions."""
    a, b = region[plan.edges[:, 0]], region[plan.edges[:, 1]]
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    same = (low[:, None] == low) & (high[:, None] == high)
    chance = jax.random.uniform(key, a.shape)
    return (a != b) & (chance == jnp.where(same, chance, 0.0).max(1))


def _without_dead_ends(free: Bool[Array, "S S"]) -> Bool[Array, "S S"]:
    """Fill cells with less than two free neighbours until there is none."""

    def fill(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        free, _ = carry
        ringed = jnp.pad(free, 1).astype(jnp.int32)
        exits = ringed[:-2, 1:-1] + ringed[2:, 1:-1] + ringed[1:-1, :-2] + ringed[1:-1, 2:]
        left = free & (exits > 1)
        return left, (left != free).any()

    return jax.lax.while_loop(lambda carry: carry[1], fill, (free, jnp.ones((), bool)))[0]


def _places(
    rooms: Bool[Array, "R S S"], targets: int, key: Key[Array, ""]
) -> tuple[Int[Array, "2"], Int[Array, "N 2"]]:
    """Row and column of a start and of the targets: each target has a room, and none is where the agent starts."""
    rooms_key, cells_key = jax.random.split(key)
    there = rooms.any((1, 2))
    chance = jnp.where(there, _uniform(rooms_key, 2, *there.shape), -1.0)
    first_room, others = chance[0].argmax(), jax.lax.top_k(chance[1], targets)[1]

    chance = _uniform(cells_key, 1 + targets, *rooms.shape[1:])
    start = _highest(jnp.where(rooms[first_room], chance[0], -1.0))
    allowed = rooms[others].at[:, start[0], start[1]].set(False)
    return start, jax.vmap(_highest)(jnp.where(allowed, chance[1:], -1.0))


def _highest(chance: Float[Array, "S S"]) -> Int[Array, "2"]:
    return jnp.stack(jnp.divmod(chance.argmax(), chance.shape[1]))


def _uniform(key: Key[Array, ""], *shape: int) -> Float[Array, "..."]:
    """In [0, 1). Drawn as a vector: XLA takes five times as long to compile a draw of several axes."""
    return jax.random.uniform(key, (math.prod(shape),)).reshape(shape)
