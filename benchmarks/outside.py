"""Speed of worlds outside JAX: stepped by the callback within a compiled program, and by plain Python.

    python benchmarks/outside.py [NAME ...]

CPU time of this process per environment step, the best of some runs in turn: `callback` is what training does (a random
policy, compiled), `by hand` the same copies stepped by a Python loop without any policy.

Needs the package of each world that is named (`pip install -e '.[popgym]'` and so on; Gymnasium's own need none).
Takes five seconds for CartPole.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from reverie.envs.core import Discrete, batch_reset, batch_step
from reverie.envs.outside.sources import SOURCES, open_outside
from reverie.envs.outside.worlds import OutsideWorlds

COPIES = 8
STEPS = 500
RUNS = 5


def within_a_program(worlds: OutsideWorlds) -> Callable[[], object]:
    spec = worlds.action_spec

    def act(key):
        if isinstance(spec, Discrete):
            return jax.random.randint(key, (COPIES,), 0, spec.n)
        return jax.random.uniform(key, (COPIES, spec.size), minval=-1.0)

    def run(key):
        def step(carry, key):
            return batch_step(worlds, worlds.tasks, *carry, act(key), key), None

        return jax.lax.scan(step, batch_reset(worlds, worlds.tasks, key), jax.random.split(key, STEPS))[0]

    program, key = jax.jit(run).lower(jax.random.key(0)).compile(), jax.random.key(0)
    return lambda: jax.block_until_ready(program(key))


def by_hand(name: str) -> Callable[[], object]:
    source, _, world = name.partition(":")
    worlds = [SOURCES[source](world) for _ in range(COPIES)]
    space = worlds[0].action_space

    def run():
        rng = np.random.default_rng(0)
        actions = [space.sample() for _ in range(100)]
        for world in worlds:
            world.reset(0)
        ended = [False] * COPIES
        for chosen in rng.integers(0, len(actions), (STEPS, COPIES)):
            for i, world in enumerate(worlds):
                ended[i] = (world.reset() if ended[i] else world.step(actions[chosen[i]])).is_last

    return run


def main(names: list[str]) -> None:
    print(f"{'us of CPU per environment step':32}{'callback':>10}{'by hand':>10}")
    for name in names:
        ways = [within_a_program(open_outside(name, COPIES)), by_hand(name)]
        best = [float("inf")] * len(ways)
        for _ in range(RUNS):
            for i, way in enumerate(ways):
                begin = time.process_time()
                way()
                best[i] = min(best[i], (time.process_time() - begin) / (STEPS * COPIES))
        print(f"{name:32}" + "".join(f"{1e6 * seconds:10.1f}" for seconds in best), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", nargs="*", default=["gym:CartPole-v1"], help="a world, such as popgym:RepeatPreviousEasy"
    )
    try:
        main(parser.parse_args().name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"benchmarks/outside.py: {error}") from None
