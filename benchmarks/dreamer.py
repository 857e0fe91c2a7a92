"""How long one Dreamer update takes, and how far from the floor that is.

    python benchmarks/dreamer.py [--updates 10] [--official PATH]

The floor is the arithmetic of the update's matrix products (two operations per weight and row, three times that where
gradients flow) over the rate of a large matrix product measured in the same run. The setting is that of DreamerV3's
public code for vectors: size1m, 16 sequences of 64 steps, 4 numbers in, 2 actions, dreams of 15 steps. As in training,
one program makes several updates.

With `--official` that code itself runs in turn with the first variant here, in one process and one update a call, and
nothing else is measured. PATH is a checkout of danijar/dreamerv3 at e3f0224, which reads these packages:

    python -m uv run --with ninjax,elements,chex,einops,portal,cloudpickle,ruamel.yaml \\
        taskset -c 0 python benchmarks/dreamer.py --official PATH

Without it, nothing but Reverie is needed.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reverie.runtime import configure, release_memory

configure()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import scipy.stats  # noqa: E402
from jax.stages import Compiled  # noqa: E402

from reverie.agents.dreamer import Batch, Dreamer, DreamerConfig, dream  # noqa: E402
from reverie.envs.core import ArraySpec, Discrete  # noqa: E402
from reverie.models.core import Sequence  # noqa: E402
from reverie.models.rssm import PRESETS  # noqa: E402

B, T, H = 16, 64, 15
CHUNK = 5
"""Updates in one call of the compiled program, as a trainer makes them."""
VARIANTS = {
    "DreamerV3, all starts": DreamerConfig(model=PRESETS["size1m"], memory=0),
    "DreamerV3, 256 starts": DreamerConfig(model=PRESETS["size1m"], memory=0, starts=256),
    "with RL2 policy of 256, all starts": DreamerConfig(model=PRESETS["size1m"]),
    "with RL2 policy of 256, 256 starts": DreamerConfig(model=PRESETS["size1m"], starts=256),
}


def weights(module) -> int:
    """Entries of all matrices: what a row is multiplied by."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array)) if x.ndim > 1)


def floor_operations(agent: Dreamer) -> float:
    """Floating-point operations of one update's matrix products, nothing computed twice."""
    networks = agent.init(jax.random.key(0)).networks
    model, rows, n = networks.model, B * T, agent.config.starts or B * T
    core = weights(model.dyn) - weights(model.dyn.posterior_in) - weights(model.dyn.posterior_out)
    heads = weights(model.rew) + weights(model.con)
    memory = weights(networks.memory) if networks.memory else 0
    actor, critic = weights(networks.actor), weights(networks.critic)
    replayed = 6 * rows * (weights(model) + memory + critic) + 2 * rows * critic
    rollout = 2 * n * H * (core + heads + actor + memory)
    learned = 6 * n * (H * (actor + memory) + (H + 1) * critic) + 2 * n * H * critic
    return replayed + rollout + learned


def parts(agent: Dreamer, learner, batch: Batch) -> dict[str, tuple[float, float]]:
    """Where an update spends its time: CPU-seconds and the floor's operations of the model's loss with its gradient, of
    the dreams, and of the rest (memory, heads, returns, optimiser)."""
    networks, rows, n, key = learner.networks, B * T, agent.config.starts or B * T, jax.random.key(3)
    model = networks.model
    core = weights(model.dyn) - weights(model.dyn.posterior_in) - weights(model.dyn.posterior_out)
    heads = weights(model.rew) + weights(model.con)
    memory = weights(networks.memory) if networks.memory else 0
    start = jax.tree.map(lambda x: jnp.repeat(x, n // B, 0), (model.initial(B), batch.recurrent))
    programs = {
        "model": jax.jit(jax.grad(lambda m, b: m.loss(m.initial(B), b.sequence, key)[0])).lower(model, batch).compile(),
        "dreams": jax.jit(lambda w, s: dream(w, *s, H, 1, key)).lower(networks, start).compile(),
        "whole": jax.jit(agent.learn).lower(learner, batch, key).compile(),
    }
    given = {"model": (model, batch), "dreams": (networks, start), "whole": (learner, batch, key)}
    spent = {
        name: float(np.median([cpu_seconds(program, *given[name]) for _ in range(11)][1:]))
        for name, program in programs.items()
    }
    floor = {
        "model": 6 * rows * weights(model),
        "dreams": 2 * n * H * (core + heads + weights(networks.actor) + memory),
    }
    rest = spent["whole"] - spent["model"] - spent["dreams"]
    left = floor_operations(agent) - sum(floor.values())
    return {name: (spent[name], floor[name]) for name in floor} | {"rest": (rest, left)}


def batch_for(agent: Dreamer, key) -> Batch:
    keys = iter(jax.random.split(key, 4))
    observation = {"vector": jax.random.normal(next(keys), (B, T, 4))}
    action = jax.nn.one_hot(jax.random.randint(next(keys), (B, T), 0, 2), 2)
    no = jnp.zeros((B, T), bool)
    flags = no.at[:, 30].set(True), no, no, no
    task = jnp.zeros((B, T), int)
    sequence = Sequence(observation, action, jax.random.normal(next(keys), (B, T)), *flags, task)
    model = agent.init(next(keys)).networks.model
    none = jax.tree.map(lambda x: x[:, :0], sequence)
    return Batch(sequence, none, model.compress(model.initial(B)), jnp.zeros((B, agent.config.memory)))


def beside_official(path: Path, precisions: list[str], updates: int) -> None:
    """Print what an update takes here and there, called in turn, and the official code's time over ours: the median
    over the turns with an interval that supposes nothing of their distribution."""
    agent = Dreamer(next(iter(VARIANTS.values())), {"vector": ArraySpec((4,))}, Discrete(2))
    learner, batch = agent.init(jax.random.key(0)), batch_for(agent, jax.random.key(1))
    update = jax.jit(agent.learn).lower(learner, batch, jax.random.key(2)).compile()
    calls = {"ours, float32": (update, lambda i: (learner, batch, jax.random.key(i)))}
    calls |= {f"official, {precision}": official(path, precision) for precision in precisions}
    turns = range(1 + updates)  # the first warms up
    spent = np.array([[cpu_seconds(call, *given(i)) for call, given in calls.values()] for i in turns][1:])
    print(f"{'one update a call':38} {'CPU-s':>7} {'min':>7} {'x ours':>7} {'95 %':>14} {'MB':>6}")
    for (name, (call, _)), times in zip(calls.items(), spent.T, strict=True):
        ratios = times / spent[:, 0]
        low, high = scipy.stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
        print(
            f"{name:38} {np.median(times):7.3f} {min(times):7.3f} {np.median(ratios):7.2f} [{low:5.2f}, {high:5.2f}] "
            f"{call.memory_analysis().temp_size_in_bytes >> 20:6}"
        )


def official(path: Path, precision: str) -> tuple[Compiled, Callable[[int], tuple]]:
    """The official code's own `Agent.train`, compiled, and what its i-th call is given: a batch like ours, after a row
    of context, and the same weights each time."""
    sys.path.insert(0, str(path))
    import elements
    import ninjax
    import ruamel.yaml
    from dreamerv3.agent import Agent
    from embodied.jax import nets

    nets.COMPUTE_DTYPE = getattr(jnp, precision)
    texts = ruamel.yaml.YAML(typ="safe").load((path / "dreamerv3" / "configs.yaml").read_text())
    config = elements.Config(texts["defaults"]).update(texts["size1m"])
    config = elements.Config(**config.agent, replay_context=1)
    seen = {"vector": elements.Space(np.float32, (4,)), "reward": elements.Space(np.float32)}
    seen |= {name: elements.Space(bool) for name in ("is_first", "is_last", "is_terminal")}
    agent = object.__new__(Agent)  # the algorithm, without what puts it on devices
    agent.__init__(seen, {"action": elements.Space(np.int32, (), 0, 2)}, config)
    rng, rows = np.random.default_rng(0), (B, 1 + T)
    no = jnp.zeros(rows, bool)
    data = {
        "vector": jnp.asarray(rng.normal(size=(*rows, 4)), jnp.float32),
        "reward": jnp.asarray(rng.normal(size=rows), jnp.float32),
        "action": jnp.asarray(rng.integers(0, 2, rows), jnp.int32),
        "is_first": no.at[:, 31].set(True),
        "is_last": no,
        "is_terminal": no,
        "consec": jnp.zeros(rows, jnp.int32),
        "stepid": jnp.zeros((*rows, 20), jnp.uint8),
        "dyn/deter": jnp.zeros((*rows, config.dyn.rssm.deter)),
        "dyn/stoch": jnp.zeros((*rows, config.dyn.rssm.stoch, config.dyn.rssm.classes)),
    }
    train, seed = ninjax.pure(agent.train), jnp.zeros(2, jnp.uint32)
    carry = ninjax.pure(agent.init_train)({}, B, seed=seed)[1]
    begin = jax.jit(lambda *given: train({}, *given, seed=seed, create=True, modify=True, ignore=True)[0])
    state = begin(carry, data)
    update = jax.jit(lambda state, carry, data, seed: train(state, carry, data, seed=seed))
    program = update.lower(state, carry, data, seed).compile()
    return program, lambda i: (state, carry, data, jnp.array([0, i], jnp.uint32))


def gemm_rate() -> float:
    """Floating-point operations per CPU-second of a large float32 matrix product."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    return 2 * 2048**3 / np.median([cpu_seconds(product, x) for _ in range(7)])


def cpu_seconds(program, *arguments) -> float:
    before = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10, help="counted updates of each variant, in calls of 5")
    parser.add_argument(
        "--official", type=Path, metavar="PATH", help="checkout of the official code to run beside ours"
    )
    parser.add_argument(
        "--precision", nargs="+", default=["float32"], help="of the official code, whose default on GPUs is bfloat16"
    )
    arguments = parser.parse_args()
    if arguments.official is not None:
        return beside_official(arguments.official, arguments.precision, arguments.updates)
    programs = {}
    for name, config in VARIANTS.items():
        agent = Dreamer(replace(config), {"vector": ArraySpec((4,))}, Discrete(2))
        learner, batch = agent.init(jax.random.key(0)), batch_for(agent, jax.random.key(1))
        before = time.time()

        def updates(learner, key, agent=agent, batch=batch):
            keys = jax.random.split(key, CHUNK)
            return jax.lax.scan(lambda learner, key: (agent.learn(learner, batch, key)[0], None), learner, keys)[0]

        update = jax.jit(updates).lower(learner, jax.random.key(2)).compile()
        programs[name] = agent, update, learner, batch, time.time() - before
    compiling = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    release_memory()
    times = {name: [] for name in programs}
    # In turn, so that a noisy machine is noisy to all; the first call warms up.
    for i in range(1 + -(-arguments.updates // CHUNK)):
        for name, (_, update, learner, *_) in programs.items():
            times[name].append(cpu_seconds(update, learner, jax.random.key(i)) / CHUNK)
    rate = gemm_rate()
    print(f"matrix products run at {rate / 1e9:.0f} GFLOP per CPU-second")
    print(f"{'update':38} {'CPU-s':>7} {'min':>7} {'GFLOP':>7} {'floor':>7} {'x floor':>8} {'compile':>8} {'MB':>6}")
    for name, (agent, update, *_, compile_time) in programs.items():
        spent, operations = np.median(times[name][1:]), floor_operations(agent)
        working = update.memory_analysis().temp_size_in_bytes >> 20
        print(
            f"{name:38} {spent:7.3f} {min(times[name][1:]):7.3f} {operations / 1e9:7.1f} {operations / rate:7.3f} "
            f"{spent * rate / operations:8.1f} {compile_time:7.1f}s {working:6}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"at most {compiling >> 10} MB resident while compiling, {peak >> 10} MB in all (the updates of all variants)"
    )
    print("MB: what a program works in, beside the weights and what Python and JAX take")
    print("\nwhere the time of the first goes")
    agent, _, learner, batch, _ = next(iter(programs.values()))
    for name, (spent, operations) in parts(agent, learner, batch).items():
        floor = operations / rate
        print(f"{name:38} {spent:7.3f} {'':7} {operations / 1e9:7.1f} {floor:7.3f} {spent / floor:8.1f}")


if __name__ == "__main__":
    main()
