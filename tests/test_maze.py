"""The maze of Memory Maze's rules: its mazes against labmaze's, its rules in a maze drawn by hand."""

from collections import deque
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from reverie.envs.core import batch_reset, batch_step
from reverie.envs.memory.maze import FREE, LEVELS, MOVES, TARGET, WALL, Maze

KEY = jax.random.key(5)
UP, RIGHT, DOWN, LEFT = range(4)

# Means over 1,500 mazes of labmaze 1.0.6 with Memory Maze's settings: free cells, steps from one target to another.
LABMAZE = {"9x9": (59.4, 7.94), "15x15": (145.2, 12.65)}

DRAWN = """
    a..#.....
    ##.#.###.
    ...#.#c#.
    .###.#.#.
    ...b.....
    ###.#####
    .........
    .#######.
    ........."""


@cache
def opened(level):
    """The states of 400 new episodes, and the distances of the first 200, as numpy arrays."""
    env = LEVELS[level]
    states, _ = jax.jit(lambda key: batch_reset(env, jnp.zeros(400), key))(KEY)
    distances = jax.jit(jax.vmap(env.distances))(jax.tree.map(lambda x: x[:200], states))
    return jax.tree.map(np.asarray, states), np.asarray(distances)


@cache
def stepping(env):
    return jax.jit(lambda state, action, key: env.step(jnp.zeros(()), state, action, key))


def drawn(position, wanted, env=Maze()):  # noqa: B008 - a frozen dataclass
    """The episode in the maze drawn above that begins at `position`."""
    cells = [["#.abc".index(cell) for cell in row] for row in DRAWN.split()]
    return env.deal(jnp.asarray(cells, jnp.int8), jnp.asarray(position), jnp.int32(wanted))


def walked(cells, start):
    """Steps from `start` to each cell, -1 where no way leads."""
    steps, queue = np.full(cells.shape, -1), deque([start])
    steps[start] = 0
    while queue:
        row, column = queue.popleft()
        for down, right in MOVES:
            there = row + down, column + right
            if cells[there] != WALL and steps[there] < 0:
                steps[there] = steps[row, column] + 1
                queue.append(there)
    return steps


@pytest.mark.parametrize("level", ["9x9", "15x15"])
def test_all_of_a_maze_can_be_reached(level):
    states, _ = opened(level)
    for cells in states.cells:
        assert ndimage.label(cells != WALL)[1] == 1


@pytest.mark.parametrize("level", ["9x9", "15x15"])
def test_each_target_has_a_free_cell_and_the_agent_another(level):
    env, (states, _) = LEVELS[level], opened(level)
    margin = env.view // 2
    for cells, position in zip(states.cells, states.position, strict=True):
        np.testing.assert_array_equal(np.bincount(cells.ravel())[TARGET:], np.ones(env.targets))
        assert cells[tuple(position)] == FREE
        assert (np.pad(cells[margin:-margin, margin:-margin], margin) == cells).all(), "there are walls around"
    np.testing.assert_allclose(np.bincount(states.wanted) / 400, 1 / env.targets, atol=0.1)


@pytest.mark.parametrize("level", ["9x9", "15x15"])
def test_mazes_are_like_those_of_labmaze(level):
    (states, distances), targets = opened(level), LEVELS[level].targets
    free, apart = LABMAZE[level]
    assert (states.cells != WALL).sum((1, 2)).mean() == pytest.approx(free, rel=0.02)
    ways = [distances[:, i][states.cells[:200] == TARGET + j].mean() for i in range(targets) for j in range(i)]
    assert np.mean(ways) == pytest.approx(apart, rel=0.04)
    assert len({cells.tobytes() for cells in states.cells != WALL}) > 390


def test_distances_are_those_of_a_walk():
    states, distances = opened("15x15")
    for maze, cells in enumerate(states.cells[:5]):
        for target in range(6):
            steps = walked(cells, tuple(np.argwhere(cells == TARGET + target)[0]))
            reachable = steps >= 0
            np.testing.assert_array_equal(distances[maze, target][reachable], steps[reachable])
            assert distances[maze, target][~reachable].min() > steps.max()


def test_only_the_wanted_target_pays_and_another_is_wanted_then():
    state, timestep = drawn((0, 1), wanted=1)
    step, path = stepping(Maze()), [LEFT, RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT, DOWN, DOWN, RIGHT, RIGHT, RIGHT, RIGHT]
    rewards, wanted = [], [int(timestep.observation["wanted"][0])]
    for action, key in zip(path, jax.random.split(KEY, len(path)), strict=True):
        state, timestep = step(state, action, key)
        rewards.append(float(timestep.reward))
        wanted.append(int(timestep.observation["wanted"][0]))
    assert rewards == [0.0] * 11 + [1.0, 0.0], "target a lies on the way and does not pay, b does"
    assert wanted[:12] == [1] * 12
    assert wanted[12] in (0, 2)
    assert wanted[13] == wanted[12]


def test_each_other_target_is_wanted_next_equally_often():
    state, _ = drawn((4, 2), wanted=1)
    states, timesteps = jax.jit(jax.vmap(stepping(Maze()), (None, None, 0)))(state, RIGHT, jax.random.split(KEY, 500))
    assert timesteps.reward.min() == 1
    counts = np.bincount(states.wanted, minlength=3)
    assert counts[1] == 0
    assert 200 < counts[0] < 300, "five standard deviations are 56"


@pytest.mark.parametrize(("action", "place"), [(UP, (3, 0)), (RIGHT, (4, 1)), (DOWN, (4, 0)), (LEFT, (4, 0))])
def test_walls_block_inside_and_at_the_border(action, place):
    state, _ = drawn((4, 0), wanted=2)
    after, _ = stepping(Maze())(state, action, KEY)
    margin = 2
    np.testing.assert_array_equal(after.position - margin, place)


def test_the_view_is_the_square_around_the_agent():
    _, timestep = drawn((4, 2), wanted=1)
    view = ["...#.", ".###.", "...b.", "###.#", "....."]
    np.testing.assert_array_equal(timestep.observation["view"], ["#.abc".index(cell) for row in view for cell in row])
    _, timestep = drawn((0, 8), wanted=1)
    view = ["#####", "#####", "...##", "##.##", "c#.##"]
    np.testing.assert_array_equal(timestep.observation["view"], ["#.abc".index(cell) for row in view for cell in row])


@pytest.mark.parametrize("view", [3, 5])
def test_the_view_tells_nothing_of_what_lies_beyond(view):
    env, generator = Maze(view=view), np.random.default_rng(0)
    cells, others = generator.integers(0, 5, (2, 200, 9, 9))
    positions = generator.integers(0, 9, (200, 2))
    near = (np.abs(np.indices((9, 9))[None] - positions[..., None, None]) <= view // 2).all(1)

    def seen(cells):
        start = jax.jit(jax.vmap(lambda *arguments: env.deal(*arguments)[1].observation["view"]))
        return np.asarray(start(jnp.asarray(cells, jnp.int8), jnp.asarray(positions), jnp.zeros(200, jnp.int32)))

    np.testing.assert_array_equal(seen(np.where(near, cells, others)), seen(cells))
    assert (seen(np.where(near, others, cells)) != seen(cells)).any(1).all()


def test_episodes_are_cut_at_the_limit_and_go_on_in_another_maze():
    env, tasks = Maze(steps=30), jnp.zeros(3)

    @jax.jit
    def play(key):
        start = batch_reset(env, tasks, key)

        def step(carry, key):
            actions = jax.random.randint(key, (3,), 0, 4)
            carry = batch_step(env, tasks, *carry, actions, key)
            return carry, carry

        return jax.lax.scan(step, start, jax.random.split(key, 62))[1]

    states, timesteps = play(KEY)
    assert not timesteps.is_terminal.any()
    np.testing.assert_array_equal(np.flatnonzero(timesteps.is_last[:, 0]), [29, 60])
    np.testing.assert_array_equal(np.flatnonzero(timesteps.is_first[:, 0]), [30, 61])
    assert (states.cells[:30] == states.cells[0]).all(), "a maze stays as it is"
    assert (states.cells[30] != states.cells[29]).any((1, 2)).all()
    for name, spec in env.observation_spec.items():
        entry = timesteps.observation[name]
        assert entry.shape == (62, 3, *spec.shape)
        assert 0 <= entry.min() <= entry.max() < spec.categories


def test_an_episode_alone_is_that_in_a_batch():
    env, keys = Maze(), jax.random.split(KEY, 400)
    states, _ = opened("9x9")
    for i in (0, 7):
        alone, _ = jax.jit(env.reset)(jnp.zeros(()), keys[i])
        jax.tree.map(lambda one, many, i=i: np.testing.assert_array_equal(one, many[i]), alone, states)
    batched = jax.jit(jax.vmap(stepping(env)))(
        jax.tree.map(lambda x: jnp.asarray(x[:4]), states), jnp.arange(4), keys[:4]
    )
    for i in range(4):
        state = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), states)
        one = stepping(env)(state, i, keys[i])
        jax.tree.map(lambda one, many, i=i: np.testing.assert_array_equal(one, many[i]), one, batched)


def test_who_knows_the_maze_beats_a_random_walk_by_far():
    env = Maze(steps=300)
    states, distances = opened("9x9")
    states, distances = jax.tree.map(lambda x: jnp.asarray(x[:100]), (states, distances))

    @jax.jit
    def returns(knows):
        def step(states, key):
            random = jax.random.randint(key, (100,), 0, len(MOVES))
            actions = jnp.where(knows, jax.vmap(env.shortest_way)(states, distances), random)
            states, timesteps = jax.vmap(env.step)(jnp.zeros(100), states, actions, jax.random.split(key, 100))
            return states, timesteps.reward

        return jax.lax.scan(step, states, jax.random.split(KEY, 300))[1].sum(0)

    knowing, random = returns(True), returns(False)
    assert knowing.mean() == pytest.approx(300 / LABMAZE["9x9"][1], rel=0.1)
    assert random.mean() < 4
    assert (knowing > random).all()


def test_levels_are_those_of_memory_maze():
    table = {name: (env.size, env.targets, env.steps) for name, env in LEVELS.items()}
    assert table == {"9x9": (9, 3, 1000), "11x11": (11, 4, 2000), "13x13": (13, 5, 3000), "15x15": (15, 6, 4000)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 10}, "Maze size must be one of 9, 11, 13, 15, got 10"),
        ({"size": 17}, "Maze size must be one of 9, 11, 13, 15, got 17"),
        ({"targets": 4}, "Maze targets must lie in 2 .. 3 for size 9, got 4"),
        ({"size": 15, "targets": 1}, "Maze: targets must be at least 2, got 1"),
        ({"steps": 0}, "Maze: steps must be at least 1, got 0"),
        ({"view": 4}, "Maze view must be odd, got 4"),
        ({"view": 1}, r"Maze: view must lie in \[3, 255\], got 1"),
    ],
)
def test_impossible_mazes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Maze(**fields)
