"""How long one update of the world model takes as sequences grow: RSSM and S3M of about equal size, side by side.

    python benchmarks/long_sequences.py [--lengths 64 256 1024 4096] [--steps 4096] [--units 128] [--updates 5]

An update is the model's loss with its gradient on `steps` replayed steps in sequences of one length: 4096 is 64
sequences of 64 steps, or one of 4096. That is what long memory changes; dreams are short and take one step at a time
with either model. Both models learn from the same random vectors, with one reset in the middle. On an accelerator S3M
runs its parallel scan, on a CPU the sequential one (`--scan` asks for one of them).

Needs nothing but Reverie itself.
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
from reverie.models.rssm import RSSMConfig  # noqa: E402
from reverie.models.s3m import S3MConfig  # noqa: E402

ACTIONS = 4
SPEC = {"vector": ArraySpec((16,))}


def models(units: int, scan: str) -> dict[str, RSSMConfig | S3MConfig]:
    """Equal widths of h, z and hidden layers; how many parameters that makes is printed."""
    z = {"stoch": 16, "classes": 16}
    nets = {"encoder_layers": 1, "decoder_layers": 1, "reward_layers": 1, "continue_layers": 1}
    return {
        "rssm": RSSMConfig(units=units, deter=2 * units, **z, **nets),
        "s3m": S3MConfig(units=units, layers=3, state=units, deter=2 * units, scan=scan, **z, **nets),
    }


def sequences(batch: int, length: int) -> Sequence:
    keys = jax.random.split(jax.random.key(1), 3)
    no = jnp.zeros((batch, length), bool)
    first = no.at[:, length // 2].set(True)
    action = jax.nn.one_hot(jax.random.randint(keys[1], (batch, length), 0, ACTIONS), ACTIONS)
    observation = {"vector": jax.random.normal(keys[0], (batch, length, 16))}
    return Sequence(
        observation,
        action,
        jax.random.normal(keys[2], (batch, length)),
        first,
        no,
        no,
        no,
        jnp.zeros((batch, length), int),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--steps", type=int, default=4096, help="replayed steps of an update")
    parser.add_argument("--units", type=int, default=128, help="width of the models")
    parser.add_argument("--updates", type=int, default=5, help="counted updates of each")
    parser.add_argument("--scan", choices=["auto", "sequential", "parallel"], default="auto")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"on {device.device_kind}, {arguments.steps} replayed steps an update, medians of {arguments.updates}")
    print(f"{'length':>7} {'model':>6} {'parameters':>11} {'ms':>9} {'CPU-s':>8} {'compile':>8} {'S3M faster by':>14}")
    for length in arguments.lengths:
        batch = max(1, arguments.steps // length)
        seen, programs = sequences(batch, length), {}
        for name, config in models(arguments.units, arguments.scan).items():
            model = eqx.filter_jit(build_model)(config, SPEC, ACTIONS, key=jax.random.key(0))
            state = model.initial(batch)
            before = time.perf_counter()
            gradient = jax.grad(lambda model, state, seen: model.loss(state, seen, jax.random.key(2))[0])
            update = jax.jit(gradient).lower(model, state, seen).compile()
            programs[name] = update, (model, state, seen), time.perf_counter() - before
        wall, cpu = {name: [] for name in programs}, {name: [] for name in programs}
        for _ in range(arguments.updates + 1):  # in turn, so that a noisy machine is noisy to both; the first warms up
            for name, (update, given, _) in programs.items():
                clocks = time.perf_counter(), time.process_time()
                jax.block_until_ready(update(*given))
                wall[name].append(time.perf_counter() - clocks[0])
                cpu[name].append(time.process_time() - clocks[1])
        spent = {name: float(np.median(wall[name][1:])) for name in programs}
        for name, (_, (model, *_), compiling) in programs.items():
            parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
            ratio = f"{spent['rssm'] / spent['s3m']:13.1f}x" if name == "s3m" else ""
            print(
                f"{length:7} {name:>6} {parameters:11,} {1e3 * spent[name]:9.1f} {np.median(cpu[name][1:]):8.3f} "
                f"{compiling:7.1f}s {ratio:>14}"
            )


if __name__ == "__main__":
    main()
