"""What three policies earn in the maze, and how many steps per second 64 mazes take in one program on one core.

    python benchmarks/maze.py [--mazes 64] [--batches 4]

Each plays the same mazes for a whole episode: one that walks at random, one without memory that does so too unless it
sees the wanted target and then goes there, and one that knows the maze and always takes the shortest way. Steps are
those of the random walk, per second of CPU time; compilation and resets are not counted; the last column is the reset
of a batch.

Needs nothing but Reverie itself. Takes a minute of CPU time.
"""

import argparse
import os
import time
from functools import partial

if hasattr(os, "sched_setaffinity"):  # before XLA starts its threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.core import batch_reset, batch_step
from reverie.envs.memory.maze import LEVELS, MOVES, TARGET, Maze

POLICIES = ("random", "no memory", "shortest way")


@partial(jax.jit, static_argnums=(0, 2))
def opened(env: Maze, key: jax.Array, mazes: int):
    return batch_reset(env, jnp.zeros(mazes), key)


@partial(jax.jit, static_argnums=(0, 1))
def played(env: Maze, policy: str, states, timesteps, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The return of each maze's episode [B], and a sum over all that was seen, without which XLA would not show it."""
    mazes = timesteps.reward.shape[0]
    ways = None if policy == "random" else jax.vmap(env.distances)(states)

    def step(carry, key):
        states, timesteps = carry
        actions = jax.random.randint(key, (mazes,), 0, len(MOVES))
        if policy != "random":
            shortest, seen = jax.vmap(env.shortest_way)(states, ways), timesteps.observation
            knows = (policy == "shortest way") | (seen["view"] == TARGET + seen["wanted"]).any(-1)
            actions = jnp.where(knows, shortest, actions)
        carry = batch_step(env, jnp.zeros(mazes), states, timesteps, actions, key)
        return carry, (carry[1].reward, carry[1].observation["view"].sum(-1))

    rewards, seen = jax.lax.scan(step, (states, timesteps), jax.random.split(key, env.steps))[1]
    return rewards.sum(0), seen.sum()


def cpu_seconds(function, *arguments) -> float:
    jax.block_until_ready(function(*arguments))
    began = time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.process_time() - began


def main(mazes: int, batches: int) -> None:
    print(
        f"{'maze':6}" + "".join(f"{policy:>18}" for policy in POLICIES) + f"{'steps / CPU-s':>16}{'reset, CPU-ms':>15}"
    )
    for name, env in LEVELS.items():
        keys = jax.random.split(jax.random.key(0), batches)
        starts = [opened(env, key, mazes) for key in keys]
        row = f"{name:6}"
        for policy in POLICIES:
            plays = zip(starts, keys, strict=True)
            earned = np.concatenate([played(env, policy, *start, key)[0] for start, key in plays])
            row += f"{earned.mean():12.1f} ± {earned.std(ddof=1) / np.sqrt(len(earned)):3.1f}"
        rate = mazes * env.steps / cpu_seconds(played, env, "random", *starts[0], keys[0])
        print(f"{row}{rate:16,.0f}{1000 * cpu_seconds(opened, env, keys[0], mazes):15.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mazes", type=int, default=64, help="in one batch, at least 2")
    parser.add_argument("--batches", type=int, default=4, help="played one after the other")
    options = parser.parse_args()
    main(max(options.mazes, 2), options.batches)
