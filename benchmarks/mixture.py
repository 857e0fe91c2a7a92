"""What a mixture of world models costs as experts are added, and as more of them are active.

    python benchmarks/mixture.py [--experts 2 4 8 16] [--active 1 2] [--tasks 16] [--units 128] [--updates 9]

CPU time of one update (the model's loss with its gradient on 16 sequences of 32 steps, each of another task) and of one
step of 256 dreams, and how many parameters the model has. Cost should grow with the experts that are active, not with
all there are. All are measured in turn, so that a noisy machine is noisy to all of them.
"""

import argparse
import time

from reverie.runtime import configure

configure()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from reverie.envs.core import ArraySpec  # noqa: E402
from reverie.models.build import build_model  # noqa: E402
from reverie.models.core import Sequence  # noqa: E402
from reverie.models.mixture import MixtureConfig  # noqa: E402

B, T, DREAMS, ACTIONS = 16, 32, 256, 4


def sequence(tasks: int) -> Sequence:
    keys = jax.random.split(jax.random.key(1), 3)
    no, task = jnp.zeros((B, T), bool), jnp.broadcast_to(jnp.arange(B)[:, None] % tasks, (B, T)).astype(jnp.int32)
    observation = {"vector": jax.random.normal(keys[0], (B, T, 16)), "task": task}
    action = jax.nn.one_hot(jax.random.randint(keys[1], (B, T), 0, ACTIONS), ACTIONS)
    return Sequence(observation, action, jax.random.normal(keys[2], (B, T)), no, no, no, no, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--active", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--units", type=int, default=128, help="width of the models")
    parser.add_argument("--updates", type=int, default=9, help="counted updates of each")
    asked = parser.parse_args()
    seen, programs = sequence(asked.tasks), {}
    key, action = jax.random.key(2), jnp.ones((DREAMS, ACTIONS))
    spec = {"vector": ArraySpec((16,)), "task": ArraySpec((), "task", asked.tasks)}
    print(f"{'active':>6} {'experts':>7} {'parameters':>11} {'update CPU-s':>13} {'dream CPU-ms':>13}")
    for active, experts in [(a, e) for a in asked.active for e in asked.experts if a <= e]:
        config = MixtureConfig(
            units=asked.units // 2,
            deter=asked.units,
            heads=4,
            dropout=0.0,
            stoch=8,
            classes=8,
            experts=experts,
            active=active,
            embedding=32,
        )
        model = eqx.filter_jit(build_model)(config, spec, ACTIONS, key=jax.random.key(0))
        begun = model.initial(B)
        _, states = eqx.filter_jit(lambda m, s: m.observe(m.initial(B), s, key))(model, seen)
        start = eqx.filter_jit(lambda m, s: m.starts(m.initial(B), s, jnp.arange(DREAMS)))(model, states)
        update = eqx.filter_jit(eqx.filter_grad(lambda m, b: m.loss(b, seen, key)[0]))
        dream = eqx.filter_jit(lambda m, s: m.imagine(s, action, key))
        programs[active, experts] = model, (update, begun), (dream, start)
    spent = {name: ([], []) for name in programs}
    for turn in range(asked.updates + 1):
        for name, (model, *pair) in programs.items():
            for into, (program, given) in zip(spent[name], pair, strict=True):
                before = time.process_time()
                jax.block_until_ready(program(model, given))
                if turn:
                    into.append(time.process_time() - before)
    for (active, experts), (model, *_) in programs.items():
        parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
        update, dream = (float(np.median(s)) for s in spent[active, experts])
        print(f"{active:6} {experts:7} {parameters:11,} {update:13.3f} {1e3 * dream:13.2f}")


if __name__ == "__main__":
    main()
