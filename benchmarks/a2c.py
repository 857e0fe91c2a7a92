"""How many environment steps per second A2C trains on, and how far from the floor that is.

    python benchmarks/a2c.py [--seconds 20]

The world is Park's fleet at load 0.909, seen in full (10 servers, 22 numbers); networks have two hidden layers of 64
for the actor and as much for the critic, without memory. The floor is the arithmetic of their matrix products (two
operations per weight for acting and for looking, twice that again where gradients flow) over the rate of a large matrix
product measured in the same run. All that is counted happens in one compiled program: jobs, dispatch, acting, update.

Needs nothing but Reverie itself. Takes the seconds that are asked for, and ten more.
"""

import argparse
import time

from reverie.runtime import configure

configure()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from reverie.agents.a2c import A2C, A2CConfig  # noqa: E402
from reverie.envs.core import stack_tasks  # noqa: E402
from reverie.envs.fleet.env import FleetEnv, constant_speeds, fleet_task  # noqa: E402
from reverie.envs.fleet.workload import pareto, poisson  # noqa: E402
from reverie.train.on_policy import OnPolicyConfig, init, update  # noqa: E402

UPDATES = 50
"""In one call of the compiled program."""


def weights(network) -> int:
    """Entries of all matrices: what a row is multiplied by."""
    return sum(x.size for x in jax.tree.leaves(network) if x.ndim > 1)


def floor_operations(actor: int, critic: int, first: int) -> float:
    """Operations per environment step: act, look at what happened, and two products of the same size to learn.

    The first layer (`first` weights of both networks) has no gradient of its input.
    """
    return 2 * actor + 2 * (3 * (actor + critic) - first)


def gemm_rate() -> float:
    """Floating-point operations per second of a large float32 matrix product, on all cores."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    return 2 * 2048**3 / min(seconds(lambda: product(x).block_until_ready())[0] for _ in range(10))


def seconds(call) -> tuple[float, float]:
    """Seconds on the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to train")
    parser.add_argument("--streams", type=int, default=OnPolicyConfig.streams, help="environments side by side")
    parser.add_argument("--steps", type=int, default=OnPolicyConfig.steps, help="steps of each for an update")
    parser.add_argument("--workers", type=int, default=OnPolicyConfig.workers, help="parts collected on their own")
    arguments = parser.parse_args()

    env = FleetEnv(servers=10, jobs=1000, view="full")
    task = fleet_task(constant_speeds(np.linspace(0.15, 1.05, 10)), poisson(55.0, pareto(1.5, 100.0)))
    pool = stack_tasks([task])
    config = OnPolicyConfig(arguments.streams, arguments.steps, workers=arguments.workers)
    agent = A2C(A2CConfig(reward_scale=0.01), env.observation_spec, env.action_spec)
    state = jax.jit(lambda key: init(agent, config, env, pool, key))(jax.random.key(0))
    before = time.perf_counter()

    def updates(state):
        def one(s, _):
            return update(agent, config, env, pool, s, None, 1.0)[::2]

        return jax.lax.scan(one, state, None, length=UPDATES)

    program = jax.jit(updates, donate_argnums=0)
    program = program.lower(state).compile()
    compile_time = time.perf_counter() - before

    networks = state.learner.networks
    first = sum(tower.hidden[0].weight.size for tower in (networks.actor, networks.critic))
    operations = floor_operations(weights(networks.actor), weights(networks.critic), first)

    def call() -> None:
        nonlocal state
        state, metrics = program(state)
        jax.block_until_ready(metrics)

    call()
    times, end = [], time.perf_counter() + arguments.seconds
    while time.perf_counter() < end:
        times.append(seconds(call))
    clock, cpu = np.asarray(times).T / (UPDATES * config.env_steps)  # per environment step
    rate = gemm_rate()
    print(
        f"{config.streams} streams x {config.steps} steps, {config.workers} workers; compiled in {compile_time:.1f} s"
    )
    print(f"{1e-6 / np.median(clock):.2f} million environment steps per second (best {1e-6 / clock.min():.2f})")
    print(f"{1e6 * np.median(cpu):.2f} CPU-seconds per million steps (best {1e6 * cpu.min():.2f})")
    print(
        f"floor: {operations / 1e3:.1f} kFLOP per step at {rate / 1e9:.0f} GFLOP/s, "
        f"{1e-6 * rate / operations:.2f} million steps per second: {np.median(clock) * rate / operations:.1f} x floor"
    )


if __name__ == "__main__":
    main()
